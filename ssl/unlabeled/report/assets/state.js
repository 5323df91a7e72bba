// What the reader has set (zooms, frames, searches), kept when the page reads itself anew; and small helpers.

/**
 * @typedef {{name: string, x: number[], y: (number|null)[], low: (number|null)[], high: (number|null)[]}} Line
 * @typedef {{x: number, text: string, tone: string}} Mark
 * @typedef {{title: string, lines: Line[], x: string, y: string, kind: "lines"|"bars"|"dots",
 *   band: {low: number|null, high: number|null, text: string}|null, marks: Mark[], text: string, names: string[]}} Chart
 * @typedef {{title: string, names: string[], counts: number[][], rows: string, columns: string}} Matrix
 * @typedef {{file: string, side: number, columns: number, images: number}} Sheet
 * @typedef {{title: string, points: [number, number][], names: string[], sheet: Sheet,
 *   colours: Object<string, (string|number)[]>, text: string}} Plane
 * @typedef {{colour?: string, only?: string, query?: string, chosen?: string, view?: number[]}} PlaneState
 */

/** Set by the reader, by the titles of parts. */
const state = {
  top: 0,
  /** @type {Object<string, [number, number]>} */ zooms: {}, // of axes, by their names
  /** @type {Object<string, boolean>} */ hidden: {}, // lines, by their names
  /** @type {Object<string, string>} */ frames: {},
  /** @type {Object<string, PlaneState>} */ planes: {},
  /** @type {string[]} */ opened: [], // lists of marks
  /** @type {Object<string, [number, boolean]>} */ sorted: {},
  /** @type {string[]} */ wide: [], // charts
};
const PLACE = `unlabeled:${location.pathname}`;

function remember() {
  state.top = scrollY;
  state.opened = all("details[open]").map((one) => titleOf(one));
  try {
    sessionStorage.setItem(PLACE, JSON.stringify(state));
  } catch {
    // storage may be switched off: then a page that is loaded anew begins anew
  }
}

function recall() {
  try {
    Object.assign(state, JSON.parse(sessionStorage.getItem(PLACE) || "{}"));
  } catch {
    // as above
  }
}

/** @param {string} selector @param {ParentNode} [within] @returns {HTMLElement[]} */
function all(selector, within = document) {
  return Array.from(within.querySelectorAll(selector));
}

/** @param {string} selector @param {ParentNode} [within] @returns {HTMLElement} */
function one(selector, within = document) {
  return /** @type {HTMLElement} */ (within.querySelector(selector));
}

/** The title of the part that an element is in. @param {Element} element */
function titleOf(element) {
  return element.closest("figure")?.getAttribute("aria-label") || "";
}

/**
 * A new element. Texts are never read as HTML.
 * @template {keyof HTMLElementTagNameMap} K
 * @param {K} tag @param {Object<string, any>} [fields] @param {...(Node|string)} children
 * @returns {HTMLElementTagNameMap[K]}
 */
function make(tag, fields = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(fields)) {
    if (name.startsWith("aria-") || name === "role") element.setAttribute(name, String(value));
    else Object.assign(element, { [name]: value });
  }
  element.append(...children);
  return element;
}

/** @param {string} text @param {string} label @param {() => void} pressed */
function button(text, label, pressed) {
  return make("button", { type: "button", title: label, "aria-label": label, onclick: pressed }, text);
}

/** @type {Map<string, string>} */
const colours = new Map(); // of the theme, until it changes

/** A colour of the theme, as canvas wants it. @param {string} name of a variable of the style sheet @returns {string} */
function colour(name) {
  const known = colours.get(name);
  if (known) return known;
  const probe = make("i");
  probe.style.color = `var(--${name})`;
  document.body.append(probe);
  const found = getComputedStyle(probe).color;
  probe.remove();
  colours.set(name, found);
  return found;
}

function dark() {
  const chosen = document.documentElement.dataset.theme;
  return chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
}

const NAMED = 10; // colours that the style sheet names

/** Colours that are told apart, as many as asked for. @param {number} count */
function palette(count) {
  if (count <= NAMED) return Array.from({ length: count }, (_, i) => colour(`series-${i}`));
  const light = dark() ? [70, 58] : [42, 54];
  return Array.from({ length: count }, (_, i) => `hsl(${(i * 137.508) % 360} 62% ${light[i % 2]}%)`);
}

/** A number for people. @param {number|null|undefined} value */
function told(value) {
  if (value === null || value === undefined) return "–";
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e7)) return value.toExponential(2);
  return value.toLocaleString("en", { maximumSignificantDigits: Number.isInteger(value) ? 12 : 4 });
}

/** @type {ResizeObserver[]} */
let sizes = []; // of what is in the page, until it is read anew

/** @param {Element} element @param {() => void} changed called at first, and when the size of an element changes */
function sized(element, changed) {
  const observer = new ResizeObserver(changed);
  sizes.push(observer);
  observer.observe(element);
}

/** Numbers of the parts that programs draw, in the order of the page. @returns {any[]} */
function numbers() {
  return JSON.parse(one("#data").textContent || "[]");
}
