/** The field for an API key. */

import { tell, untell } from "./alert.js";
import { byId } from "./dom.js";

/**
 * Make the field work.
 * @param {Service} service
 * @param {function(): Promise<void>} tryKey - Asks the service for something with the key; fails when it may not.
 * @param {function()} onKey - Called when there is another key, which may or may not do.
 */
export function enableKey(service, tryKey, onKey) {
  const panel = byId("access");
  const said = byId("key-said");

  byId("key-form").addEventListener("submit", async (event) => {
    event.preventDefault();
    untell();
    said.textContent = "";
    try {
      const key = byId("key").value;
      service.setKey(key);
      onKey();
      await tryKey();
      if (key) said.textContent = "API key will be sent";
      close();
    } catch (error) {
      tell(error);
    }
  });
  panel.addEventListener("keydown", ({ key }) => {
    if (key === "Escape") close();
  });

  function close() {
    if (panel.contains(document.activeElement)) panel.querySelector("summary").focus();
    panel.open = false;
  }
}
