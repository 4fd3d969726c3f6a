/** One or two OpenSeadragon viewers over the same layers. Knows canvases; knows nothing of classes or answers. */

const OVERLAY = "overlay";
const PATTERN_OPACITY = 0.6; // patterns stay readable over a faint mask
const ZOOM_STEP = 1.5;
const NARROW = matchMedia(document.querySelector('link[href$="/narrow.css"]').media);

const OPTIONS = {
  drawer: "canvas", // exact colours, and layers that can be painted anew in place
  showNavigationControl: false, // the page has its own buttons, which a keyboard and a screen reader reach
  autoResize: false, // done here, so that what fits still fits
  maxZoomPixelRatio: 32,
  minZoomImageRatio: 0.5,
  visibilityRatio: 0.5,
  animationTime: 0.4,
  gestureSettingsMouse: { clickToZoom: false, dblClickToZoom: true },
};
const TURNING_KEYS = new Set(["KeyR", "KeyF"]); // OpenSeadragon would rotate and flip, with no way shown to undo it

export class View {
  #panes;
  #left;
  #right;
  #leader;
  #mode = OVERLAY;
  #opacity = 0.4;
  #grey = false;
  #bare = false;
  #onPoint;
  #onScale;
  #pointed = null; // the mouse's last event, and the viewer it is over

