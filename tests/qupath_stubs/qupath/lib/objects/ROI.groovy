package qupath.lib.objects

/** A rectangle (QuPath: qupath.lib.roi.interfaces.ROI). */
class ROI {
    double boundsX, boundsY, boundsWidth, boundsHeight
    int z, t
    boolean area = true

    static ROI around(List<List> points) {
        def xs = points*.getAt(0), ys = points*.getAt(1)
        new ROI(boundsX: xs.min(), boundsY: ys.min(), boundsWidth: xs.max() - xs.min(), boundsHeight: ys.max() - ys.min())
    }
}
