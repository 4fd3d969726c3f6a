/** Puts the page together: files in, patches to the service, what comes back to list, view and result. */

import { tell, untell } from "./alert.js";
import { Problem, Service } from "./api.js";
import { byId } from "./dom.js";
import { enableDownloads } from "./downloads.js";
import { showList } from "./list.js";
import { enableLooking } from "./looking.js";
import { Patches, State } from "./patches.js";
import { Queue } from "./queue.js";

const AT_ONCE = 3;

const service = new Service();
const patches = new Patches();
const queue = new Queue(segment, AT_ONCE);
const result = enableLooking(service, patches);

async function segment(patch, signal) {
  if (signal.aborted) return;
  patches.update(patch, { state: State.RUNNING });
  const onWait = (seconds) => patches.update(patch, { note: `the service is busy; trying again in ${seconds} s` });
  try {
    if (await isDicom(patch.file)) patch.stated = {};
    const wanted = { accept: "application/json", query: patch.stated, signal, onWait };
    const json = await service.segment(patch.file, wanted);
    patches.update(patch, { state: State.DONE, json, answer: JSON.parse(await json.text()) });
  } catch (error) {
    if (error.name === "AbortError") {
      patches.update(patch, { state: State.CANCELLED });
    } else if (error instanceof Problem && error.wantsKey) {
      queue.hold(patch);
      patches.update(patch, { state: State.WAITING, note: "waits for an API key" });
      tell(error);
    } else {
      patches.update(patch, { state: State.FAILED, note: error.message });
      tell(error, patch);
    }
  }
}

/** Whether a file begins as DICOM does (PS3.10, section 7.1): its header has the pixel size, and may not be outvoted. */
async function isDicom(file) {
  return (await file.slice(128, 132).text()) === "DICM";
}

async function readModel() {
  try {
    const model = await service.model();
    byId("model").textContent = `${model.name} ${model.version}`;
    result.model = model;
    result.show(patches.selected);
  } catch (error) {
    tell(error);
  }
}

/** What the user says of the patches: how it is typed is left to the service, which says what is wrong with it. */
function stated() {
  const mpp = byId("mpp").value.trim().replace(",", ".");
  return mpp === "" ? {} : { mpp };
}

function take(files) {
  if (files.length === 0) return;
  untell();
  queue.add(patches.add([...files], stated()));
}

byId("files").addEventListener("change", ({ target }) => {
  take(target.files);
  target.value = ""; // the same file can be chosen again
});
addEventListener("dragover", (event) => {
  event.preventDefault();
  byId("dropping").hidden = !event.dataTransfer.types.includes("Files");
});
addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) byId("dropping").hidden = true;
});
addEventListener("drop", (event) => {
  event.preventDefault();
  byId("dropping").hidden = true;
  take(event.dataTransfer.files);
});
byId("cancel").addEventListener("click", () => {
  for (const patch of queue.cancel()) patches.update(patch, { state: State.CANCELLED });
});
byId("retry").addEventListener("click", () => {
  untell();
  const again = patches.in(State.FAILED, State.CANCELLED);
  // What was said of a patch may be why it failed; of one that was cancelled it still holds.
  for (const patch of patches.in(State.FAILED)) patches.update(patch, { stated: stated() });
  for (const patch of again) patches.update(patch, { state: State.WAITING });
  queue.add(again);
});
byId("clear").addEventListener("click", () => {
  untell();
  patches.clear();
  byId("files").focus();
});
byId("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  untell();
  try {
    service.setKey(byId("key").value);
  } catch (error) {
    tell(error);
    return;
  }
  readModel();
  queue.resume();
});

enableDownloads(service, () => ({ patch: patches.selected, opacity: Number(byId("opacity").value) }), tell);
showList(patches);
readModel();
