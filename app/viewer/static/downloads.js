/** What can be taken away of a patch. Names of saved files are made here, in the browser, from the file's own path. */

import { byId, element, waiting } from "./dom.js";
import { blobOf } from "./raster.js";

const KEPT_MS = 60_000; // a browser may begin to save long after the click, when the user has said where

/**
 * Each makes one file of an answered patch: (service, patch, opacity in percent, what is told of waits) to [name's end,
 * content].
 */
const FILES = {
  mask: async (_service, { answer }) => ["mask.png", await blobOf(answer.mask)],
  overlay: async (service, { file, stated, answer: { model } }, opacity, onWait) => {
    const query = { ...stated, view: "overlay", opacity: opacity / 100 };
    return ["overlay.png", await service.segment(file, { accept: "image/png", query, model, onWait })];
  },
  geojson: async (service, { file, stated, answer: { model } }, _opacity, onWait) => [
    "polygons.geojson",
    await service.segment(file, { accept: "application/geo+json", query: stated, model, onWait }),
  ],
  json: async (_service, { json }) => ["answer.json", json],
};

/**
 * Make the buttons work.
 * @param {Service} service
 * @param {function(): {patch: Patch, opacity: number}} current - What is looked at, and the tissue's in percent.
 * @param {function(Problem, Patch)} onProblem
 */
export function enableDownloads(service, current, onProblem) {
  for (const button of byId("downloads").querySelectorAll("button")) {
    const name = button.firstChild.data.trim();
    const wait = element("p", { class: "hint", role: "status" });
    byId("downloads").append(wait);
    const onWait = (...until) => (wait.textContent = `${name}: ${waiting(...until)}.`);
    button.addEventListener("click", async () => {
      if (button.getAttribute("aria-busy") === "true") return;
      const { patch, opacity } = current();
      const { json } = patch;
      button.setAttribute("aria-busy", "true");
      try {
        const [end, content] = await FILES[button.dataset.download](service, patch, opacity, onWait);
        save(content, `${patch.path.replace(/\.[^./]*$/, "").replaceAll("/", "_")}_${end}`);
        if (patch.json === json) patch.saved = true; // and not what the service said since
      } catch (error) {
        onProblem(error, patch);
      } finally {
        button.removeAttribute("aria-busy");
        wait.textContent = "";
      }
    });
  }
}

/** Have the browser save `content`, a Blob, under a name. */
export function save(content, name) {
  const url = URL.createObjectURL(content);
  element("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), KEPT_MS);
}
