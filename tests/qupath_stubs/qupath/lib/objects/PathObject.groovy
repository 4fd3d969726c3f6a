package qupath.lib.objects

class PathObject {
    final UUID ID
    final String name
    final ROI ROI
    final Map<String, Double> measurements
    final List color
    /** Keys and values are texts (QuPath: PathObject.getMetadata, since 0.5). */
    final Map<String, String> metadata = [:]
    PathObject parent
    final List<PathObject> childObjects = []

    PathObject(UUID id, String name, ROI roi, Map measurements, List color) {
        this.ID = id
        this.name = name
        this.ROI = roi
        this.measurements = measurements ?: [:]
        this.color = color
    }

    boolean hasROI() { this.@ROI != null }

    boolean hasMeasurements() { !measurements.isEmpty() }

    void addChildObjects(Collection<PathObject> objects) {
        objects.each { it.parent = this }
        childObjects.addAll(objects)
    }
}
