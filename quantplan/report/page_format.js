// Numbers as the command line prints them, and SVG elements. Scripts of the page share one scope (report/page.py).
"use strict";

const MIB = 1024 ** 2;
const GIB = 1024 ** 3;

/** Whole MiB, rounded up, so that a need never reads smaller than it is. @param {number} bytes */
function mib(bytes) {
  return whole(Math.ceil(bytes / MIB));
}

/** Whole MiB of what there is, rounded down. @param {number} bytes */
function mibDown(bytes) {
  return whole(Math.floor(bytes / MIB));
}

const WHOLE = new Intl.NumberFormat("en-US", { maximumFractionDigits: 0 });
const DIGITS = new Intl.NumberFormat("en-US", { maximumSignificantDigits: 3 });

/** @param {number} n */
function whole(n) {
  return WHOLE.format(n);
}

/** Three digits; the data holds no more. @param {number} value */
function rate(value) {
  return value >= 100 ? whole(value) : String(value);
}

/** A short name for a number of tokens: 16,384 is 16k, k being 1,024. @param {number} n */
function tokens(n) {
  if (n % MIB === 0) return `${n / MIB}M`;
  const k = n / 1024;
  return k < 1 ? String(n) : `${k >= 100 ? Math.round(k) : Number(k.toPrecision(3))}k`;
}

/**
 * @param {string} name
 * @param {Record<string, string | number>} [attributes]
 * @param {(Node | string)[]} children
 * @returns {SVGElement}
 */
function svg(name, attributes = {}, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) {
    made.setAttribute(key, typeof value === "number" ? String(Math.round(value * 10) / 10) : value);
  }
  made.append(...children);
  return made;
}

/**
 * @param {string} name
 * @param {Record<string, string>} [attributes]
 * @param {(Node | string)[]} children
 * @returns {HTMLElement}
 */
function html(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

/** @param {string} id @returns {HTMLElement} */
function byId(id) {
  const found = document.getElementById(id);
  if (!found) throw new Error(`no element ${id}`);
  return found;
}

/** A table whose first column and first row are headers. @param {string} caption @param {(Node | string)[][]} rows */
function table(caption, rows) {
  const [heads = [], ...rest] = rows;
  return html("table", {},
    html("caption", { class: "hidden" }, caption),
    html("thead", {}, html("tr", {}, ...heads.map((cell) => html("th", { scope: "col" }, cell)))),
    html("tbody", {}, ...rest.map(([first = "", ...cells]) =>
      html("tr", {}, html("th", { scope: "row" }, first), ...cells.map(cellOf)))));
}

/** A cell; words are aligned as words and keep a width to be read in. @param {Node | string} content */
function cellOf(content) {
  return html("td", typeof content === "string" && /[a-z]{3}/.test(content) ? { class: "text" } : {}, content);
}

const pen = document.createElement("canvas").getContext("2d");
const family = getComputedStyle(document.body).fontFamily;

/** How wide a text is drawn. @param {string} text @param {number} size @param {boolean} [bold] */
function widthOf(text, size, bold = false) {
  if (!pen) return text.length * size * 0.66;
  pen.font = `${bold ? 600 : 400} ${size}px ${family}`;
  return pen.measureText(text).width;
}

/** Round ticks from 0 up to a largest value, about so many. @param {number} largest @param {number} count */
function ticks(largest, count) {
  const raw = largest / count;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].map((m) => m * power).find((m) => m >= raw) ?? raw;
  const found = [];
  for (let i = 0; i * step <= largest * 1.0001; i++) found.push(Number((i * step).toPrecision(6)));
  return found;
}
