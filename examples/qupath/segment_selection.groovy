/*
 * Segments the selected annotation with tessera and puts what was found inside it, as annotations in tessera's colours.
 *
 * Select an annotation on an H&E slide and run this in QuPath's script editor (0.5 to 0.7). README.md shows each step.
 * Only the pixels of the rectangle around the annotation are sent, and where it lies; no name and no path.
 * Other objects are kept; what an earlier run put inside the same annotation is replaced. Research use only.
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
    def png = new ByteArrayOutputStream()
    if (!ImageIO.write(server.readRegion(request), 'png', png))
        throw new IllegalArgumentException('The region cannot be written as PNG: tessera takes 8-bit RGB images.')

    println "Sending ${png.size()} bytes to $SERVICE"
    def answer = segment(request, statedSpacing(server, request.downsample), png.toByteArray())
    def found = PathIO.readObjectsFromGeoJSON(new ByteArrayInputStream(answer))

    def ids = found.collect { it.getID() } as Set  // the same pixels at the same place have the same ids
    def earlier = hierarchy.getAnnotationObjects().findAll {
        ids.contains(it.getID()) ||
            (it.getParent() == annotation && it.hasMeasurements() && it.getMeasurements().containsKey(MEASUREMENT))
    }
    hierarchy.removeObjects(earlier, true)
    annotation.addChildObjects(found)
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
    def reason = um == null ? 'the slide does not say them' : "$um is not within $LEAST_UM_PER_PX to $MOST_UM_PER_PX"
    println "Sending no um/px: $reason"
    Dialogs.showWarningNotification(
        TITLE, "No um/px are sent ($reason): the model sees the region as it is at downsample ${downsample}.".toString())
    return null
}

/** Returns the GeoJSON of the region; asks for an API key when the service wants one, and forgets it. */
byte[] segment(RegionRequest request, Double mpp, byte[] png) {
    def answer = post(request, mpp, png, System.getenv('TESSERA_API_KEY'))
    if (answer.statusCode() == 401) {
        def field = new PasswordField()
        if (Dialogs.showConfirmDialog("$TITLE: API key".toString(), field))
            answer = post(request, mpp, png, field.getText())
    }
    if (answer.statusCode() != 200)
        throw new IllegalArgumentException(problem(answer))
    println "Scale: ${answer.headers().firstValue('Tessera-Scale').orElse('not said')}"
    warn(answer.headers().firstValue('Tessera-Warnings').orElse(''))
    return answer.body()
}

/** Tells the user what makes the answer worth little: codes with commas between; a code that is not known here as it is. */
void warn(String codes) {
    if (codes.trim().isEmpty())
        return
    def reasons = codes.split(',').collect { WARNINGS[it.trim()] ?: it.trim() }.join('; ')
    println "Warnings: $codes ($reasons)"
    Dialogs.showWarningNotification(TITLE, "The answer may be worth little: ${reasons}.".toString())
}

HttpResponse<byte[]> post(RegionRequest request, Double mpp, byte[] png, String key) {
    def query = "x=${request.x}&y=${request.y}&downsample=${request.downsample}&min_area=$MIN_AREA_PX"
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
