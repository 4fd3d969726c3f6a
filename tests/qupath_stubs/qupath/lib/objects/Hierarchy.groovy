package qupath.lib.objects

/** All objects under a root (QuPath: qupath.lib.objects.hierarchy.PathObjectHierarchy). */
class Hierarchy {
    final PathObject root = new PathObject(UUID.randomUUID(), 'root', null, null, null)
    int updates = 0

    Collection<PathObject> getAnnotationObjects() { below(root) }

    private List<PathObject> below(PathObject parent) {
        parent.childObjects.collectMany { [it] + below(it) }
    }

    void removeObjects(Collection<PathObject> objects, boolean keepChildren) {
        objects.each { gone ->
            gone.parent.childObjects.remove(gone)
            if (keepChildren)
                gone.parent.addChildObjects(gone.childObjects)
            gone.parent = null
        }
    }
}
