"use strict";
// The list of runs: sorted by a column, filtered by text, and kept up to date without losing ticks or the place.

const EVERY = 3000; // milliseconds between two looks at the runs
const PLACE = "unlabeled:list";

/** @type {{column: number, down: boolean, filter: string}} column -1 = in the order of the server */
const chosen = { column: -1, down: false, filter: "" };
/** @type {Set<string>} */
const ticked = new Set();
let tag = "";

/** @param {string} selector @param {ParentNode} [within] @returns {any} */
const one = (selector, within = document) => within.querySelector(selector);
/** @param {string} selector @param {ParentNode} [within] @returns {any[]} */
const all = (selector, within = document) => Array.from(within.querySelectorAll(selector));

const body = one("tbody");
let served = all("tr", body); // in the order of the server

/** Seconds in a unit that suits. @param {number} seconds */
function ago(seconds) {
  if (seconds < 5) return "now";
  if (seconds < 100) return `${Math.round(seconds)} s ago`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min ago`;
  return seconds < 172800 ? `${Math.round(seconds / 3600)} h ago` : `${Math.round(seconds / 86400)} d ago`;
}

function tellTimes() {
  for (const time of all("time", body)) {
    time.title = new Date(1000 * time.dataset.at).toLocaleString();
    time.textContent = ago(Date.now() / 1000 - time.dataset.at);
  }
}

/** The value to sort a row by. @param {HTMLElement} row */
function key(row) {
  const text = /** @type {HTMLElement} */ (row.children[chosen.column + 1]).dataset.key;
  if (text === undefined) return undefined;
  return text === "" || isNaN(Number(text)) ? text.toLowerCase() : Number(text);
}

/** Rows without a value come last, whichever way they are sorted. @param {any} a @param {any} b */
function compare(a, b) {
  if (a === undefined || b === undefined) return Number(a === undefined) - Number(b === undefined);
  const order = typeof a === typeof b && typeof a === "number" ? a - b : String(a).localeCompare(String(b), "en", { numeric: true });
  return chosen.down ? -order : order;
}

/** Put the rows in order and hide those that the filter leaves out. */
function arrange() {
  const rows = chosen.column < 0 ? served : served.map((row) => ({ row, key: key(row) })).sort((a, b) => compare(a.key, b.key)).map(({ row }) => row);
  rows.forEach((row, i) => {
    if (body.children[i] !== row) body.insertBefore(row, body.children[i] || null);
    row.hidden = !row.textContent.toLowerCase().includes(chosen.filter.toLowerCase());
  });
  all("thead th").forEach((head, i) => {
    if (i === chosen.column) head.setAttribute("aria-sort", chosen.down ? "descending" : "ascending");
    else head.removeAttribute("aria-sort");
  });
  for (const box of all("input[name=run]", body)) box.checked = ticked.has(box.value);
  one("#compare").disabled = ticked.size < 2;
  one("#compare").textContent = ticked.size ? `Compare ${ticked.size} runs` : "Tick runs to compare";
  tellTimes();
  remember();
}

function remember() {
  try {
    sessionStorage.setItem(PLACE, JSON.stringify({ ...chosen, ticked: [...ticked] }));
  } catch {
    // storage may be switched off: then a page that is loaded anew begins anew
  }
}

function recall() {
  try {
    const { ticked: before, ...rest } = JSON.parse(sessionStorage.getItem(PLACE) || "{}");
    Object.assign(chosen, rest);
    for (const run of before || []) ticked.add(run);
  } catch {
    // as above
  }
}

/** Take over rows that are new or have changed; the others stay, and what has the focus keeps it. @param {Document} fresh */
function take(fresh) {
  const before = new Map(served.map((row) => [row.id, row]));
  const focused = /** @type {any} */ (document.activeElement);
  const place = focused && body.contains(focused) ? [focused.closest("tr").id, focused.tagName] : null;
  served = all("tbody tr", fresh).map((row) => {
    const old = before.get(row.id);
    before.delete(row.id);
    row.dataset.was = row.innerHTML;
    if (old && old.dataset.was === row.dataset.was) return old;
    if (old) old.replaceWith(row);
    return row;
  });
  for (const row of before.values()) row.remove();
  one("#count").textContent = one("#count", fresh).textContent;
  const boxes = new Set(served.flatMap((row) => all("input[name=run]", row).map((box) => box.value)));
  for (const run of ticked) if (!boxes.has(run)) ticked.delete(run);
  arrange();
  if (place) one(place[1], document.getElementById(place[0]) || body)?.focus();
}

async function look() {
  if (document.hidden) return;
  try {
    const answer = await fetch(location.pathname, { cache: "no-cache" });
    if (!answer.ok) throw new Error(answer.statusText);
    one("#lost").hidden = true;
    if (answer.headers.get("etag") === tag) {
      tellTimes();
      return;
    }
    tag = answer.headers.get("etag") || "";
    take(new DOMParser().parseFromString(await answer.text(), "text/html"));
  } catch {
    one("#lost").hidden = false;
  }
}

one("#theme").addEventListener("click", () => {
  const root = document.documentElement;
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
  try {
    localStorage.setItem("unlabeled-theme", root.dataset.theme);
  } catch {
    // kept until the page is closed
  }
});
recall();
for (const row of served) row.dataset.was = row.innerHTML;
one("#filter").value = chosen.filter;
one("#filter").addEventListener("input", (/** @type {any} */ event) => {
  chosen.filter = event.target.value;
  arrange();
});
one("form").addEventListener("keydown", (/** @type {any} */ event) => {
  if (event.key === "Enter" && event.target.id === "filter") event.preventDefault();
});
body.addEventListener("change", (/** @type {any} */ event) => {
  if (event.target.checked) ticked.add(event.target.value);
  else ticked.delete(event.target.value);
  arrange();
});
all("thead button").forEach((button, i) =>
  button.addEventListener("click", () => {
    if (chosen.column !== i) Object.assign(chosen, { column: i, down: false });
    else if (!chosen.down) chosen.down = true;
    else Object.assign(chosen, { column: -1, down: false });
    arrange();
  }),
);
document.addEventListener("visibilitychange", look);
arrange();
setInterval(look, EVERY);
