/** Puts the page together: files in, patches to the service, what comes back to list, view and result. */

import { tell, untell } from "./alert.js";
import { Problem, Service } from "./api.js";
import { byId, waiting } from "./dom.js";
import { enableDownloads, save } from "./downloads.js";
import { filesOf, found, isDicom } from "./files.js";
import { enableKey } from "./key.js";
import { askBeforeLeaving } from "./leaving.js";
import { showList, tabStop } from "./list.js";
import { enableLooking } from "./looking.js";
import { Patches, State } from "./patches.js";
import { Queue } from "./queue.js";
import { checkSpacing, enableSpacing, stated } from "./spacing.js";
import { tableOf } from "./table.js";

const AT_ONCE = 3;

const service = new Service();
const patches = new Patches();
const queue = new Queue(segment, AT_ONCE, ({ late }) => late === true);
const { result, tissueOpacity } = enableLooking(service, patches);

async function segment(patch, signal) {
  if (signal.aborted) return;
  patches.update(patch, { state: State.RUNNING });
  const onWait = (...until) => patches.update(patch, { note: waiting(...until) });
  try {
    // What a DICOM file's header says of its pixel size may not be outvoted.
    if (!patch.corrected && (await isDicom(patch.file))) patch.stated = {};
    checkSpacing(patch.stated);
    const wanted = { accept: "application/json", query: patch.stated, signal, onWait };
    const json = await service.segment(patch.file, wanted);
    const answer = JSON.parse(await json.text());
    patches.update(patch, { state: State.DONE, json, answer, before: undefined, saved: false });
    if (!result.isExplained(answer)) readModel().catch(unlessRefused);
  } catch (error) {
    if (error.name === "AbortError") {
      leave(patch, { state: State.CANCELLED });
    } else if (error instanceof Problem && error.wantsKey) {
      queue.hold(patch);
      patches.update(patch, { state: State.WAITING, note: "waits for an API key" });
      tell(error);
    } else if (error.cameTooLate && !patch.late && !signal.aborted) {
      patches.update(patch, { state: State.WAITING, note: "took too long; waits to be sent alone", late: true });
      queue.add([patch]);
    } else {
      leave(patch, { state: State.FAILED, note: error.message });
      tell(error, patch);
    }
  }
}

/** Note that a patch has no new answer; one that had one before keeps that. */
function leave(patch, changes) {
  patches.update(patch, { ...(patch.before ?? changes), before: undefined });
}

let asked = null; // for the card, and not yet answered

/** Read the model's card; who asks meanwhile waits for the same answer. */
async function readModel() {
  asked ??= service.model().finally(() => (asked = null));
  const model = await asked;
  byId("model").textContent = `${model.name} ${model.version}`;
  byId("purpose").textContent = model.description && `The model: ${model.description}`;
  byId("stain").textContent = model.stain;
  result.model = model;
  result.show(patches.selected);
}

/** A card that cannot be had is told of when the page opens, and not again with each answer. */
function unlessRefused(error) {
  if (!(error instanceof Problem)) throw error;
}

function take(files) {
  if (files.length === 0) return;
  untell();
  queue.add(patches.add(files, stated()));
}

function sendAgain(again) {
  untell();
  for (const patch of again) patches.update(patch, { state: State.WAITING, answer: undefined, json: undefined });
  queue.add(again);
}

byId("files").addEventListener("change", ({ target }) => {
  take(found(target.files));
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
  const problems = [];
  filesOf(event.dataTransfer, (problem) => problems.push(problem)).then((files) => {
    take(files);
    if (problems.length > 0) tell(problems[0]);
  }, tell);
});
addEventListener("paste", ({ target, clipboardData }) => {
  // Office programs put a picture beside the text that they copy.
  const isText = target.closest("input, textarea") || clipboardData.types.includes("text/plain");
  if (!isText) take(found(clipboardData.files));
});
byId("cancel").addEventListener("click", () => {
  for (const patch of queue.cancel()) leave(patch, { state: State.CANCELLED });
});
byId("retry").addEventListener("click", () => {
  const again = patches.in(State.FAILED, State.CANCELLED);
  // What was said of a patch may be why it failed; of one that was cancelled it still holds.
  for (const patch of patches.in(State.FAILED)) patches.update(patch, { stated: stated() });
  sendAgain(again);
});
byId("clear").addEventListener("click", () => {
  untell();
  patches.clear();
  byId("files").focus();
});
byId("table").addEventListener("click", () => {
  for (const patch of patches.in(State.DONE)) patch.saved = true;
  // Excel takes text that does not begin with this mark for the system's own encoding.
  save(new Blob(["\uFEFF", tableOf(patches.all)], { type: "text/csv" }), "labels.csv");
});
enableDownloads(service, () => ({ patch: patches.selected, opacity: tissueOpacity() }), tell);
enableKey(service, readModel, () => queue.resume());
enableSpacing(patches, (patch) => {
  const { state, answer, json, corrected } = patch;
  patches.update(patch, {
    before: { state, answer, json, stated: patch.stated, corrected },
    stated: stated(),
    corrected: true,
  });
  sendAgain([patch]);
  tabStop().focus(); // the button has gone
});
showList(patches);
askBeforeLeaving(patches);
readModel().catch(tell);
