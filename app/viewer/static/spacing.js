/** What the user says of pixel sizes. */

import { Problem } from "./api.js";
import { byId } from "./dom.js";
import { State } from "./patches.js";

const LEAST_UM_PER_PX = 0.05;
const MOST_UM_PER_PX = 10; // as in app/pathology/geometry.py; a test compares them

/** Return what the field says: query parameters. Half the world writes 0,5. */
export function stated() {
  const mpp = byId("mpp").value.trim().replace(",", ".");
  return mpp === "" ? {} : { mpp };
}

/**
 * Check what {@link stated} returned.
 * @throws {Problem} It is no pixel size.
 */
export function checkSpacing({ mpp }) {
  if (mpp === undefined) return;
  const isOne = /^(\d+\.?\d*|\.\d+)$/.test(mpp) && LEAST_UM_PER_PX <= mpp && mpp <= MOST_UM_PER_PX;
  if (!isOne) throw new Problem("Pixel size", `a number from ${LEAST_UM_PER_PX} to ${MOST_UM_PER_PX}, as in 0.5`);
}

/**
 * Whether the model would see a patch otherwise if its pixel size were stated. DICOM files bring their own; what a TIFF says
 * may be of the image before it was shrunk.
 */
const canBeCorrected = (patch) =>
  patch?.state === State.DONE && patch.answer.scale.model_um_per_px !== null && patch.answer.scale.source !== "dicom";

/**
 * Make the field and its buttons work.
 * @param {Patches} patches
 * @param {function(Patch)} segmentAgain - Called for the patch that is looked at, when the field holds its pixel size.
 */
export function enableSpacing(patches, segmentAgain) {
  const field = byId("mpp");
  const again = byId("again");

  /** Return what is wrong with what the field holds, or "", and mark it. What was said before and is mended goes. */
  function check() {
    let wrong = "";
    try {
      checkSpacing(stated());
    } catch (error) {
      wrong = error.message;
    }
    field.setAttribute("aria-invalid", String(wrong !== ""));
    if (!wrong) byId("mpp-wrong").textContent = "";
    return wrong;
  }

  /** Say what is wrong; return whether it is right. Not when the focus goes: a button would move away under the mouse. */
  function isRight() {
    const wrong = check();
    byId("mpp-wrong").textContent = wrong;
    return wrong === "";
  }

  for (const preset of byId("presets").children) {
    preset.addEventListener("click", () => {
      field.value = preset.value;
      check();
    });
  }
  field.addEventListener("change", check);
  field.addEventListener("input", () => {
    if (field.getAttribute("aria-invalid") === "true") check();
  });
  field.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.isComposing || !isRight()) return;
    [again, byId("retry")].find((button) => !button.hidden)?.click();
  });
  again.addEventListener("click", () => {
    if (field.value.trim() === "" || !isRight()) field.focus();
    else segmentAgain(patches.selected);
  });
  patches.addEventListener("select", ({ detail: patch }) => (again.hidden = !canBeCorrected(patch)));
}
