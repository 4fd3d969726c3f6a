/** The result of the patch that is looked at: words, numbers, bars, and the legend that shows and hides classes. */

import { byId, capitalised, css, element, percent, strip } from "./dom.js";
import { paintSwatch } from "./paint.js";
import { State, classesOf } from "./patches.js";
import { isShown } from "./scene.js";

/** From which shares on a class without a label contradicts the labels. Specks on glass, however alike, need none. */
const UNLABELLED = Object.freeze({ ofTissue: 0.05, ofPatch: 0.01 });
/** Below which amounts, both, a label's class contradicts the mask. In a large patch a small nest is worth its label. */
const LABELLED = Object.freeze({ ofTissue: 0.01, pixels: 256 });

export class Result {
  #look;
  #onToggle;
  #model = null;
  #swatches = [];

  /**
   * @param {Look} look - Which classes are shown, and whether patterned; toggles are noted here.
   * @param {function()} onToggle - Called when a class was shown or hidden.
   */
  constructor(look, onToggle) {
    this.#look = look;
    this.#onToggle = onToggle;
  }

  /** The model's card: its classes are the legend before there is a result; then it says what the labels are worth. */
  set model(model) {
    this.#model = model;
  }

  /** Whether the card is that of the model that gave `answer`. */
  isExplained({ model }) {
    return this.#model?.sha256 === model.sha256;
  }

