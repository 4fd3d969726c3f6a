/** The patches of this page: what state each is in, and which one is looked at. Tells of "change" and "select". */

export const State = Object.freeze({
  WAITING: "waiting",
  RUNNING: "running",
  DONE: "done",
  FAILED: "failed",
  CANCELLED: "cancelled",
});

/**
 * @typedef {Object} Patch
 * @property {File} file - What the user chose.
 * @property {string} path - Its name, with those of the folders that were dropped: shown here and sent nowhere.
 * @property {{mpp?: string}} stated - What the user says of it: query parameters of each request about it. Of DICOM
 *   nothing, once it is sent.
 * @property {boolean} [corrected] - It was said of this patch alone, which had turned out to state nothing itself:
 *   then it holds for DICOM, too.
 * @property {Object} [before] - What is put back when it is sent once more and no new answer comes.
 * @property {boolean} [late] - It was not answered in time: from then on it is sent alone.
 * @property {boolean} [saved] - Something of its answer was saved.
 * @property {string} state - One of State.
 * @property {string} note - What there is to say beside the state: a problem, or a wait.
 * @property {Object} [answer] - The service's answer.
 * @property {Blob} [json] - The same, as it came.
 */

export class Patches extends EventTarget {
  all = [];
  selected = null;
  #known = new Set();

  /** Add {@link Found}, at least one, of which `stated` is said; the very first is looked at without being asked for. */
  add(files, stated) {
    const added = files.map(({ file, path }) => ({ file, path, stated, state: State.WAITING, note: "" }));
    this.all.push(...added);
    for (const patch of added) this.#known.add(patch);
    this.dispatchEvent(new CustomEvent("change", { detail: null }));
    if (!this.selected) this.select(added[0]);
    return added;
  }

  /** Note what happened to `patch`. */
  update(patch, changes) {
    if (!this.has(patch)) return; // it was cleared meanwhile
    Object.assign(patch, { note: "" }, changes);
    this.dispatchEvent(new CustomEvent("change", { detail: patch }));
    if (patch === this.selected) this.select(patch);
  }

  select(patch) {
    this.selected = patch;
    this.dispatchEvent(new CustomEvent("select", { detail: patch }));
  }

  clear() {
    this.all = [];
    this.#known.clear();
    this.dispatchEvent(new CustomEvent("change", { detail: null }));
    this.select(null);
  }

  /** Return whether `patch` is one of `all`, however many those are. */
  has(patch) {
    return this.#known.has(patch);
  }

  in(...states) {
    return this.all.filter((patch) => states.includes(patch.state));
  }
}

/** Return the classes of an answer or of a model's card as {name, letter, color, label}, in the mask's order. */
export const classesOf = ({ classes }) =>
  classes.map(({ name, letter, color, label, probability }) => ({
    name,
    letter,
    color,
    label: label ?? probability !== null,
  }));
