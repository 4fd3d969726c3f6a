/** What the user says of pixel sizes. How it is typed is left to the service, which says what is wrong with it. */

import { byId } from "./dom.js";
import { State } from "./patches.js";

/** Return what the field says: query parameters. */
export function stated() {
  const mpp = byId("mpp").value.trim().replace(",", ".");
  return mpp === "" ? {} : { mpp };
}

/**
 * Whether the model would see a patch otherwise if its pixel size were stated. DICOM files bring their own; what a TIFF says
 * may be of the image before it was shrunk.
 */
const canBeCorrected = (patch) =>
  patch?.state === State.DONE && patch.answer.scale.model_um_per_px !== null && patch.answer.scale.source !== "dicom";

/**
 * Make the field's buttons work.
 * @param {Patches} patches
 * @param {function(Patch)} segmentAgain - Called for the patch that is looked at, when the field holds its pixel size.
 */
export function enableSpacing(patches, segmentAgain) {
  const field = byId("mpp");
  for (const preset of byId("presets").children) {
    preset.addEventListener("click", () => (field.value = preset.value));
  }
  byId("again").addEventListener("click", () => {
    if (field.value.trim() === "") field.focus();
    else segmentAgain(patches.selected);
  });
  patches.addEventListener("select", ({ detail: patch }) => (byId("again").hidden = !canBeCorrected(patch)));
}
