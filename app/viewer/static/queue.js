/** Works on items in the order they came, a few at once. */
export class Queue {
  #work;
  #atOnce;
  #waiting = [];
  #running = 0;
  #held = false;
  #abort = new AbortController();

  /**
   * @param {function(any, AbortSignal): Promise<void>} work - Done to each item; does not fail.
   * @param {number} atOnce - The most items at one time.
   */
  constructor(work, atOnce) {
    this.#work = work;
    this.#atOnce = atOnce;
  }

  add(items) {
    this.#waiting.push(...items);
    this.#fill();
  }

  /** Start no more, until `resume`; `item` is to come first then. */
  hold(item) {
    this.#held = true;
    this.#waiting.unshift(item);
  }

  resume() {
    this.#held = false;
    this.#fill();
  }

  /** Abort what runs, forget what waits, and return the latter. */
  cancel() {
    this.#abort.abort();
    this.#abort = new AbortController();
    this.#held = false;
    return this.#waiting.splice(0);
  }

  #fill() {
    while (!this.#held && this.#running < this.#atOnce && this.#waiting.length) this.#run(this.#waiting.shift());
  }

  async #run(item) {
    this.#running += 1;
    try {
      await this.#work(item, this.#abort.signal);
    } finally {
      this.#running -= 1;
      this.#fill();
    }
  }
}