  show(patch) {
    const done = patch?.state === State.DONE;
    byId("downloads").hidden = !done;
    byId("provenance").hidden = !done;
    byId("verdict").replaceChildren(...(done ? verdict(patch.answer) : []));
    byId("disagreement").textContent = done ? disagreement(patch.answer) : "";
    if (done) {
      byId("numbers").replaceChildren(...this.#numbers(patch.answer));
      byId("provenance-list").replaceChildren(...provenance(patch.answer, this.#cardOf(patch.answer)));
    } else if (patch?.state === State.FAILED) {
      byId("numbers").replaceChildren(element("p", { class: "failed" }, patch.note));
    } else {
      byId("numbers").replaceChildren(...this.#expected());
    }
    this.paintSwatches();
  }

  paintSwatches() {
    for (const { canvas, classes, index } of this.#swatches) paintSwatch(canvas, classes, index, this.#look.patterns);
  }

  #expected() {
    this.#swatches = [];
    if (!this.#model) return [];
    const classes = classesOf(this.#model);
    const items = this.#model.classes.map(({ name, definition }, index) =>
      element(
        "li",
        {},
        this.#swatch(classes, index),
        element("span", {}, capitalised(name), ...(definition ? [element("small", {}, definition)] : [])),
      ),
    );
    return [element("p", { class: "hint" }, "The model tells apart"), element("ul", { class: "legend" }, ...items)];
  }

  #cardOf(answer) {
    return this.isExplained(answer) ? this.#model : {};
  }

  #numbers(answer) {
    this.#swatches = [];
    const { labels, classes: scores, image, scale } = answer;
    const { description, label_thresholds: thresholds = [] } = this.#cardOf(answer);
    const classes = classesOf({ classes: scores });
    const left = [...thresholds];
    const whole = squareMillimetres(image, scale);
    const rows = scores.map((score, index) =>
      this.#row(classes, index, score, whole, labels, score.probability === null ? null : left.shift()),
    );
    const ticks = thresholds.length === 0 ? "" : " The tick is the threshold of a label.";
    return [
      ...(description ? [element("p", { class: "hint" }, `The model: ${description}`)] : []),
      strip(scores, "tall"),
      element(
        "table",
        {},
        element("caption", {}, "Uncheck a class to hide it in the view"),
        element("thead", {}, element("tr", {}, heading("Class"), heading("Area"), heading("Probability"))),
        element("tbody", {}, ...rows),
      ),
      element("p", { class: "hint" }, `Probability: that the patch contains the class.${ticks}`),
      ...(scale.um_per_px === null ? [] : [element("p", { class: "hint" }, `Scale: ${scaling(scale)}.`)]),
    ];
  }

  #row(classes, index, { fraction, tissue_fraction: ofTissue, probability, color }, whole, labels, threshold) {
    const tissue = classes[index];
    const toggle = element("input", {
      type: "checkbox",
      checked: isShown(this.#look, tissue),
      onchange: () => {
        this.#look.chosen.set(tissue.name, toggle.checked);
        this.#onToggle();
      },
    });
    const name = element("span", {}, capitalised(tissue.name));
    return element(
      "tr",
      {},
      element("th", { scope: "row" }, element("label", {}, toggle, this.#swatch(classes, index), name)),
      element(
        "td",
        { class: "area" },
        percent(fraction),
        meter(fraction, color),
        ...(ofTissue === null ? [] : [element("small", {}, `${percent(ofTissue)} of tissue`)]),
        ...(whole === null ? [] : [element("small", {}, area(fraction * whole))]),
      ),
      probability === null
        ? element("td", { class: "none" }, element("span", { class: "hidden" }, "is never a label"))
        : element(
            "td",
            { class: labels.includes(tissue.name) ? "label" : "" },
            percent(probability),
            meter(probability, color, threshold),
          ),
    );
  }

  #swatch(classes, index) {
    const canvas = element("canvas", { class: "swatch", width: 20, height: 20, "aria-hidden": "true" });
    this.#swatches.push({ canvas, classes, index });
    return canvas;
  }
}

const verdict = ({ labels, classes: scores, scale, warnings }) => [
  ...(warnings.length === 0 ? [] : [warned(warnings)]),
  ...(isGuessed(scale) ? [element("p", { class: "notice" }, guessed(scale))] : []),
  element("p", { class: "labels" }, ...found(labels, scores)),
];

/** Where labels and mask contradict each other, in words; "" where they agree. Without tissue its shares are null: 0. */
function disagreement({ labels, classes: scores, image, scale }) {
  const seen = image.width * image.height * scale.factor ** 2; // pixels, by the model
  const isLabel = ({ name }) => labels.includes(name);
  const missed = scores.filter(
    (score) =>
      score.probability !== null &&
      !isLabel(score) &&
      score.tissue_fraction >= UNLABELLED.ofTissue &&
      score.fraction >= UNLABELLED.ofPatch,
  );
  const unseen = scores.filter(
    (score) =>
      isLabel(score) && score.tissue_fraction < LABELLED.ofTissue && score.fraction * seen < LABELLED.pixels,
  );
  const told = [
    ...(missed.length === 0 ? [] : [`${are(missed)} in the mask but not among the labels`]),
    ...(unseen.length === 0 ? [] : [`${are(unseen)} among the labels but hardly, if at all, in the mask`]),
  ];
  return told.length === 0
    ? ""
    : `Labels and mask are two answers of the model, and here they disagree: ${told.join("; ")}.`;
}

/** "tumor is", "tumor and stroma are". */
const are = (classes) =>
  `${new Intl.ListFormat("en").format(classes.map(({ name }) => name))} ${classes.length === 1 ? "is" : "are"}`;

function found(labels, scores) {
  if (labels.length === 0) return ["No tissue class reaches its threshold"];
  return scores
    .filter(({ name }) => labels.includes(name))
    .map(({ name, color }) => {
      const chip = element("span", { class: "chip" }, capitalised(name));
      chip.style.setProperty("--class", css(color));
      return chip;
    });
}

/** The list has its role in words: a browser may drop it from one whose marks are styled away. */
const warned = (warnings) =>
  element(
    "div",
    { class: "warnings" },
    element("h3", {}, warnings.length === 1 ? "Warning" : "Warnings"),
    element("ul", { role: "list" }, ...warnings.map(({ message }) => element("li", {}, message))),
  );

const heading = (text) => element("th", { scope: "col" }, text);

/** A share as a bar, with a tick at `threshold`, for the eye alone: the number stands beside. */
function meter(share, color, threshold) {
  const fill = element("i");
  fill.style.width = `${share * 100}%`;
  fill.style.background = css(color);
  const parts = [fill];
  if (threshold !== undefined) {
    const tick = element("b");
    tick.style.left = `${threshold * 100}%`;
    parts.push(tick);
  }
  return element("span", { class: "meter", "aria-hidden": "true" }, ...parts);
}

/** Return the size of what a patch shows, in mm2; null where the size of its pixels is not known. */
const squareMillimetres = ({ width, height }, { um_per_px: spacing }) =>
  spacing === null ? null : (width * height * spacing ** 2) / 1e6;

const area = (square) => `${square.toLocaleString("en", { maximumSignificantDigits: 2 })} mm²`;

/** Whether the model took a patch for one of its own scale, as nobody said that it is another. */
const isGuessed = (scale) => scale.unchanged === "mpp_unknown" && scale.model_um_per_px !== null;

const guessed = ({ model_um_per_px: trained }) =>
  `The pixel size of this patch is not known; the model took it for ${trained} µm/px. If it is another, the result ` +
  "may be wrong: enter it under Pixel size and segment the patch again.";

const SAID = { request: "as stated", dicom: "in the DICOM file", file: "in the file" };

/** At which scale the model saw the patch, and why, in words. */
function scaling({ um_per_px: own, source, model_um_per_px: trained, factor, unchanged }) {
  const said = `${own} µm/px ${SAID[source]}`;
  switch (unchanged) {
    case "mpp_unknown":
      return trained === null
        ? "as sent; its pixel size is not known"
        : `as sent; pixel size not known, the model expects ${trained} µm/px`;
    case "model_um_per_px_unknown":
      return `as sent, ${said}; the model names no pixel size of its own`;
    case "within_tolerance":
      return `as sent; ${said}, the model's ${trained}`;
    default:
      return `seen at the model's ${trained} µm/px (× ${factor}); ${said}`;
  }
}

/** The card's cross-validated intersection over union of each class that has one, 0 to 1, and how to read it. */
function scored({ classes = [], metrics = {} }) {
  const scores = classes
    .filter(({ name }) => metrics[`cv_iou_${name}`] !== undefined)
    .map(({ name }) => `${name} ${metrics[`cv_iou_${name}`].toFixed(2)}`);
  return scores.length === 0 ? "" : `${scores.join(", ")}${READ_SO}`;
}

/** A card does not say how many images hold a class: this is true of any. */
const READ_SO =
  ", on images held out from training. A class that few images hold is scored on those few, and its number is the " +
  "least certain: see the model card.";

function provenance({ model, image, scale, request_id: request }, { description, intended_use: use, ...card }) {
  const defined = (card.classes ?? []).filter(({ definition }) => definition);
  const scores = scored(card);
  const facts = {
    Model: `${model.name} ${model.version}`,
    ...(description && { Description: description }),
    ...(card.stain && { Stain: card.stain }),
    ...(defined.length && { Classes: defined.map((tissue) => `${tissue.name}: ${tissue.definition}`).join(" ") }),
    ...(scores && { "IoU, cross-validated": scores }),
    "Model SHA-256": model.sha256,
    Image: `${image.width} × ${image.height} px`,
    Scale: scaling(scale),
    "Image SHA-256": image.sha256,
    "Request id": request,
    Use: capitalised(use ?? "research use only"),
  };
  return Object.entries(facts).flatMap(([term, fact]) => [element("dt", {}, term), element("dd", {}, fact)]);
}
