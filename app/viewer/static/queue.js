/** Works on items in the order they came, a few at once; those that want to be alone come after all others, one by one. */
export class Queue {
  #work;
  #atOnce;
  #wantsAlone;
  #waiting = [];
  #alone = [];
  #running = 0;
  #held = false;
  #abort = new AbortController();

  /**
   * @param {function(any, AbortSignal): Promise<void>} work - Done to each item; does not fail.
   * @param {number} atOnce - The most items at one time.
   * @param {function(any): boolean} wantsAlone - Asked of an item when it is added or held.
   */
  constructor(work, atOnce, wantsAlone) {
    this.#work = work;
    this.#atOnce = atOnce;
    this.#wantsAlone = wantsAlone;
  }

  add(items) {
    for (const item of items) this.#lineOf(item).push(item);
    this.#fill();
  }

  /** Start no more, until `resume`; `item` is to come first then. */
  hold(item) {
    this.#held = true;
    this.#lineOf(item).unshift(item);
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
    return [...this.#waiting.splice(0), ...this.#alone.splice(0)];
  }

  #lineOf(item) {
    return this.#wantsAlone(item) ? this.#alone : this.#waiting;
  }

  #fill() {
    if (this.#held) return;
    while (this.#running < this.#atOnce && this.#waiting.length) this.#run(this.#waiting.shift(), 1);
    if (this.#running === 0 && this.#alone.length) this.#run(this.#alone.shift(), this.#atOnce);
  }

  async #run(item, places) {
    this.#running += places;
    try {
      await this.#work(item, this.#abort.signal);
    } finally {
      this.#running -= places;
      this.#fill();
    }
  }
}
