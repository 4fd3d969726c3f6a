/** Looking at a patch: the controls over the view, and what they change. */

import { tell } from "./alert.js";
import { byId, percent } from "./dom.js";
import { leastConfidence, paintScale } from "./paint.js";
import { State, classesOf } from "./patches.js";
import { Result } from "./result.js";
import { Scene } from "./scene.js";
import { View } from "./view.js";

const NOTES = {
  [State.WAITING]: "This patch waits for its turn.",
  [State.RUNNING]: "This patch is being segmented…",
  [State.DONE]: "",
  [State.FAILED]: "There is nothing to show of this file.",
  [State.CANCELLED]: "This patch was cancelled.",
};

/**
 * Show what is selected of `patches`, as the controls say.
 * @returns {Result} Where the result stands.
 */
export function enableLooking(service, patches) {
  const look = { layer: "classes", patterns: false, chosen: new Map() };
  const view = new View(byId("panes"), byId("left"), byId("right"));
  const scene = new Scene(service, view, look);
  const result = new Result(look, repaint);

  patches.addEventListener("select", async ({ detail: patch }) => {
    result.show(patch);
    showParts(patch);
    if (patch?.state === State.DONE) await attempt(() => open(patch));
    else scene.close();
  });

  async function open(patch) {
    const decoded = await scene.open(patch);
    view.describe(...descriptions(patch));
    const byService = "Browsers do not show this file, or not all alike; this is the picture as the service decoded it.";
    byId("note").textContent = decoded ? "" : byService;
    await paint();
  }

  async function repaint() {
    result.paintSwatches();
    await attempt(paint);
  }

  async function paint() {
    try {
      await scene.paint();
    } catch (error) {
      if (error.name === "AbortError") throw error;
      showLayer("classes"); // what is there in any case
      await scene.paint();
      throw error;
    } finally {
      showScale();
    }
  }

  function showLayer(layer) {
    look.layer = layer;
    document.querySelector(`[name=layer][value=${layer}]`).checked = true;
  }

  async function attempt(work) {
    const patch = patches.selected;
    byId("busy").textContent = "Preparing the view…";
    try {
      await work();
    } catch (error) {
      tell(error, patch);
      if (error.name === "AbortError") return; // what came instead is still being prepared
    }
    byId("busy").textContent = "";
  }

  function showScale() {
    const answer = patches.selected?.answer;
    byId("right-caption").textContent = look.layer === "confidence" ? "Confidence" : "Mask";
    byId("scale").hidden = !answer || look.layer !== "confidence";
    if (answer) byId("scale-low").textContent = `Unsure, ${percent(leastConfidence(classesOf(answer)), 0)}`;
  }

  for (const radio of document.querySelectorAll("[name=mode]")) {
    radio.addEventListener("change", () => {
      view.mode = radio.value;
      byId("opacity").disabled = radio.value === "side";
    });
  }
  for (const radio of document.querySelectorAll("[name=layer]")) {
    radio.addEventListener("change", () => {
      look.layer = radio.value;
      repaint();
    });
  }
  byId("opacity").addEventListener("input", ({ target }) => {
    view.opacity = target.value / 100;
    byId("opacity-value").textContent = `${target.value}%`;
  });
  byId("patterns").addEventListener("change", ({ target }) => {
    look.patterns = target.checked;
    repaint();
  });
  byId("zoom-in").addEventListener("click", () => view.zoomIn());
  byId("zoom-out").addEventListener("click", () => view.zoomOut());
  byId("zoom-fit").addEventListener("click", () => view.fit());
  paintScale(byId("scale-bar"));
  return result;
}

function showParts(patch) {
  const done = patch?.state === State.DONE;
  byId("view-title").textContent = patch ? patch.file.name : "View";
  byId("welcome").hidden = patch !== null;
  for (const part of ["tools", "panes", "foot"]) byId(part).hidden = !done;
  byId("note").textContent = patch ? NOTES[patch.state] : "";
}

function descriptions({ answer }) {
  const shares = answer.classes.map(({ name, fraction }) => `${name} ${percent(fraction, 0)}`).join(", ");
  const keys = "Arrow keys pan, plus and minus zoom, 0 fits.";
  return [`Patch. ${shares}. ${keys}`, `Mask of the patch. ${shares}. ${keys}`];
}
