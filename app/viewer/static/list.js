/** The list of patches and how far they are. A listbox: one stop for Tab, arrows inside (ARIA practices, "listbox"). */

import { byId, counted, element, strip } from "./dom.js";
import { State } from "./patches.js";

const WORDS = {
  [State.WAITING]: "waiting",
  [State.RUNNING]: "being segmented",
  [State.DONE]: "done",
  [State.FAILED]: "not segmented",
  [State.CANCELLED]: "cancelled",
};

/** Keep the list and the progress as `patches` says. */
export function showList(patches) {
  const list = byId("list");
  const options = new Map();
  let stop = null; // the option that Tab leads to
  let isDue = false; // to show the progress

  function change({ detail: patch }) {
    if (patch) fill(options.get(patch), patch);
    else {
      for (const gone of [...options.keys()].filter((known) => !patches.has(known))) {
        options.get(gone).remove();
        options.delete(gone);
      }
      for (const added of patches.all.filter((known) => !options.has(known))) {
        const option = element("li", {
          role: "option",
          "aria-selected": "false",
          tabindex: "-1",
          onclick: () => patches.select(added),
        });
        options.set(added, option);
        fill(option, added);
        list.append(option);
      }
    }
    list.hidden = patches.all.length === 0;
    placeTabStop();
    tellProgress();
  }

  /** Show the progress once all that changes in one go has changed: it counts every patch. */
  function tellProgress() {
    if (isDue) return;
    isDue = true;
    queueMicrotask(() => {
      isDue = false;
      showProgress(patches);
    });
  }

  function select({ detail: patch }) {
    for (const [known, option] of options) option.setAttribute("aria-selected", String(known === patch));
    placeTabStop();
    options.get(patch)?.scrollIntoView({ block: "nearest" });
  }

  function placeTabStop() {
    const next = options.get(patches.selected) ?? list.firstElementChild;
    if (next === stop) return;
    if (stop) stop.tabIndex = -1;
    if (next) next.tabIndex = 0;
    stop = next;
  }

  list.addEventListener("keydown", (event) => {
    const at = [...list.children].indexOf(event.target);
    const last = list.children.length - 1;
    const moves = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: last, " ": at, Enter: at };
    if (!(event.key in moves)) return;
    event.preventDefault();
    const to = Math.min(last, Math.max(0, moves[event.key]));
    list.children[to].focus();
    patches.select(patches.all[to]);
  });
  patches.addEventListener("change", change);
  patches.addEventListener("select", select);
}

function fill(option, { path, state, note, answer }) {
  option.dataset.state = state;
  const words = state === State.DONE ? answered(answer) : WORDS[state];
  option.replaceChildren(
    element("span", { class: "name" }, path),
    element("span", { class: "state" }, note || words),
    ...(answer ? [strip(answer.classes)] : []),
  );
}

function answered({ labels, warnings }) {
  const found = labels.join(", ") || "no label";
  return warnings.length === 0 ? found : `${found}; ${counted(warnings.length, "warning")}`;
}

function showProgress(patches) {
  const all = patches.all.length;
  const open = patches.in(State.WAITING, State.RUNNING).length;
  const failed = patches.in(State.FAILED).length;
  const cancelled = patches.in(State.CANCELLED).length;
  byId("progress").hidden = all === 0;
  byId("bar").max = Math.max(1, all);
  byId("bar").value = all - open;
  byId("bar").hidden = open === 0;
  const words = [`${all - open - failed - cancelled} of ${all} done`];
  if (failed) words.push(`${failed} with a problem`);
  if (cancelled) words.push(`${cancelled} cancelled`);
  const text = words.join(", ");
  if (byId("progress-text").textContent !== text) byId("progress-text").textContent = text;
  const buttons = [byId("cancel"), byId("retry"), byId("clear"), byId("table")];
  const [cancel, retry, clear, table] = buttons;
  const left = buttons.find((button) => button === document.activeElement);
  cancel.hidden = open === 0;
  clear.hidden = open > 0;
  table.hidden = open > 0 || patches.in(State.DONE).length === 0;
  retry.hidden = open > 0 || failed + cancelled === 0;
  if (left?.hidden) ([cancel, retry].find((button) => !button.hidden) ?? tabStop()).focus();
}

/** The row that Tab leads to; a button that goes leads there, too, and not to "Clear list", which is easily pressed. */
export const tabStop = () => byId("list").querySelector("[tabindex='0']");
