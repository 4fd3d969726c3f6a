/*
 * Segments the selected annotation with tessera and puts what was found inside it, as annotations in tessera's colours.
 *
 * Select an annotation on an H&E slide and run this in QuPath's script editor (0.5 to 0.7). README.md shows each step.
 * Only the pixels of the rectangle around the annotation are sent, and where it lies; no name and no path.
 * Other objects are kept; what an earlier run put inside the same annotation is replaced. Model, um/px and warnings are
 * kept as metadata of the annotation and of what was put inside. Research use only.
 */
import groovy.transform.Field
import java.net.http.HttpClient
import java.net.http.HttpRequest
import java.net.http.HttpResponse
import java.time.Duration
import javafx.scene.control.PasswordField
import javax.imageio.ImageIO
import qupath.fx.dialogs.Dialogs
import qupath.lib.io.GsonTools
import qupath.lib.io.PathIO
import qupath.lib.regions.RegionRequest
import qupath.lib.scripting.QP

@Field final String SERVICE = (System.getenv('TESSERA_URL') ?: 'http://127.0.0.1:8000').replaceFirst('/+$', '')
@Field final double OFFERED_DOWNSAMPLE = 1.0  // the dialog's first value
@Field final int MIN_AREA_PX = 64             // smaller regions join their neighbours; px as they are sent
@Field final int MAX_SIDE_PX = 4096           // TESSERA_MAX_SIDE_PX of the service
@Field final double LEAST_UM_PER_PX = 0.05    // the service refuses to be told of anything finer
@Field final double MOST_UM_PER_PX = 10.0     // or coarser
@Field final Duration TIMEOUT = Duration.ofSeconds(120)
@Field final String TITLE = 'tessera'
@Field final String MEASUREMENT = 'mean_probability'  // what tells tessera's annotations from others
@Field final Map<String, String> WARNINGS = [         // of the service, by code
    too_small          : 'the region is too small to go by',
    low_tissue         : 'it holds hardly any tissue',
    out_of_distribution: 'it does not have the colours of H&E',
    pen_marks          : 'pen marks, dye or pigment may be taken for tissue',
    out_of_focus       : 'it may be out of focus or enlarged',
]

try {
    segmentSelection()
} catch (IllegalArgumentException | IOException error) {
    Dialogs.showErrorMessage(TITLE, error.message ?: "no answer from $SERVICE (${error.class.simpleName})".toString())
}

void segmentSelection() {
    def server = QP.getCurrentServer()
    def hierarchy = QP.getCurrentHierarchy()
    def annotation = QP.getSelectedObject()
    def request = regionOf(server, annotation)
    if (request == null)
        return

    println "Reading ${request.width} x ${request.height} px at downsample ${request.downsample}"
    def image = server.readRegion(request)
    def png = new ByteArrayOutputStream()
    if (!ImageIO.write(image, 'png', png))
        throw new IllegalArgumentException('The region cannot be written as PNG: tessera takes 8-bit RGB images.')

    println "Sending ${png.size()} bytes to $SERVICE"
    double downsample = downsampleOf(request, image)
    def answer = segment(request, downsample, statedSpacing(server, downsample), png.toByteArray())
    def found = PathIO.readObjectsFromGeoJSON(new ByteArrayInputStream(answer.body()))

    def ids = found.collect { it.getID() } as Set  // the same pixels at the same place have the same ids
    def earlier = hierarchy.getAnnotationObjects().findAll {
        ids.contains(it.getID()) ||
            (liesBelow(it, annotation) && it.hasMeasurements() && it.getMeasurements().containsKey(MEASUREMENT))
    }
    hierarchy.removeObjects(earlier, true)
    annotation.addChildObjects(found)
    annotation.getMetadata().putAll(provenance(answer))
    QP.fireHierarchyUpdate(hierarchy)

    def counts = found.countBy { it.getName() }.collect { name, count -> "$count $name" }.join(', ')
    println "Added ${counts ?: 'nothing'}; replaced ${earlier.size()}"
    Dialogs.showInfoNotification(TITLE, "Added ${counts ?: 'nothing: no tissue was found'}".toString())
}

/** Returns the rectangle around the annotation, cut at the slide's edges; null when the user cancels. */
RegionRequest regionOf(server, annotation) {
    if (server == null || annotation == null || !annotation.hasROI() || !annotation.getROI().isArea())
        throw new IllegalArgumentException('Select an annotation that covers an area, and run again.')
    def roi = annotation.getROI()
    if (!server.isRGB() || roi.getZ() != 0 || roi.getT() != 0)
        throw new IllegalArgumentException('tessera reads the first plane of 8-bit RGB (brightfield) images.')

    int x = Math.max(0, Math.floor(roi.getBoundsX()) as int)
    int y = Math.max(0, Math.floor(roi.getBoundsY()) as int)
    int width = Math.min(server.getWidth(), Math.ceil(roi.getBoundsX() + roi.getBoundsWidth()) as int) - x
    int height = Math.min(server.getHeight(), Math.ceil(roi.getBoundsY() + roi.getBoundsHeight()) as int) - y
    if (width < 1 || height < 1)
        throw new IllegalArgumentException('The annotation lies outside the slide.')

    def um = spacingOf(server, 1)
    def spacing = um == null ? 'unknown' : String.format(Locale.ROOT, '%.3f um/px', um)
    def downsample = Dialogs.showInputDialog(
        TITLE, "Downsample (1 is full resolution, $spacing):".toString(), OFFERED_DOWNSAMPLE as Double)
    if (downsample == null)
        return null
    if (!(downsample >= 1))
        throw new IllegalArgumentException('The downsample is a number of at least 1.')
    int side = Math.ceil(Math.max(width, height) / downsample) as int
    if (side > MAX_SIDE_PX) {
        def least = String.format(Locale.ROOT, '%.2f', Math.ceil(100.0 * Math.max(width, height) / MAX_SIDE_PX) / 100)
        throw new IllegalArgumentException("The region would be $side px long, and tessera takes $MAX_SIDE_PX px a side: " +
            "select a smaller one, or a downsample of at least ${least}.")
    }
    return RegionRequest.createInstance(server.getPath(), downsample, x, y, width, height)
}