  /**
   * @param {HTMLElement} panes - Holds both panes; its data-mode says how they are arranged.
   * @param {HTMLElement} left - Image, and mask when overlaid.
   * @param {HTMLElement} right - Mask alone.
   * @param {function({x: number, y: number}|null)} onPoint - Told which pixel of the image is under the mouse, or null
   *   where it is beside the image, or away.
   * @param {function(number)} onScale - Told the size of an image's pixel on the screen, in CSS pixels, when it changes.
   */
  constructor(panes, left, right, onPoint, onScale) {
    this.#panes = panes;
    this.#onPoint = onPoint;
    this.#onScale = onScale;
    this.#left = this.#viewer(left);
    this.#right = this.#viewer(right);
    this.#leader = this.#left;
    const resized = new ResizeObserver(() => this.#resize());
    resized.observe(left);
    resized.observe(right);
    NARROW.addEventListener("change", () => this.#leaveScrollingToNarrowPages());
    this.#leaveScrollingToNarrowPages();
  }

  /**
   * Show canvases of one shape: the image, the same in grey, the colours over it, and the patterns over all.
   * @param {Object} layers
   * @param {Place|null} place - Where to look; null shows all of it.
   */
  async open({ image, grey, colours, patterns }, place) {
    this.#leader = this.#left;
    await Promise.all([open(this.#left, [image, grey, colours, patterns]), open(this.#right, [colours, patterns])]);
    this.#resize();
    this.fit();
    if (place) {
      for (const { viewport } of [this.#left, this.#right]) {
        viewport.zoomTo(viewport.getHomeZoom() * place.enlargement, null, true).panTo(place.center, true);
      }
    }
    this.#dress();
  }

  /**
   * Where one looks.
   * @typedef {{center: Object, enlargement: number}} Place - In shares of the width; times of what fits.
   * @returns {Place|null} Null where all of it is seen.
   */
  get place() {
    const { viewport } = this.#leader;
    const center = viewport.getCenter();
    const isHome = isFitted(viewport) && center.distanceTo(viewport.getHomeBounds().getCenter()) < 0.001;
    return isHome ? null : { center, enlargement: viewport.getZoom() / viewport.getHomeZoom() };
  }

  close() {
    this.#left.close();
    this.#right.close();
  }

  /** Say for a screen reader what each pane shows. */
  describe(left, right) {
    this.#left.canvas.setAttribute("aria-label", left);
    this.#right.canvas.setAttribute("aria-label", right);
  }

  /** Arrange as "overlay" or "side"; both panes show the same place. */
  set mode(mode) {
    this.#mode = mode;
    this.#panes.dataset.mode = mode;
    this.#leader = this.#left;
    this.#dress();
  }

  /** Opacity of the overlay's colours, 0 to 1; a mask beside its image is opaque. */
  set opacity(opacity) {
    this.#opacity = opacity;
    this.#dress();
  }

  /** Whether the overlay lies over the grey image, so that no colour but its own is seen. */
  set grey(grey) {
    this.#grey = grey;
    this.#dress();
  }

  /** Whether the overlay is off, so that the image alone is seen. */
  set bare(bare) {
    this.#bare = bare;
    this.#dress();
  }

  /** Draw the canvases again after they were painted. */
  redraw() {
    this.#left.forceRedraw();
    this.#right.forceRedraw();
  }

  zoomIn() {
    this.#zoomBy(ZOOM_STEP);
  }

  zoomOut() {
    this.#zoomBy(1 / ZOOM_STEP);
  }

  fit() {
    this.#left.viewport?.goHome(true);
    this.#right.viewport?.goHome(true);
  }

  #zoomBy(factor) {
    this.#leader.viewport?.zoomBy(factor).applyConstraints();
  }

  #viewer(element) {
    const viewer = new OpenSeadragon.Viewer({ element, ...OPTIONS });
    viewer.canvas.setAttribute("role", "application"); // so that a screen reader hands the arrow keys on
    viewer.addHandler("tile-drawing", ({ context, rendered }) => {
      context.imageSmoothingEnabled = rendered.canvas.dataset.crisp === undefined;
    });
    viewer.addHandler("canvas-key", (event) => {
      this.#leader = viewer;
      event.preventDefaultAction = TURNING_KEYS.has(event.originalEvent.code);
    });
    for (const event of ["canvas-enter", "canvas-press"]) {
      viewer.addHandler(event, () => (this.#leader = viewer));
    }
    viewer.addHandler("viewport-change", () => {
      this.#follow(viewer);
      if (viewer === this.#left) this.#measure();
      this.point();
    });
    element.addEventListener("pointermove", (event) => {
      this.#pointed = { event, viewer };
      this.point();
    });
    element.addEventListener("pointerleave", () => {
      this.#pointed = null;
      this.point();
    });
    return viewer;
  }

  /** Tell again what is under the mouse: the image moves under one at rest, too, and is painted anew. */
  point() {
    this.#onPoint(this.#pointed && pixelUnder(this.#pointed.event, this.#pointed.viewer));
  }

  #measure() {
    const { viewport } = this.#left;
    const image = this.#left.world.getItemAt(0);
    if (image) this.#onScale(image.viewportToImageZoom(viewport.getZoom(true)));
  }

  /** Fit an image that fitted before; of an enlarged one keep scale and centre. */
  #resize() {
    for (const { viewport, element } of [this.#left, this.#right]) {
      if (!viewport || element.clientWidth === 0) continue;
      const center = viewport.getCenter();
      const fitted = isFitted(viewport);
      viewport.resize(new OpenSeadragon.Point(element.clientWidth, element.clientHeight), true);
      if (fitted) viewport.goHome(true);
      else viewport.panTo(center, true);
    }
    this.#follow(this.#leader);
    this.#measure();
    this.redraw();
  }

  /** The pane that is moved leads; the other is put where it is at that moment. */
  #follow(viewer) {
    const other = viewer === this.#left ? this.#right : this.#left;
    if (viewer !== this.#leader || this.#mode === OVERLAY || !other.isOpen()) return;
    other.viewport.zoomTo(viewer.viewport.getZoom(true), null, true);
    other.viewport.panTo(viewer.viewport.getCenter(true), true);
  }

  #dress() {
    const overlaid = this.#mode === OVERLAY && !this.#bare;
    const opacity = overlaid ? this.#opacity : 0;
    setOpacities(this.#left, [1, overlaid && this.#grey ? 1 : 0, opacity, opacity > 0 ? PATTERN_OPACITY : 0]);
    setOpacities(this.#right, [1, PATTERN_OPACITY]);
  }

  /** Where the panes stand in a column, one finger and a plain wheel scroll the page, not the image. */
  #leaveScrollingToNarrowPages() {
    for (const viewer of [this.#left, this.#right]) viewer.setCooperativeGestures(NARROW.matches);
  }
}

const isFitted = (viewport) => Math.abs(viewport.getZoom() / viewport.getHomeZoom() - 1) < 0.01;

/** Return the pixel of the image that an event of the mouse points at; null where that is none. */
function pixelUnder({ clientX, clientY }, viewer) {
  const image = viewer.world.getItemAt(0);
  if (!image) return null;
  const { left, top } = viewer.canvas.getBoundingClientRect();
  const place = image.viewerElementToImageCoordinates(new OpenSeadragon.Point(clientX - left, clientY - top));
  const [x, y] = [Math.floor(place.x), Math.floor(place.y)];
  const { x: width, y: height } = image.getContentSize();
  return x >= 0 && y >= 0 && x < width && y < height ? { x, y } : null;
}

function open(viewer, canvases) {
  return new Promise((resolve) => {
    viewer.addOnceHandler("open", resolve);
    viewer.open(canvases.map((canvas) => ({ tileSource: tileSourceOf(canvas) })));
  });
}

let layers = 0;

/** A tile source of one tile, which is the canvas itself: painting it anew changes what is drawn. */
function tileSourceOf(canvas) {
  const name = `layer-${++layers}`;
  return {
    width: canvas.width,
    height: canvas.height,
    tileWidth: canvas.width,
    tileHeight: canvas.height,
    minLevel: 0,
    maxLevel: 0,
    getTileUrl: () => name, // a name for the cache; nothing is fetched
    hasTransparency: () => true,
    downloadTileStart: (job) => job.finish(canvas.getContext("2d"), null, "context2d"),
    downloadTileAbort: () => {},
  };
}

function setOpacities(viewer, opacities) {
  opacities.forEach((opacity, index) => viewer.world.getItemAt(index)?.setOpacity(opacity));
}
