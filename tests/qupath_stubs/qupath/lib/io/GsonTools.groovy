package qupath.lib.io

import groovy.json.JsonSlurper

class GsonTools {
    static GsonTools getInstance() { new GsonTools() }

    Object fromJson(String json, Class type) { new JsonSlurper().parseText(json).asType(type) }
}
