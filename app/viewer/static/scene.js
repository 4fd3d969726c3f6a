/** The patch that is looked at: gets its pixels, paints its layers, hands them to the view. */

import { classesOf } from "./patches.js";
import { paintClasses, paintConfidence, paintOutlines, paintPatterns } from "./paint.js";
import { blobOf, canvasOf, classMapOf, drawn, paintGrey, valuesOf } from "./raster.js";

const PNG = "image/png";
const PATTERN_SIDE_PX = 1024; // patterns of smaller patches are painted at about this size

/**
 * @typedef {Object} Look - How the user wants to see patches.
 * @property {"classes"|"outlines"|"confidence"} layer - What the colours say.
 * @property {boolean} patterns
 * @property {Map<string, boolean>} chosen - Classes shown or hidden on purpose, by name.
 */

/** Whether a class is shown: as chosen; else labels are, others (background) are not, as in the service's overlay. */
export const isShown = (look, { name, label }) => look.chosen.get(name) ?? label;

export class Scene {
  #service;
  #view;
  #look;
  #onWait;
  #confidences = new WeakMap(); // the service's pictures, by the answers that they belong to
  #places = new WeakMap(); // where one looked, by patches
  #abort = new AbortController();
  #shown = null;

  /**
   * @param {Service} service
   * @param {View} view
   * @param {Look} look - Read at each painting.
   * @param {function(number, Problem)} onWait - Told the seconds until the next try, and what is waited for.
   */
  constructor(service, view, look, onWait) {
    this.#service = service;
    this.#view = view;
    this.#look = look;
    this.#onWait = onWait;
  }

  /** Whether there is something to paint: not before a patch is open. */
  get isOpen() {
    return this.#shown !== null;
  }

  /**
   * Show the image of an answered patch; its layers are painted next.
   * @returns {Promise<boolean>} Whether it is as this browser decoded it; else the service's picture is shown.
   * @throws {Problem} A picture could not be had. {DOMException} AbortError: another patch was opened meanwhile.
   */
  async open(patch) {
    this.close();
    const { signal } = this.#abort;
    const { image: size, mask } = patch.answer;
    const classes = classesOf(patch.answer);
    const [own, map] = await Promise.all([drawn(patch.file, size), classMapOf(blobOf(mask), size, classes)]);
    signal.throwIfAborted();
    const image = own ?? (await this.#serviceDrawn(patch, size, signal));
    signal.throwIfAborted();
    const finer = Math.max(1, Math.floor(PATTERN_SIDE_PX / Math.max(size.width, size.height)));
    const layers = {
      image,
      grey: canvasOf(size.width, size.height),
      colours: crisp(size),
      patterns: crisp(size, finer),
    };
    await this.#view.open(layers, this.#places.get(patch) ?? null);
    signal.throwIfAborted();
    this.#shown = { patch, size, classes, map, confidence: null, heat: null, ...layers };
    return own !== null;
  }

  close() {
    this.#abort.abort();
    this.#abort = new AbortController();
    if (this.#shown) this.#places.set(this.#shown.patch, this.#view.place);
    this.#shown = null;
    this.#view.close();
  }

  /**
   * Paint the layers anew, as the look now asks for; gets the confidence when it is first needed.
   * @throws {Problem} The confidence could not be had. {DOMException} AbortError: another patch was opened meanwhile.
   */
  async paint() {
    const scene = this.#shown;
    if (!scene) return;
    const confidence = this.#look.layer === "confidence" && (await this.#confidenceOf(scene));
    const { size, colours, patterns, map, classes } = scene;
    const { layer } = this.#look;
    const shown = classes.map((tissue) => isShown(this.#look, tissue));
    const heat = confidence && layer === "confidence";
    if (heat) paintConfidence(colours, map, confidence, classes, shown);
    else if (layer === "outlines") paintOutlines(colours, map, classes, shown);
    else paintClasses(colours, map, classes, shown);
    scene.heat = heat ? confidence : null;
    const patterned = this.#look.patterns && layer !== "outlines"; // which leave the tissue free
    paintPatterns(patterns, map, size.width, classes, patterned ? shown : shown.fill(false));
    this.#view.grey = heat;
    this.#view.redraw();
  }

  /**
   * Return what a pixel of the image is.
   * @returns {{name: string, confidence: number|null}} The class, shown or not, and how sure the model is, 0 to 1, while
   *   the colours show that; null before a patch is open.
   */
  at({ x, y }) {
    if (!this.#shown) return null;
    const { map, size, classes, heat } = this.#shown;
    const at = y * size.width + x;
    return { name: classes[map[at]].name, confidence: heat ? heat[at] / 255 : null };
  }

  /** Return the confidence of what is shown; whoever asks while it is on its way waits for the same. */
  #confidenceOf(scene) {
    scene.confidence ??= this.#confidence(scene).catch((error) => {
      scene.confidence = null;
      throw error;
    });
    return scene.confidence;
  }

  async #confidence({ patch, size, image, grey }) {
    const { signal } = this.#abort;
    const { answer } = patch;
    const picture =
      this.#confidences.get(answer) ?? (await this.#picture(patch, { view: "confidence" }, signal, answer.model));
    this.#confidences.set(answer, picture);
    const confidence = await valuesOf(picture, size);
    signal.throwIfAborted();
    paintGrey(grey, image);
    return confidence;
  }

  #picture({ file, stated }, view, signal, model) {
    const query = { ...stated, ...view };
    return this.#service.segment(file, { accept: PNG, query, model, signal, onWait: this.#onWait });
  }

  /** Return the image as the service decoded it: an overlay without any colour is just that. */
  async #serviceDrawn(patch, size, signal) {
    return drawn(await this.#picture(patch, { view: "overlay", opacity: 0 }, signal), size);
  }
}

/** Return a canvas that the view scales without smoothing: between two classes there is nothing. */
function crisp({ width, height }, scale = 1) {
  const canvas = canvasOf(width * scale, height * scale);
  canvas.dataset.crisp = "yes";
  return canvas;
}
