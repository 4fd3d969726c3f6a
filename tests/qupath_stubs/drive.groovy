/*
 * Runs the QuPath script (argument 1) on an image file (argument 2) against the stubs beside this file, once for each
 * run of each scenario in the JSON on standard input, and prints what a user would see after each, as JSON on the last line.
 *
 * A scenario: {"region": [x, y, width, height] or null for no selection, "rgb": false for a fluorescence image,
 * "um_per_px": of the slide (0.499 where left out), null for one that does not say,
 * "runs": [{"downsample": the dialog's answer, null to cancel; "key": the API key typed, null to cancel;
 * "nested": true to put what lies inside the annotation into its annotation "own" before, as resolving the hierarchy can}]}.
 */
import groovy.json.JsonOutput
import groovy.json.JsonSlurper
import java.awt.RenderingHints
import java.awt.image.BufferedImage
import javax.imageio.ImageIO
import qupath.fx.dialogs.Dialogs
import qupath.lib.objects.Hierarchy
import qupath.lib.objects.PathObject
import qupath.lib.objects.ROI
import qupath.lib.scripting.QP

class FileServer {
    BufferedImage image
    boolean RGB = true
    double umPerPx = 0.499d

    int getWidth() { image.width }

    int getHeight() { image.height }

    String getPath() { 'file:/DOE^JANE/1961.svs' }

    Map getPixelCalibration() { [getAveragedPixelSizeMicrons: { umPerPx }] }

    BufferedImage readRegion(request) {
        int width = Math.max(1, Math.round(request.width / request.downsample) as int)
        int height = Math.max(1, Math.round(request.height / request.downsample) as int)
        def scaled = new BufferedImage(width, height, BufferedImage.TYPE_INT_RGB)
        def pen = scaled.createGraphics()
        pen.setRenderingHint(RenderingHints.KEY_INTERPOLATION, RenderingHints.VALUE_INTERPOLATION_BILINEAR)
        pen.drawImage(image.getSubimage(request.x, request.y, request.width, request.height), 0, 0, width, height, null)
        pen.dispose()
        return scaled
    }
}

PathObject annotation(String name, List box, Map measurements = null) {
    new PathObject(UUID.randomUUID(), name,
        new ROI(boundsX: box[0], boundsY: box[1], boundsWidth: box[2], boundsHeight: box[3]), measurements, null)
}

Map play(Map scenario, File script, File image) {
    double umPerPx = scenario.containsKey('um_per_px') ? (scenario.um_per_px ?: Double.NaN) as double : 0.499d
    QP.server = new FileServer(
        image: ImageIO.read(image), RGB: scenario.rgb != false, umPerPx: umPerPx)
    QP.hierarchy = new Hierarchy()
    def region = annotation('region', scenario.region ?: [0, 0, 1, 1])
    def other = annotation('other', [0, 0, 10, 10], [mean_probability: 0.5d])
    def own = annotation('own', [1, 1, 5, 5])
    QP.hierarchy.root.addChildObjects([region, other])
    region.addChildObjects([own])
    QP.selected = scenario.region ? region : null
    def after = scenario.runs.collect { answers ->
        if (answers.nested) {
            def moved = region.childObjects - own
            region.childObjects.removeAll(moved)
            own.addChildObjects(moved)
        }
        Dialogs.shown.clear()
        Dialogs.downsample = answers.downsample as Double
        Dialogs.key = answers.key
        def console = new StringWriter()
        new GroovyShell(this.class.classLoader, new Binding(out: new PrintWriter(console, true))).run(script, [] as String[])
        [shown: Dialogs.shown.collect(), printed: console.toString().readLines(), inside: region.childObjects.collect { described(it) },
         beside: (QP.hierarchy.root.childObjects - region)*.name, updates: QP.hierarchy.updates,
         below_own: own.childObjects.size(), metadata: region.metadata.clone()]
    }
    return [runs: after]
}

Map described(PathObject object) {
    def roi = object.ROI
    [id: object.ID.toString(), name: object.name, color: object.color, measurements: object.measurements, metadata: object.metadata,
     box: [roi.boundsX, roi.boundsY, roi.boundsX + roi.boundsWidth, roi.boundsY + roi.boundsHeight]]
}

def played = new JsonSlurper().parse(System.in, 'UTF-8').collect { play(it, new File(args[0]), new File(args[1])) }
println JsonOutput.toJson(played)
