/** The answers of all patches as one table, with the columns of `tessera segment`. */

import { State } from "./patches.js";

const shares = (classes, part) => classes.map(({ name, [part]: share }) => [`${name}_${part}`, share?.toFixed(6)]);

/** Return a patch's row: [column, value]. */
function rowOf({ path, state, note, answer }) {
  if (state !== State.DONE) return [["file", asText(path)], ["problem", asText(note || state)]];
  const { code, classes, image, scale, warnings, model } = answer;
  return [
    ["file", asText(path)],
    ["code", code],
    ...shares(
      classes.filter(({ probability }) => probability !== null),
      "probability",
    ),
    ...shares(classes, "fraction"),
    ["width_px", image.width],
    ["height_px", image.height],
    ["um_per_px", scale.um_per_px],
    ["scale_factor", scale.factor],
    ["warnings", warnings.map((warning) => warning.code).join(" ")],
    ["sha256", image.sha256],
    ["model", model.name],
    ["model_version", model.version],
    ["model_sha256", model.sha256],
    ["problem", ""],
  ];
}

/** Return the table as comma-separated values (RFC 4180): a row for each patch, in the list's order. */
export function tableOf(patches) {
  const rows = patches.map((patch) => new Map(rowOf(patch)));
  const longest = [...rows].sort((one, other) => other.size - one.size);
  const columns = [...new Set(longest.flatMap((row) => [...row.keys()]))]; // a reload may have changed the classes
  const lines = [columns, ...rows.map((row) => columns.map((column) => row.get(column)))];
  return lines.map((fields) => `${fields.map(quoted).join(",")}\r\n`).join("");
}

/** Excel takes what begins so for a formula, and anybody may name a file. What follows an apostrophe is text to it. */
const asText = (words) => (/^[=+\-@\t\r]/.test(words) ? `'${words}` : words);

function quoted(field) {
  const text = String(field ?? "");
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}
