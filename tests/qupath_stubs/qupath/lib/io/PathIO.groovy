package qupath.lib.io

import groovy.json.JsonSlurper
import qupath.lib.objects.PathObject
import qupath.lib.objects.ROI

class PathIO {
    static List<PathObject> readObjectsFromGeoJSON(InputStream stream) {
        new JsonSlurper().parse(stream, 'UTF-8').features.collect {
            def object = new PathObject(UUID.fromString(it.id), it.properties.name, ROI.around(it.geometry.coordinates[0]),
                it.properties.measurements, it.properties.color)
            object.metadata.putAll(it.properties.metadata)
            return object
        }
    }
}
