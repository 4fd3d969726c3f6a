/** Calls of the service. Knows HTTP and problem documents (RFC 9457); knows nothing of the page. */

const RETRIED = new Set([429, 503]);
const MOST_TRIES = 10;
const LONGEST_WAIT_SECONDS = 60;

/** What went wrong, in words: a problem document's title and detail, or this page's own. */
export class Problem extends Error {
  constructor(title, detail, status = 0, type = "") {
    super(detail ? `${title}: ${detail}` : title);
    this.status = status;
    this.type = type;
  }

  get wantsKey() {
    return this.status === 401;
  }

  /** Whether the service, or a proxy before it, gave up waiting for the answer. */
  get cameTooLate() {
    return this.status === 504;
  }

  /** Whether it is the caller who has sent too much, and not the service that has too much to do. */
  get isOfRate() {
    return this.type.endsWith(":rate-exceeded");
  }
}

export class Service {
  #key = "";

  /**
   * Send `key` with every request from now on; "" sends none.
   * @throws {Problem} It has characters that no header can carry.
   */
  setKey(key) {
    if (!/^[\x21-\x7e]*$/.test(key)) {
      throw new Problem("This cannot be an API key", "keys hold unaccented letters, digits and signs, and no spaces");
    }
    this.#key = key;
  }

  /** Return the model's card. */
  model() {
    return this.#ask("model", { headers: { Accept: "application/json" } }, (response) => response.json());
  }

  /**
   * Segment one image.
   * @param {Blob} image - Sent under a neutral name: its own may name a patient.
   * @param {{accept: string, query?: Object, model?: {sha256: string}, signal?: AbortSignal,
   *   onWait?: function(number, Problem)}} wanted - `model` is the only one whose answer is wanted, where one of it is kept
   *   already; `onWait` is told the seconds until the next try, and what is waited for.
   * @returns {Promise<Blob>} The answer.
   * @throws {Problem} The service refused, or could not be reached, or another model answered.
   */
  segment(image, { accept, query = {}, model, signal, onWait = () => {} }) {
    const body = new FormData();
    body.append("file", image, "patch");
    const request = { method: "POST", body, signal, headers: { Accept: accept } };
    const read = (response) => {
      const digest = response.headers.get("Tessera-Model-SHA256");
      if (model && digest && digest !== model.sha256) throw ofAnotherModel();
      return response.blob();
    };
    return this.#ask(`segment?${new URLSearchParams(query)}`, request, read, onWait);
  }

  async #ask(path, request, read, onWait = () => {}) {
    for (let tries = 1; ; tries++) {
      const key = this.#key;
      const headers = { ...request.headers, ...(key && { Authorization: `Bearer ${key}` }) };
      let response, answer;
      try {
        response = await fetch(path, { ...request, headers, cache: "no-store", credentials: "same-origin" });
        if (response.ok && !isA(response, headers.Accept)) throw notOfTheService();
        answer = response.ok ? await read(response) : await problemOf(response, key !== "");
      } catch (error) {
        if (!(error instanceof TypeError)) throw error;
        throw new Problem("No answer", "the service cannot be reached, or the file can no longer be read; try again");
      }
      if (response.ok) return answer;
      if (answer.wantsKey && key !== this.#key) continue; // it says nothing of the key given meanwhile
      if (!RETRIED.has(response.status) || tries >= MOST_TRIES) throw answer;
      const seconds = secondsToWait(response, tries);
      onWait(seconds, answer);
      await pause(seconds, request.signal);
    }
  }
}

async function problemOf(response, hadKey) {
  if (response.status === 401) {
    return new Problem(
      hadKey ? "The service does not accept this API key" : "The service asks for an API key",
      "",
      401,
    );
  }
  if (isA(response, "application/problem+json")) {
    const { title, detail, type } = await response.json();
    return new Problem(title, detail, response.status, type);
  }
  return new Problem(`The service answered ${response.status} ${response.statusText}`.trim(), "", response.status);
}

const isA = (response, mediaType) => (response.headers.get("Content-Type") ?? "").startsWith(mediaType);

/** A proxy's page for signing in, for example, comes with status 200. */
const notOfTheService = () =>
  new Problem(
    "Not the service's answer",
    "something before it answered instead; reload the page, and sign in if asked",
  );

const ofAnotherModel = () =>
  new Problem("Another model answers by now", "add the patch again to have all of the new one's results");

/** Retry-After in seconds: given as a number or as a date (RFC 9110, section 10.2.3), else twice as long each time. */
function secondsToWait(response, tries) {
  const header = response.headers.get("Retry-After");
  const given = /^\d+$/.test(header) ? Number(header) : (Date.parse(header) - Date.now()) / 1000;
  return Math.min(LONGEST_WAIT_SECONDS, Number.isNaN(given) ? 2 ** (tries - 1) : Math.max(0, Math.ceil(given)));
}

function pause(seconds, signal) {
  return new Promise((resolve, reject) => {
    const leave = () => {
      clearTimeout(timer);
      reject(signal.reason);
    };
    const timer = setTimeout(() => {
      signal?.removeEventListener("abort", leave); // the signal outlives this wait
      resolve();
    }, seconds * 1000);
    signal?.addEventListener("abort", leave, { once: true });
  });
}
