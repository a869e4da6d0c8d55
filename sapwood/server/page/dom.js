// Elements made by hand: text is always text, whatever is in it.

const SVG = "http://www.w3.org/2000/svg";

/** An element. Properties that begin with "on" are listeners; null, undefined and false are left out. */
export function h(tag, props = {}, ...children) {
  return fill(document.createElement(tag), props, children);
}

/** The same in SVG. */
export function s(tag, props = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), props, children);
}

function fill(element, props, children) {
  for (const [name, value] of Object.entries(props)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "value" || name === "checked" || name === "open") element[name] = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

export const byId = (id) => document.getElementById(id);

const ICONS = {
  add: "M10 4v12M4 10h12",
  copy: "M7 7h9v9H7zM4 13V4h9",
  again: "M15.5 10a5.5 5.5 0 1 1-1.6-3.9L16 8M16 4v4h-4",
  edit: "M4 16l1-4 8.5-8.5 3 3L8 15zM11.5 5.5l3 3",
  tokens: "M3 6h4v8H3zM8 6h3v8H8zM12 6h5v8h-5z",
  remove: "M5 6h10M8 6V4h4v2M6 6l1 10h6l1-10",
  save: "M10 3v9m-3.5-3.5L10 12l3.5-3.5M4 16h12",
  load: "M10 12V3M6.5 6.5 10 3l3.5 3.5M4 16h12",
  send: "M10 16V4M5 9l5-5 5 5",
  stop: "M6 6h8v8H6z",
  path: "M3 10h5l3-5h6M8 10l3 5h6",
  close: "M5 5l10 10M15 5L5 15",
};

/** A button that shows an icon and says what it does. */
export function iconButton(name, label, onclick, extra = {}) {
  return h("button", { type: "button", class: "icon-button", "aria-label": label, title: label, onclick, ...extra }, icon(name));
}

export function icon(name) {
  return s("svg", { viewBox: "0 0 20 20", "aria-hidden": "true" }, s("path", { d: ICONS[name] }));
}

/** Copy a text, and say on the button that it was done. */
export async function copy(text, button) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // No permission, or no secure context: the old way.
    const field = h("textarea", { class: "away", value: text });
    document.body.append(field);
    field.select();
    document.execCommand("copy");
    field.remove();
  }
  button.classList.add("done");
  setTimeout(() => button.classList.remove("done"), 1200);
}

/** A bar that is filled to a share. */
export function filled(share) {
  const inner = h("span");
  inner.style.width = `${100 * share}%`;
  return h("span", { class: "filled", "aria-hidden": "true" }, inner);
}

export const count = (number) => Math.round(number).toLocaleString("en");

export const plural = (number, one, many = one + "s") => `${count(number)} ${number === 1 ? one : many}`;

/** Seconds as people read them. */
export function seconds(value) {
  if (!Number.isFinite(value)) return "–";
  if (value < 1) return `${Math.round(value * 1000)} ms`;
  if (value < 100) return `${value.toFixed(1)} s`;
  return value < 5400 ? `${Math.round(value / 60)} min` : `${(value / 3600).toFixed(1)} h`;
}
