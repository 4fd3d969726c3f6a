/** What can be taken away of a patch. Names of saved files are made here, in the browser, from the file's own. */

import { byId, element } from "./dom.js";
import { blobOf } from "./raster.js";

/**
 * Each makes one file of an answered patch: (service, patch, opacity in percent) to [name's end, content].
 */
const FILES = {
  mask: async (_service, { answer }) => ["mask.png", await blobOf(answer.mask)],
  overlay: async (service, { file, stated }, opacity) => {
    const query = { ...stated, view: "overlay", opacity: opacity / 100 };
    return ["overlay.png", await service.segment(file, { accept: "image/png", query })];
  },
  geojson: async (service, { file, stated }) => [
    "polygons.geojson",
    await service.segment(file, { accept: "application/geo+json", query: stated }),
  ],
  json: async (_service, { json }) => ["answer.json", json],
};

/**
 * Make the buttons work.
 * @param {Service} service
 * @param {function(): {patch: Patch, opacity: number}} current - What is looked at, and the slider's percentage.
 * @param {function(Problem, Patch)} onProblem
 */
export function enableDownloads(service, current, onProblem) {
  for (const button of byId("downloads").querySelectorAll("button")) {
    button.addEventListener("click", async () => {
      if (button.getAttribute("aria-busy") === "true") return;
      const { patch, opacity } = current();
      button.setAttribute("aria-busy", "true");
      try {
        const [end, content] = await FILES[button.dataset.download](service, patch, opacity);
        save(content, `${patch.file.name.replace(/\.[^.]*$/, "")}_${end}`);
      } catch (error) {
        onProblem(error, patch);
      } finally {
        button.removeAttribute("aria-busy");
      }
    });
  }
}

function save(content, name) {
  const url = URL.createObjectURL(content);
  element("a", { href: url, download: name }).click();
  URL.revokeObjectURL(url);
}