/** Returns how many px of the slide one px of the image spans: the longer side's, since sides are rounded to whole px. */
double downsampleOf(RegionRequest request, image) {
    return Math.max(request.width, request.height) / (double) Math.max(image.getWidth(), image.getHeight())
}

/** Says whether an object lies below another, at any depth: resolving the hierarchy can put it into a third. */
boolean liesBelow(object, other) {
    for (def parent = object.getParent(); parent != null; parent = parent.getParent())
        if (parent == other)
            return true
    return false
}

/** Returns the um/px of a region at a downsample; null where the slide does not say. */
Double spacingOf(server, double downsample) {
    double um = server.getPixelCalibration().getAveragedPixelSizeMicrons()
    return Double.isNaN(um) ? null : um * downsample
}

/** Returns the um/px to send; null, and tells the user why, where the slide has none or the service would refuse them. */
Double statedSpacing(server, double downsample) {
    def um = spacingOf(server, downsample)
    if (um != null && um >= LEAST_UM_PER_PX && um <= MOST_UM_PER_PX)
        return um
    def reason = um == null ? 'the slide does not say them' :
        String.format(Locale.ROOT, '%.3f is not within %s to %s', um, LEAST_UM_PER_PX, MOST_UM_PER_PX)
    println "Sending no um/px: $reason"
    Dialogs.showWarningNotification(
        TITLE, String.format(Locale.ROOT,
            'No um/px are sent (%s): the model sees the region as it is at downsample %.2f.', reason, downsample))
    return null
}

/** Returns the answer with the region's GeoJSON; asks for an API key when the service wants one, and forgets it. */
HttpResponse<byte[]> segment(RegionRequest request, double downsample, Double mpp, byte[] png) {
    def answer = post(request, downsample, mpp, png, System.getenv('TESSERA_API_KEY'))
    if (answer.statusCode() == 401) {
        def field = new PasswordField()
        if (Dialogs.showConfirmDialog("$TITLE: API key".toString(), field))
            answer = post(request, downsample, mpp, png, field.getText())
    }
    if (answer.statusCode() != 200)
        throw new IllegalArgumentException(problem(answer))
    println "Scale: ${said(answer, 'Scale') ?: 'not said'}"
    warn(said(answer, 'Warnings'))
    return answer
}

/** Returns what one of the answer's own headers says; an empty text where it has none, as of an older service. */
String said(HttpResponse<byte[]> answer, String name) {
    return answer.headers().firstValue("Tessera-$name".toString()).orElse('').trim()
}

/** Returns what the selected annotation keeps of the answer, as QuPath saves it: also where no tissue was found. */
Map<String, String> provenance(HttpResponse<byte[]> answer) {
    def warnings = said(answer, 'Warnings')
    return [
        'tessera model'        : "${said(answer, 'Model')} ${said(answer, 'Model-Version')}".toString().trim(),
        'tessera model SHA-256': said(answer, 'Model-SHA256'),
        'tessera scale'        : said(answer, 'Scale'),
        'tessera warnings'     : warnings.isEmpty() ? 'none' : inWords(warnings),
        'tessera use'          : 'research use only',
    ]
}

/** Returns codes with commas between in words; a code that is not known here as it is. */
String inWords(String codes) {
    return codes.split(',').collect { WARNINGS[it.trim()] ?: it.trim() }.join('; ')
}

/** Tells the user what makes the answer worth little. */
void warn(String codes) {
    if (codes.isEmpty())
        return
    def reasons = inWords(codes)
    println "Warnings: $codes ($reasons)"
    Dialogs.showWarningNotification(TITLE, "The answer may be worth little: ${reasons}.".toString())
}

HttpResponse<byte[]> post(RegionRequest request, double downsample, Double mpp, byte[] png, String key) {
    def query = "x=${request.x}&y=${request.y}&downsample=$downsample&min_area=$MIN_AREA_PX"
    if (mpp != null)  // the service brings the region to the model's own um/px, where it knows it
        query += "&mpp=$mpp"
    def message = HttpRequest.newBuilder(URI.create("$SERVICE/segment?$query"))
        .timeout(TIMEOUT)
        .header('Content-Type', 'image/png')
        .header('Accept', 'application/geo+json')
        .POST(HttpRequest.BodyPublishers.ofByteArray(png))
    if (key)
        message.header('Authorization', "Bearer $key")
    // HTTP/1.1: the client would otherwise ask a plain server to upgrade first.
    def client = HttpClient.newBuilder().version(HttpClient.Version.HTTP_1_1).connectTimeout(Duration.ofSeconds(10)).build()
    return client.send(message.build(), HttpResponse.BodyHandlers.ofByteArray())
}

/** Returns what went wrong in the service's words (RFC 9457). */
String problem(HttpResponse<byte[]> answer) {
    if (!answer.headers().firstValue('Content-Type').orElse('').startsWith('application/problem+json'))
        return "$SERVICE answered ${answer.statusCode()}, not as tessera does."
    def said = GsonTools.getInstance().fromJson(new String(answer.body(), 'UTF-8'), Map)
    return "${said.title}: ${said.detail}\n\nStatus ${answer.statusCode()}, request ${said.request_id}"
}
