package qupath.lib.regions

class RegionRequest {
    final double downsample
    final int x, y, width, height

    private RegionRequest(double downsample, int x, int y, int width, int height) {
        this.downsample = downsample
        this.x = x
        this.y = y
        this.width = width
        this.height = height
    }

    static RegionRequest createInstance(String path, double downsample, int x, int y, int width, int height) {
        new RegionRequest(downsample, x, y, width, height)
    }
}
