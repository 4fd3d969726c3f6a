/** Class maps to colours, patterns and heat. Pixels are 0xAABBGGRR, as a little-endian machine keeps RGBA. */

const CLEAR = 0;
const BLACK = 0xff000000;
const WHITE = 0xffffffff;

/** Patterns that are told apart without colour. Each says whether (u, v), 0 to 1 within a period, is inked. */
const PATTERNS = [
  (u, v) => stripe(u + v), // rising lines
  (u, v) => (u - 0.5) ** 2 + (v - 0.5) ** 2 < 0.055, // dots
  (u, v) => stripe(u + v, 0.14) || stripe(u - v, 0.14), // cross-hatch
  (u) => stripe(u), // upright lines
  (u, v) => stripe(u - v), // falling lines
  (u, v) => stripe(v), // level lines
  (u, v) => stripe(u, 0.14) || stripe(v, 0.14), // grid
];
const OUTLINES = 400; // rims side by side along the longer side: two screen pixels each where a patch fills 800
const PATTERN_PERIODS = 32; // in the longer side, so that patterns look alike in small and large patches

function stripe(position, width = 0.2) {
  return ((position % 1) + 1) % 1 < width;
}

/** The heat's colours from least to most: nine even steps of viridis (CC0), which any colour vision sees as even. */
const HEAT = [
  [68, 1, 84],
  [71, 44, 122],
  [59, 81, 139],
  [44, 113, 142],
  [33, 144, 141],
  [39, 173, 129],
  [92, 200, 99],
  [170, 220, 50],
  [253, 231, 37],
];

const pixel = ([red, green, blue]) => (BLACK | (blue << 16) | (green << 8) | red) >>> 0;

/** The heat's colours for the confidences 0 to 255; the least possible one (`lowest`, 0 to 1) has the first colour. */
function heatColours(lowest) {
  return Uint32Array.from({ length: 256 }, (_, value) => {
    const position = Math.max(0, (value / 255 - lowest) / (1 - lowest)) * (HEAT.length - 1);
    const from = Math.min(HEAT.length - 2, Math.floor(position));
    return pixel(
      HEAT[from].map((start, channel) => Math.round(start + (HEAT[from + 1][channel] - start) * (position - from))),
    );
  });
}

/** No model is less sure of its best class than of a throw of the dice. */
export const leastConfidence = (classes) => 1 / classes.length;

/** Paint the shown classes in their colours. `shown` is a list of booleans, one a class. */
export function paintClasses(canvas, map, classes, shown) {
  const colours = classes.map(({ color }, index) => (shown[index] ? pixel(color) : CLEAR));
  paint(canvas, (pixels) => {
    for (let at = 0; at < pixels.length; at++) pixels[at] = colours[map[at]];
  });
}

/** Paint the rims of the shown classes' areas in their colours: inside, and thick enough to be seen when all fits. */
export function paintOutlines(canvas, map, classes, shown) {
  const { width, height } = canvas;
  const colours = classes.map(({ color }, index) => (shown[index] ? pixel(color) : CLEAR));
  const thick = Math.ceil(Math.max(width, height) / OUTLINES);
  const isRim = new Uint8Array(map.length);
  markRims(isRim, map, thick, { lines: height, apart: width, length: width, step: 1 });
  markRims(isRim, map, thick, { lines: width, apart: 1, length: height, step: width });
  paint(canvas, (pixels) => {
    for (let at = 0; at < pixels.length; at++) pixels[at] = isRim[at] ? colours[map[at]] : CLEAR;
  });
}

/** Mark, in each of the `lines`, the first and last `thick` pixels of each run of one class; the image's edge is no rim. */
function markRims(isRim, map, thick, { lines, apart, length, step }) {
  for (let line = 0; line < lines; line++) {
    const place = (along) => line * apart + along * step;
    for (let from = 0, to = 0; from < length; from = to) {
      while (to < length && map[place(to)] === map[place(from)]) to++;
      const head = from === 0 ? from : Math.min(to, from + thick);
      const tail = to === length ? to : Math.max(head, to - thick);
      for (let along = from; along < head; along++) isRim[place(along)] = 1;
      for (let along = tail; along < to; along++) isRim[place(along)] = 1;
    }
  }
}

/** Paint the confidence, 0 to 255 a pixel, where the shown classes are. */
export function paintConfidence(canvas, map, confidence, classes, shown) {
  const colours = heatColours(leastConfidence(classes));
  paint(canvas, (pixels) => {
    for (let at = 0; at < pixels.length; at++) pixels[at] = shown[map[at]] ? colours[confidence[at]] : CLEAR;
  });
}

/**
 * Paint the pattern of each shown class, in black or white, whichever stands out from its colour. The canvas may have
 * a whole number of pixels for each of the map's, so that lines are fine in small patches too.
 */
export function paintPatterns(canvas, map, mapWidth, classes, shown) {
  const { width, height } = canvas;
  const scale = width / mapWidth;
  const period = Math.max(2, Math.round(Math.max(width, height) / PATTERN_PERIODS));
  const tiles = patternTiles(classes, period);
  paint(canvas, (pixels) => {
    for (let y = 0, at = 0; y < height; y++) {
      const mapRow = Math.floor(y / scale) * mapWidth;
      const tileRow = (y % period) * period;
      for (let x = 0; x < width; x++, at++) {
        const index = map[mapRow + Math.floor(x / scale)];
        pixels[at] = shown[index] ? tiles[index][tileRow + (x % period)] : CLEAR;
      }
    }
  });
}

/** Paint a legend's swatch: the class's colour, and its pattern if wanted. */
export function paintSwatch(canvas, classes, index, patterned) {
  const period = canvas.width / 2;
  const color = pixel(classes[index].color);
  const tile = patternTiles(classes, period)[index];
  paint(canvas, (pixels) => {
    for (let at = 0; at < pixels.length; at++) {
      const [x, y] = [at % canvas.width, Math.floor(at / canvas.width)];
      pixels[at] = (patterned && tile[(y % period) * period + (x % period)]) || color;
    }
  });
}

/** Paint the heat's colours from left to right. */
export function paintScale(canvas) {
  const colours = heatColours(0);
  paint(canvas, (pixels) => {
    for (let at = 0; at < pixels.length; at++)
      pixels[at] = colours[Math.round(((at % canvas.width) / canvas.width) * 255)];
  });
}

/** One period of each class's pattern; clear for classes that are no labels, such as background. */
function patternTiles(classes, period) {
  let used = 0;
  return classes.map(({ color, label }) => {
    const tile = new Uint32Array(period * period);
    if (!label) return tile;
    const inked = PATTERNS[used++ % PATTERNS.length];
    const ink = luminance(color) > 0.3 ? BLACK : WHITE;
    return tile.map((_, at) =>
      inked(((at % period) + 0.5) / period, (Math.floor(at / period) + 0.5) / period) ? ink : CLEAR,
    );
  });
}

/** Relative luminance of an sRGB colour (WCAG 2.2). */
function luminance(color) {
  const [red, green, blue] = color
    .map((value) => value / 255)
    .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
  return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
}

function paint(canvas, fill) {
  const image = new ImageData(canvas.width, canvas.height);
  fill(new Uint32Array(image.data.buffer));
  canvas.getContext("2d").putImageData(image, 0, 0);
}
