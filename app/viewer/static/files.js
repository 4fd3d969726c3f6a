/** Files as the user's machine has them: they may be in folders, and may have gone since they were chosen. */

import { Problem } from "./api.js";

/**
 * Return what `blob` holds.
 * @throws {Problem} It can no longer be read.
 */
export const bytesOf = (blob) => readable(blob.arrayBuffer());

/** Whether a file begins as DICOM does (PS3.10, section 7.1). */
export async function isDicom(file) {
  return new TextDecoder("latin1").decode(await bytesOf(file.slice(128, 132))) === "DICM";
}

/**
 * Return the files that were dropped, those in folders too, but for hidden ones.
 * @param {DataTransfer} transfer - Read before this first waits: a browser empties it then.
 * @throws {Problem} One can no longer be read.
 */
export async function filesOf({ items }) {
  const dropped = [...items].filter(({ kind }) => kind === "file");
  const within = await Promise.all(dropped.map((item) => inside(item.webkitGetAsEntry(), item.getAsFile())));
  return within.flat();
}

async function inside(entry, file) {
  if (!entry?.isDirectory) return [file];
  const entries = await readable(listed(entry.createReader()));
  const seen = entries.filter(({ name }) => !name.startsWith("."));
  seen.sort((one, other) => one.name.localeCompare(other.name, "en", { numeric: true }));
  const files = seen.map(async (each) => inside(each, each.isFile && (await readable(fileOf(each)))));
  return (await Promise.all(files)).flat();
}

const fileOf = (entry) => new Promise((resolve, reject) => entry.file(resolve, reject));

/** A reader gives some entries at a time, and none at the end. */
async function listed(reader) {
  const entries = [];
  for (;;) {
    const more = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
    if (more.length === 0) return entries;
    entries.push(...more);
  }
}

/** Browsers say why in words of their own, such as "A requested file or directory could not be found…". */
async function readable(read) {
  try {
    return await read;
  } catch (error) {
    if (!(error instanceof DOMException)) throw error;
    const why = "it was moved, changed or deleted since it was chosen; choose it again";
    throw new Problem("The file cannot be read", why);
  }
}
