// Images over time, thumbnails, matrices, and tables that can be sorted.

/** @param {HTMLElement} figure */
function slides(figure) {
  const frames = all(".frame", figure);
  if (frames.length < 2) return;
  const title = titleOf(figure);
  const names = frames.map((frame) => frame.dataset.name || "");
  const slider = make("input", { type: "range", min: 0, max: frames.length - 1, step: 1, "aria-label": `${title}: which image` });
  const name = make("output", {});
  /** @param {number} i */
  const show = (i) => {
    frames.forEach((frame, at) => (frame.hidden = at !== i));
    slider.value = String(i);
    name.textContent = names[i];
    slider.setAttribute("aria-valuetext", names[i]);
    if (i === frames.length - 1) delete state.frames[title]; // the last one stays the last one
    else state.frames[title] = names[i];
  };
  /** @param {number} by */
  const move = (by) => show(Math.max(0, Math.min(frames.length - 1, Number(slider.value) + by)));
  slider.oninput = () => show(Number(slider.value));
  const bar = make("div", { className: "slider" }, button("‹", "Previous image", () => move(-1)), slider,
    button("›", "Next image", () => move(1)), name);
  one("figcaption", figure).after(bar);
  const kept = names.indexOf(state.frames[title]);
  show(kept < 0 ? frames.length - 1 : kept);
}

/** Show a thumbnail or an image large. @param {HTMLElement} shown @param {string} text */
function enlarge(shown, text) {
  const dialog = /** @type {HTMLDialogElement} */ (one("#large"));
  const copy = /** @type {HTMLElement} */ (shown.cloneNode());
  const image = copy instanceof HTMLImageElement ? copy : make("div", { className: copy.className });
  image.style.cssText = copy.style.cssText;
  dialog.replaceChildren(image, make("p", {}, text), button("Close", "Close", () => dialog.close()));
  dialog.onclick = (event) => {
    if (event.target === dialog) dialog.close();
  };
  dialog.showModal();
}

/** What a cell of a table of counts says, below the table. @param {HTMLElement} figure */
function heat(figure) {
  const output = one(".told", figure);
  figure.addEventListener("pointerover", (event) => {
    const cell = /** @type {HTMLElement} */ (event.target).closest("td");
    output.textContent = cell?.dataset.told || "";
  });
}

/** A matrix of many classes: a pixel for each pair. @param {HTMLElement} figure @param {Matrix} part */
function matrix(figure, part) {
  const size = part.names.length;
  const canvas = make("canvas", { width: size, height: size, role: "img", "aria-label": part.title });
  const output = make("output", { className: "told" });
  const [from, to] = ["surface", "heat"].map((name) => rgb(colour(name)));
  const context = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
  const image = context.createImageData(size, size);
  part.counts.forEach((counts, row) => {
    const total = Math.max(1, counts.reduce((sum, count) => sum + count, 0));
    counts.forEach((count, column) => {
      const share = Math.sqrt(count / total); // so that few are seen too
      const mixed = [0, 1, 2].map((i) => from[i] + (to[i] - from[i]) * share);
      image.data.set([...mixed, 255], 4 * (row * size + column));
    });
  });
  context.putImageData(image, 0, 0);
  canvas.onpointermove = (event) => {
    const box = canvas.getBoundingClientRect();
    const [column, row] = [event.clientX - box.left, event.clientY - box.top].map((at) => Math.floor((at / box.width) * size));
    const counts = part.counts[row];
    if (!counts || column < 0 || column >= size) return;
    const total = counts.reduce((sum, count) => sum + count, 0);
    output.textContent = `${part.rows} ${part.names[row]}, ${part.columns} ${part.names[column]}: ${counts[column]} of ${total}`;
  };
  one(".drawn", figure).replaceChildren(canvas, output);
}

/** @param {string} text such as rgb(1, 2, 3) */
function rgb(text) {
  return (text.match(/[\d.]+/g) || []).slice(0, 3).map(Number);
}

/** Sort by a column at a press of its head. @param {HTMLElement} table */
function sortable(table, place = 0) {
  const body = one("tbody", table);
  const key = `${place}:${all("th", table).map((head) => head.textContent).join("|")}`;
  if (body.children.length < 3) return;
  /** @param {number} column @param {boolean} falling */
  const sort = (column, falling) => {
    const rows = Array.from(body.children);
    const texts = new Map(rows.map((row) => [row, row.children[column].textContent || ""]));
    rows.sort((a, b) => (falling ? -1 : 1) * order(texts.get(a) || "", texts.get(b) || ""));
    body.append(...rows);
    heads.forEach((head, i) => head.setAttribute("aria-sort", i !== column ? "none" : falling ? "descending" : "ascending"));
    state.sorted[key] = [column, falling];
  };
  const heads = all("th", table);
  heads.forEach((head, i) => {
    if (!head.textContent) return;
    const press = button("", `Sort by ${head.textContent}`, () => sort(i, head.getAttribute("aria-sort") !== "descending"));
    press.append(...head.childNodes);
    head.append(press);
  });
  const kept = state.sorted[key];
  if (kept && heads[kept[0]]) sort(...kept);
}

/** Numbers by their size, before words. @param {string} a @param {string} b */
function order(a, b) {
  const [x, y] = [a, b].map((text) => parseFloat(text.replace(/,/g, "")));
  if (Number.isNaN(x) || Number.isNaN(y)) return Number(Number.isNaN(x)) - Number(Number.isNaN(y)) || a.localeCompare(b);
  return x - y;
}
