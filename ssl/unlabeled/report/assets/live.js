// Bring the page to life; read it anew while what it tells of goes on.

const KINDS = { chart: chart, matrix: matrix, map: (/** @type {HTMLElement} */ figure, /** @type {Plane} */ part) => atlases.push(new Atlas(figure, part)) };
/** @type {Atlas[]} */
let atlases = [];

/** Everything in the main part, once for each time that it is read. Parts that are in view are drawn one by one, so that
 * the first is seen soon; `atOnce` = together, so that what was seen before does not flicker. */
function enliven(atOnce = false) {
  sizes.forEach((observer) => observer.disconnect());
  charts.forEach(({ drawn }) => drawn.dispose());
  [charts, atlases, sizes] = [[], [], []];
  const parts = numbers();
  /** @type {HTMLElement[]} */
  const waiting = [];
  const next = () => {
    const figure = waiting.shift();
    if (figure) begin(figure, parts);
    if (waiting.length) requestAnimationFrame(next);
  };
  const seen = new IntersectionObserver((entries) => {
    const idle = !waiting.length;
    for (const { target, isIntersecting } of entries) {
      if (!isIntersecting) continue;
      seen.unobserve(target);
      waiting.push(/** @type {HTMLElement} */ (target));
    }
    if (idle) next();
  }, { rootMargin: "300px" });
  for (const figure of all("[data-numbers]")) {
    const box = figure.getBoundingClientRect();
    if (atOnce && box.bottom > 0 && box.top < innerHeight) begin(figure, parts);
    else seen.observe(figure);
  }
  all(".slides").forEach(slides);
  all("table.data").forEach((table, i) => sortable(table, i));
  all(".matrix").filter((figure) => figure.querySelector(".heat")).forEach(heat);
  all("details").forEach((one) => one.toggleAttribute("open", state.opened.includes(titleOf(one))));
  all("img").forEach((image) => image.addEventListener("error", () => image.replaceWith(make("p", { className: "missing" }, `${image.getAttribute("alt")}: the image is broken.`))));
  headings();
}

/** Draw a part as it comes into view. @param {HTMLElement} figure @param {any[]} parts */
function begin(figure, parts) {
  for (const [kind, start] of Object.entries(KINDS)) {
    if (figure.classList.contains(kind)) start(figure, parts[Number(figure.dataset.numbers)]);
  }
}

/** Mark the section that is read in the navigation. */
function headings() {
  const links = new Map(all("nav a").map((link) => [link.getAttribute("href")?.slice(1), link]));
  const seen = new IntersectionObserver((entries) => {
    for (const { target, isIntersecting } of entries) if (isIntersecting) mark(target.id);
  }, { rootMargin: "-15% 0px -80% 0px" });
  /** @param {string} id */
  const mark = (id) => links.forEach((link, name) => {
    if (name === id) link.setAttribute("aria-current", "true");
    else link.removeAttribute("aria-current");
  });
  all("main > section").forEach((section) => seen.observe(section));
}

/** Whether the reader is in the middle of something. */
function busy() {
  const typing = document.activeElement instanceof HTMLInputElement && document.activeElement.type === "search";
  return document.hidden || typing || one("#large").hasAttribute("open") || document.querySelector(":active:not(html, body)") !== null;
}

let before = ""; // the page as it was read last

/** Read the page anew: over HTTP its parts are replaced, from disk it is loaded again. */
async function renew() {
  const seconds = Number(document.body.dataset.refresh);
  if (!seconds) return;
  if (!busy()) {
    remember();
    if (location.protocol === "file:") return location.reload();
    await replace().catch(() => {}); // the server may be away for a while
  }
  setTimeout(renew, 1000 * Number(document.body.dataset.refresh || 0) || 1000 * seconds);
}

async function replace() {
  const answer = await fetch(location.href, { cache: "no-store" });
  const text = await answer.text();
  if (!answer.ok || text === before) return;
  before = text;
  const page = new DOMParser().parseFromString(text, "text/html");
  for (const part of ["main", "nav", ".top h1"]) one(part).replaceChildren(...one(part, page).childNodes);
  document.title = page.title;
  document.body.dataset.refresh = page.body.dataset.refresh || "";
  scrollTo({ top: state.top, behavior: "instant" });
  enliven(true);
  scrollTo({ top: state.top, behavior: "instant" });
}

one("#theme").onclick = () => {
  document.documentElement.dataset.theme = dark() ? "light" : "dark";
  try {
    localStorage.setItem("unlabeled-theme", document.documentElement.dataset.theme);
  } catch {
    // kept until the page is closed
  }
  repaint();
};
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", repaint);

/** Colours of what programs drew, after the theme changed. */
function repaint() {
  colours.clear();
  charts.forEach((one) => (draw(one), readout(one, null)));
  atlases.forEach((one) => one.paint());
}

document.addEventListener("click", (event) => {
  const shown = /** @type {HTMLElement} */ (event.target);
  if (shown.matches(".gallery .thumb")) enlarge(shown, shown.nextElementSibling?.textContent || "");
  else if (shown instanceof HTMLImageElement && shown.closest("main")) enlarge(shown, shown.alt);
});
addEventListener("pagehide", remember);

recall();
enliven();
const [entry] = /** @type {PerformanceNavigationTiming[]} */ (performance.getEntriesByType("navigation"));
if (entry?.type === "reload") scrollTo({ top: state.top, behavior: "instant" });
if (document.body.dataset.refresh) setTimeout(renew, 1000 * Number(document.body.dataset.refresh));
