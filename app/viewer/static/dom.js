/** The few words in which the page's parts are made and found. */

export const byId = (id) => document.getElementById(id);

/** Make an element. Functions and booleans are set as properties, everything else as attributes. */
export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "string" || typeof value === "number") made.setAttribute(name, value);
    else made[name] = value;
  }
  made.append(...children);
  return made;
}

export const percent = (share, digits = 1) =>
  share.toLocaleString("en", { style: "percent", minimumFractionDigits: digits, maximumFractionDigits: digits });

export const css = ([red, green, blue]) => `rgb(${red} ${green} ${blue})`;

/** "tumor" as it stands at the start of a line. */
export const capitalised = (name) => name.charAt(0).toUpperCase() + name.slice(1);

/** "1 warning", "2 warnings". */
export const counted = (count, noun) => `${count} ${noun}${count === 1 ? "" : "s"}`;

/** What is said until a request is sent again that met `problem`. */
export const waiting = (seconds, { isOfRate }) =>
  `${isOfRate ? "the limit of images a minute is reached" : "the service is busy"}; trying again in ${seconds} s`;

/** The classes' shares in one bar, for the eye alone: the numbers stand elsewhere. */
export function strip(classes, look = "") {
  const parts = classes.map(({ color, fraction }) => {
    const part = element("i");
    part.style.flexGrow = fraction;
    part.style.background = css(color);
    return part;
  });
  return element("span", { class: `strip ${look}`, "aria-hidden": "true" }, ...parts);
}
