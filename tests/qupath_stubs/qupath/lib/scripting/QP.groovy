package qupath.lib.scripting

import qupath.lib.objects.Hierarchy
import qupath.lib.objects.PathObject

class QP {
    static Object server
    static Hierarchy hierarchy
    static PathObject selected

    static Object getCurrentServer() { server }

    static Hierarchy getCurrentHierarchy() { hierarchy }

    static PathObject getSelectedObject() { selected }

    static void fireHierarchyUpdate(Hierarchy changed) { changed.updates++ }
}
