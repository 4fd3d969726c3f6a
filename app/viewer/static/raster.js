/** Encoded pictures to pixels. */

import { Problem } from "./api.js";
import { bytesOf } from "./files.js";

// What is shown has to be what the model saw: like the service, apply the orientation and leave colour profiles alone.
const AS_THE_SERVICE = { imageOrientation: "from-image", colorSpaceConversion: "none" };
const WHITE = "#fff";

export function canvasOf(width, height) {
  const canvas = document.createElement("canvas");
  canvas.width = width;
  canvas.height = height;
  return canvas;
}

/** Paint `image` without its colours. */
export function paintGrey(canvas, image) {
  const context = canvas.getContext("2d");
  context.drawImage(image, 0, 0);
  context.globalCompositeOperation = "saturation"; // of what is filled in, white, which has none
  context.fillStyle = WHITE;
  context.fillRect(0, 0, canvas.width, canvas.height);
}

/** Return the PNG in a picture of an answer. */
export function blobOf({ media_type: type, base64 }) {
  const bytes = Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
  return new Blob([bytes], { type });
}

/**
 * Draw an image on white, as the service does with transparent pixels.
 * @returns {Promise<HTMLCanvasElement|null>} Null where this browser cannot decode it, or might do so otherwise.
 */
export async function drawn(blob, { width, height }) {
  if (await isTurnedByTheServiceAlone(blob)) return null;
  let bitmap;
  try {
    bitmap = await createImageBitmap(blob, AS_THE_SERVICE);
  } catch (error) {
    if (error instanceof DOMException && error.name === "InvalidStateError") return null; // TIFF, DICOM and the like
    throw error;
  }
  try {
    if (bitmap.width !== width || bitmap.height !== height) return null;
    const canvas = canvasOf(width, height);
    const context = canvas.getContext("2d");
    context.fillStyle = WHITE;
    context.fillRect(0, 0, width, height);
    context.drawImage(bitmap, 0, 0);
    return canvas;
  } finally {
    bitmap.close();
  }
}

/** Whether a file may state an orientation where browsers do not look; a size does not tell of a square that is turned. */
async function isTurnedByTheServiceAlone(blob) {
  const text = new TextDecoder("latin1").decode(await bytesOf(blob));
  if (text.startsWith("RIFF")) return text.includes("EXIF");
  if (!text.startsWith("PNG", 1)) return false;
  return text.includes("Raw profile type exif") || text.includes("eXIf", text.indexOf("IDAT"));
}

/**
 * Return the class map of a mask: a byte a pixel.
 * @throws {Problem} A pixel has the colour of no class.
 */
export async function classMapOf(mask, size, classes) {
  const indices = new Map(classes.map(({ color: [r, g, b] }, index) => [r | (g << 8) | (b << 16), index]));
  const pixels = await pixelsOf(mask, size);
  const map = new Uint8Array(pixels.length);
  let last = -1;
  let index = 0;
  for (let at = 0; at < pixels.length; at++) {
    const color = pixels[at] & 0xffffff;
    if (color !== last) {
      last = color;
      index = indices.get(color);
      if (index === undefined) {
        throw new Problem(
          "The mask cannot be shown",
          "the browser alters the pixels a page reads; let this page read them",
        );
      }
    }
    map[at] = index;
  }
  return map;
}

/** Return the values of a grey picture, 0 to 255, a byte a pixel. */
export async function valuesOf(grey, size) {
  return Uint8Array.from(await pixelsOf(grey, size), (pixel) => pixel & 0xff);
}

/** Return the pixels as 0xAABBGGRR. */
async function pixelsOf(blob, { width, height }) {
  const bitmap = await createImageBitmap(blob, AS_THE_SERVICE);
  const context = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
  context.drawImage(bitmap, 0, 0);
  bitmap.close();
  return new Uint32Array(context.getImageData(0, 0, width, height).data.buffer);
}
