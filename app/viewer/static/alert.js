/** The page's alert: what went wrong, in words. */

import { Problem } from "./api.js";
import { byId } from "./dom.js";

/** Say what went wrong, with which file; where a key is wanted, lead to its field. */
export function tell(error, patch) {
  if (error.name === "AbortError") return; // the user went on
  byId("alert").hidden = false;
  byId("alert-text").textContent = patch ? `${patch.path}: ${error.message}` : error.message;
  if (!(error instanceof Problem)) reportError(error); // a fault of this page: said, and left for the console
  if (error.wantsKey) {
    byId("key-said").textContent = "";
    byId("access").open = true;
    byId("key").focus();
  }
}

export function untell() {
  byId("alert").hidden = true;
  byId("alert-text").textContent = "";
}

byId("alert-close").addEventListener("click", untell);
