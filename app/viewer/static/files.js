/** Files as the user's machine has them: they may be in folders, and may have gone since they were chosen. */

/** @typedef {{file: File, path: string}} Found - A file, and its name with those of the folders that were dropped. */

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

/** Return files that were chosen or pasted, each as {@link Found}. */
export const found = (files) => [...files].map((file) => ({ file, path: file.name }));

/**
 * Return the files that were dropped, each as {@link Found}, those in folders too, but for hidden ones.
 * @param {DataTransfer} transfer - Read before this first waits: a browser empties it then.
 * @param {function(Problem)} onProblem - Told of each file or folder that can no longer be read; the others are returned.
 */
export async function filesOf({ items }, onProblem) {
  const dropped = [...items].filter(({ kind }) => kind === "file");
  const within = await Promise.all(dropped.map((item) => inside(item.webkitGetAsEntry(), item.getAsFile(), onProblem)));
  return within.flat();
}

async function inside(entry, file, onProblem) {
  if (!entry?.isDirectory) return file ? [{ file, path: entry ? pathOf(entry) : file.name }] : [];
  const entries = await readableOr([], listed(entry.createReader()), entry, onProblem);
  const seen = entries.filter(({ name }) => !name.startsWith("."));
  seen.sort((one, other) => one.name.localeCompare(other.name, "en", { numeric: true }));
  const files = seen.map(async (each) => {
    return inside(each, each.isFile ? await readableOr(null, fileOf(each), each, onProblem) : null, onProblem);
  });
  return (await Promise.all(files)).flat();
}

/** Return what is read, or `otherwise` once it was told that the entry cannot be. */
async function readableOr(otherwise, read, entry, onProblem) {
  try {
    return await readable(read, pathOf(entry));
  } catch (error) {
    onProblem(error);
    return otherwise;
  }
}

const pathOf = ({ fullPath }) => fullPath.slice(1); // which begins with a slash

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
async function readable(read, name = "The file") {
  try {
    return await read;
  } catch (error) {
    if (!(error instanceof DOMException)) throw error;
    const why = "it was moved, changed or deleted since it was chosen; choose it again";
    throw new Problem(`${name} cannot be read`, why);
  }
}
