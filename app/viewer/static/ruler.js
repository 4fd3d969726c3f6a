/** How large what is seen is: a bar of a round length, where the size of a pixel is known. */

const LONGEST_PX = 120; // CSS pixels
const ROUND = [5, 2, 1]; // times a power of ten

/** Return the longest round length, 1, 2 or 5 times a power of ten, that is not longer than `most`. */
function roundLength(most) {
  const power = 10 ** Math.floor(Math.log10(most));
  return ROUND.find((step) => step * power <= most) * power;
}

/** 0.5 µm, 200 µm, 2 mm. */
const inWords = (um) => (um < 1000 ? `${um} µm` : `${um / 1000} mm`);

export class Ruler {
  #bar;
  #pixel = 1;
  #spacing = null;

  /** @param {HTMLElement} bar - Its width is set, and its text. */
  constructor(bar) {
    this.#bar = bar;
  }

  /** The size of an image's pixel on the screen, in CSS pixels. */
  set pixel(pixel) {
    this.#pixel = pixel;
    this.#draw();
  }

  /** The size of an image's pixel in the tissue, in um; null where it is not known, and nothing is drawn. */
  set spacing(spacing) {
    this.#spacing = spacing;
    this.#draw();
  }

  #draw() {
    this.#bar.hidden = this.#spacing === null;
    if (this.#spacing === null) return;
    const umPerPixel = this.#spacing / this.#pixel;
    const length = roundLength(LONGEST_PX * umPerPixel);
    this.#bar.style.width = `${length / umPerPixel}px`;
    this.#bar.textContent = inWords(Number(length.toPrecision(1)));
  }
}
