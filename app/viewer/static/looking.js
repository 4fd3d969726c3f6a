/** Looking at a patch: the controls over the view, and what they change. */

import { tell } from "./alert.js";
import { byId, capitalised, percent, waiting } from "./dom.js";
import { leastConfidence, paintScale } from "./paint.js";
import { State, classesOf } from "./patches.js";
import { Result } from "./result.js";
import { Ruler } from "./ruler.js";
import { Scene, isShown } from "./scene.js";
import { View } from "./view.js";

const NOTES = {
  [State.WAITING]: "This patch waits for its turn.",
  [State.RUNNING]: "This patch is being segmented…",
  [State.DONE]: "",
  [State.FAILED]: "There is nothing to show of this file.",
  [State.CANCELLED]: "This patch was cancelled.",
};

const CAPTIONS = { classes: "Mask", outlines: "Outlines", confidence: "Confidence" };

/**
 * Show what is selected of `patches`, as the controls say.
 * @returns {{result: Result, tissueOpacity: function(): number}} Where the result stands, and how opaque tissue is drawn
 *   over the patch, in percent.
 */
export function enableLooking(service, patches) {
  const look = { layer: "classes", patterns: false, chosen: new Map() };
  const opacities = { classes: 40, outlines: 100, confidence: 80 }; // in percent; lines and heat say little when they are faint
  const ruler = new Ruler(byId("ruler"));
  const view = new View(byId("panes"), byId("left"), byId("right"), sayWhatIsAt, (pixel) => (ruler.pixel = pixel));
  const scene = new Scene(service, view, look, (...wait) => latest && say(`${capitalised(waiting(...wait))}.`));
  const result = new Result(look, repaint);
  let opened = null; // the answer that is in the view, or on its way there
  let latest = null; // the attempt that is under way and says so

  patches.addEventListener("select", async ({ detail: patch }) => {
    const answer = patch?.answer ?? null;
    if (answer && answer === opened) return; // zoom and place stay as they are
    opened = answer;
    result.show(patch);
    ruler.spacing = null; // that of the patch before
    sayWhatIsAt(null);
    showParts(patch);
    settle();
    if (answer) {
      await attempt(() => open(patch));
    } else {
      scene.close();
      showLayer();
    }
  });

  async function open(patch) {
    const decoded = await scene.open(patch);
    view.describe(...descriptions(patch));
    ruler.spacing = patch.answer.scale.um_per_px;
    const byService = "Browsers do not show this file, or not all alike; this is the picture as the service decoded it.";
    byId("note").textContent = decoded ? "" : byService;
    await paint();
  }

  async function repaint() {
    result.paintSwatches();
    if (scene.isOpen) await attempt(paint); // else it is painted as the look then is
  }

  async function paint() {
    try {
      await scene.paint();
    } catch (error) {
      if (error.name === "AbortError") throw error;
      if (look.layer === "confidence") {
        look.layer = "classes"; // what is there in any case
        document.querySelector("[name=layer][value=classes]").checked = true;
      }
      await scene.paint();
      throw error;
    } finally {
      showLayer();
      view.point();
    }
  }

  async function attempt(work) {
    const patch = patches.selected;
    const mine = (latest = Symbol("attempt"));
    if (!byId("busy").textContent) say("Preparing the view…");
    try {
      await work();
    } catch (error) {
      tell(error, patch);
      if (latest === mine && !scene.isOpen) opened = null; // choosing it again tries again
    }
    if (latest === mine) settle();
  }

  function settle() {
    latest = null;
    say("");
  }

  function say(text) {
    byId("busy").textContent = text;
  }

  function showLayer() {
    const { layer } = look;
    const answer = patches.selected?.answer;
    byId("panes").dataset.layer = layer;
    byId("right-caption").textContent = CAPTIONS[layer];
    for (const part of ["scale", "scale-note"]) byId(part).hidden = !answer || layer !== "confidence";
    byId("patterns").disabled = layer === "outlines";
    if (answer) byId("scale-low").textContent = `Unsure, ${percent(leastConfidence(classesOf(answer)), 0)}`;
    showOpacity();
    showHidden(answer);
  }

  function showOpacity() {
    const percentage = opacities[look.layer];
    view.opacity = percentage / 100;
    byId("opacity").value = percentage;
    byId("opacity-value").textContent = `${percentage}%`;
  }

  /** Name what the user has hidden; what is no label is hidden unless asked for, and no loss. */
  function showHidden(answer) {
    const hidden = answer ? classesOf(answer).filter((tissue) => tissue.label && !isShown(look, tissue)) : [];
    byId("hidden-note").textContent = hidden.length ? `Not shown: ${hidden.map(({ name }) => name).join(", ")}.` : "";
  }

  /** Name the class under the mouse; whom no mouse helps has the shares in the result. */
  function sayWhatIsAt(pixel) {
    const found = pixel && scene.at(pixel);
    const words = [];
    if (found) words.push(capitalised(found.name), `at ${pixel.x}, ${pixel.y} px`);
    if (found && found.confidence !== null) words.push(`confidence ${percent(found.confidence, 0)}`);
    byId("pointed").textContent = words.join(", ");
  }

  function toggleOverlay() {
    const bare = byId("bare").getAttribute("aria-pressed") !== "true";
    byId("bare").setAttribute("aria-pressed", String(bare));
    view.bare = bare;
  }

  for (const radio of document.querySelectorAll("[name=mode]")) {
    radio.addEventListener("change", () => {
      view.mode = radio.value;
      for (const control of ["opacity", "bare"]) byId(control).disabled = radio.value === "side";
    });
  }
  for (const radio of document.querySelectorAll("[name=layer]")) {
    radio.addEventListener("change", () => {
      look.layer = radio.value;
      repaint();
    });
  }
  byId("opacity").addEventListener("input", ({ target }) => {
    opacities[look.layer] = target.valueAsNumber;
    showOpacity();
  });
  byId("bare").addEventListener("click", toggleOverlay);
  for (const part of ["view", "list"]) {
    byId(part).addEventListener("keydown", ({ key, repeat, ctrlKey, metaKey, altKey }) => {
      if (key.toLowerCase() !== "h" || repeat || ctrlKey || metaKey || altKey) return;
      if (!byId("tools").hidden && !byId("bare").disabled) toggleOverlay();
    });
  }
  byId("patterns").addEventListener("change", ({ target }) => {
    look.patterns = target.checked;
    repaint();
  });
  byId("zoom-in").addEventListener("click", () => view.zoomIn());
  byId("zoom-out").addEventListener("click", () => view.zoomOut());
  byId("zoom-fit").addEventListener("click", () => view.fit());
  paintScale(byId("scale-bar"));
  return { result, tissueOpacity: () => opacities.classes };
}

function showParts(patch) {
  const done = patch?.state === State.DONE;
  byId("view-title").textContent = patch ? patch.path : "View";
  byId("welcome").hidden = patch !== null;
  for (const part of ["tools", "panes", "foot"]) byId(part).hidden = !done;
  byId("note").textContent = patch ? NOTES[patch.state] : "";
}

function descriptions({ answer }) {
  const shares = answer.classes.map(({ name, fraction }) => `${name} ${percent(fraction, 0)}`).join(", ");
  const keys = "Arrow keys pan, plus and minus zoom, 0 fits.";
  return [`Patch. ${shares}. ${keys}`, `Mask of the patch. ${shares}. ${keys}`];
}
