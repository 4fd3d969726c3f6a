/** Asks before the page is left or reloaded with what would be lost by that; a browser asks in its own words. */

import { State } from "./patches.js";

const UNDER_WAY = new Set([State.WAITING, State.RUNNING]);

const isLost = ({ state, saved }) => UNDER_WAY.has(state) || (state === State.DONE && !saved);

/** Ask while any of `patches` is under way, or has an answer of which nothing was saved. */
export function askBeforeLeaving(patches) {
  const ask = (event) => {
    if (patches.all.some(isLost)) event.preventDefault();
  };
  patches.addEventListener("change", () => {
    // Not before there is something: a page that might ask is not kept for the button that leads back to it.
    if (patches.all.length > 0) addEventListener("beforeunload", ask);
    else removeEventListener("beforeunload", ask);
  });
}
