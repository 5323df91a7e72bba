// The map: images as points of a plane, as thumbnails where there is room for them.

const SCREEN = { dot: 3.2, thumb: 72, seen: 240, near: 12 }; // pixels; most thumbnails at a time; pixels around a pointer
const NEAREST = 8; // images that are shown beside a chosen one

/**
 * A view of the plane: the place in the middle, and pixels per unit.
 * @typedef {{x: number, y: number, scale: number}} View
 */

class Atlas {
  /** @param {HTMLElement} figure @param {Plane} part */
  constructor(figure, part) {
    this.part = part;
    this.kept = (state.planes[part.title] ||= {});
    this.sheet = figure.dataset.sheet || "";
    this.canvas = make("canvas", { tabIndex: 0, role: "application" });
    this.canvas.setAttribute("aria-label", `${part.title}. Keys: arrows move, plus and minus zoom, 0 shows all, Enter chooses.`);
    this.canvas.title = "Drag to move; the wheel zooms after a click";
    this.tip = make("div", { className: "tip", hidden: true });
    this.legend = make("div", { className: "classes" });
    this.chosen = make("div", { className: "chosen", "aria-live": "polite" });
    this.search = make("input", { type: "search", placeholder: "Search by name", "aria-label": "Search by name", value: this.kept.query || "" });
    this.found = make("output");
    const names = Object.keys(part.colours);
    this.select = make("select", { "aria-label": "Colour by" }, ...names.map((name) => make("option", { value: name }, `colour: ${name}`)));
    this.select.value = this.kept.colour && names.includes(this.kept.colour) ? this.kept.colour : names[0] || "";
    this.select.hidden = !names.length;
    const tools = make("div", { className: "bar" }, this.select, this.search, this.found, make("div", { className: "tools" },
      button("+", "Zoom in", () => this.zoom(1.6)), button("−", "Zoom out", () => this.zoom(1 / 1.6)), button("↺", "Show all", () => this.whole())));
    this.box = make("div", { className: "plane" }, this.canvas, this.tip);
    one(".drawn", figure).replaceChildren(tools, make("div", { className: "beside" }, this.box, this.legend), this.chosen);
    this.select.onchange = () => this.paint((this.kept.only = undefined));
    this.search.oninput = () => this.paint();
    this.search.addEventListener("change", () => {
      if (this.search.value) this.choose(this.part.names.findIndex((_, i) => this.matches(i)));
    });
    const [x, y, scale] = this.kept.view || [];
    this.view = scale ? { x, y, scale } : this.all();
    this.pointing();
    /** @type {HTMLImageElement|null} */
    this.image = null;
    this.load();
    sized(this.box, () => this.resize());
    this.paint();
    this.choose(part.names.indexOf(this.kept.chosen || ""));
  }

  /** The thumbnails, from the style of their class. */
  load() {
    if (!this.sheet) return;
    const image = new Image();
    const probe = make("i", { className: this.sheet });
    this.box.append(probe);
    image.onload = () => ((this.image = image), this.draw());
    image.src = getComputedStyle(probe).backgroundImage.replace(/^url\("?|"?\)$/g, "");
    probe.remove();
  }

  resize() {
    const { clientWidth: width, clientHeight: height } = this.box;
    const dense = devicePixelRatio || 1;
    Object.assign(this.canvas, { width: width * dense, height: height * dense });
    this.draw();
  }

  /** The view of all points. @returns {View} */
  all() {
    let [left, right, bottom, top] = [Infinity, -Infinity, Infinity, -Infinity];
    for (const [x, y] of this.part.points) {
      [left, right, bottom, top] = [Math.min(left, x), Math.max(right, x), Math.min(bottom, y), Math.max(top, y)];
    }
    const room = Math.min(this.box.clientWidth / (right - left || 1), this.box.clientHeight / (top - bottom || 1));
    return { x: (left + right) / 2, y: (bottom + top) / 2, scale: 0.86 * room };
  }

  whole() {
    this.view = this.all();
    this.moved();
  }

  /** @param {number} factor @param {number} [px] @param {number} [py] the place that stays */
  zoom(factor, px = this.box.clientWidth / 2, py = this.box.clientHeight / 2) {
    const [x, y] = this.unit(px, py);
    this.view.scale *= factor;
    const [x2, y2] = this.unit(px, py);
    this.view.x += x - x2;
    this.view.y += y - y2;
    this.moved();
  }

  /** @param {number} dx @param {number} dy pixels */
  pan(dx, dy) {
    this.view.x -= dx / this.view.scale;
    this.view.y += dy / this.view.scale;
    this.moved();
  }

  moved() {
    this.kept.view = [this.view.x, this.view.y, this.view.scale];
    this.draw();
  }

  /** From the plane to pixels. @param {number} i */
  pixel(i) {
    const [x, y] = this.part.points[i];
    return [this.box.clientWidth / 2 + (x - this.view.x) * this.view.scale, this.box.clientHeight / 2 - (y - this.view.y) * this.view.scale];
  }

  /** From pixels to the plane. @param {number} px @param {number} py */
  unit(px, py) {
    return [this.view.x + (px - this.box.clientWidth / 2) / this.view.scale, this.view.y - (py - this.box.clientHeight / 2) / this.view.scale];
  }

  /** Colours by the chosen colouring, and their legend. @param {any} [_] */
  paint(_) {
    const name = this.select.value;
    [this.kept.colour, this.kept.query] = [name, this.search.value];
    const values = this.part.colours[name] || [];
    this.values = values;
    if (!values.length) this.shades = this.part.points.map(() => colour("series-0"));
    else if (values.every((value) => value === null || typeof value === "number")) this.gradient(/** @type {number[]} */ (values));
    else this.classes(values.map(String));
    const query = this.search.value.trim();
    const hits = query ? this.part.names.filter((_, i) => this.matches(i)).length : 0;
    this.found.textContent = query ? `${hits.toLocaleString("en")} found` : "";
    this.draw();
  }

  /** @param {string[]} values */
  classes(values) {
    /** @type {Map<string, number>} */
    const counts = new Map();
    for (const value of values) counts.set(value, (counts.get(value) || 0) + 1);
    const classes = [...counts.keys()].sort((a, b) => a.localeCompare(b, "en", { numeric: true }));
    const colours = palette(classes.length);
    const shades = new Map(classes.map((one, i) => [one, colours[i]]));
    this.shades = values.map((value) => shades.get(value) || "");
    this.legend.replaceChildren(...classes.map((one) => {
      const swatch = make("i");
      swatch.style.background = shades.get(one) || "";
      const key = make("button", { type: "button", className: "key", "aria-pressed": this.kept.only === one }, swatch,
        make("span", {}, one), make("b", {}, (counts.get(one) || 0).toLocaleString("en")));
      key.onclick = () => {
        this.kept.only = this.kept.only === one ? undefined : one;
        for (const other of all(".key", this.legend)) other.setAttribute("aria-pressed", String(other === key && this.kept.only === one));
        this.draw();
      };
      return key;
    }));
  }

  /** @param {number[]} values */
  gradient(values) {
    const known = values.filter((value) => value !== null);
    const [low, high] = known.reduce(([low, high], value) => [Math.min(low, value), Math.max(high, value)], [Infinity, -Infinity]);
    const stops = [0, 1, 2, 3].map((i) => rgb(colour(`scale-${i}`)));
    const bins = Array.from({ length: 33 }, (_, bin) => {
      const at = (bin / 32) * 3;
      const [from, to] = [stops[Math.min(2, Math.floor(at))], stops[Math.min(2, Math.floor(at)) + 1]];
      return `rgb(${[0, 1, 2].map((i) => Math.round(from[i] + (to[i] - from[i]) * (at - Math.min(2, Math.floor(at)))))})`;
    });
    this.shades = values.map((value) => (value === null ? colour("rule") : bins[Math.round(((value - low) / (high - low || 1)) * 32)]));
    const bar = make("div", { className: "gradient" });
    bar.style.background = `linear-gradient(to right, ${bins.join(",")})`;
    this.legend.replaceChildren(make("div", { className: "scale" }, bar, make("span", {}, told(low)), make("span", {}, told(high))));
  }

  /** Whether a point is meant by the search and the chosen class. @param {number} i */
  matches(i) {
    const query = this.search.value.trim().toLowerCase();
    return (!query || this.part.names[i].toLowerCase().includes(query)) && (this.kept.only === undefined || String(this.values?.[i]) === this.kept.only);
  }

  draw() {
    cancelAnimationFrame(this.waiting || 0);
    this.waiting = requestAnimationFrame(() => this.drawn());
  }

  drawn() {
    const context = /** @type {CanvasRenderingContext2D} */ (this.canvas.getContext("2d"));
    const { clientWidth: width, clientHeight: height } = this.box;
    const dense = devicePixelRatio || 1;
    context.setTransform(dense, 0, 0, dense, 0, 0);
    context.clearRect(0, 0, width, height);
    /** @type {number[]} */
    const seen = [];
    this.part.points.forEach((_, i) => {
      const [x, y] = this.pixel(i);
      if (x > -40 && y > -40 && x < width + 40 && y < height + 40) seen.push(i);
    });
    const meant = seen.map((i) => this.matches(i));
    const thumbs = this.image && seen.length <= SCREEN.seen;
    const side = Math.min(SCREEN.thumb, Math.max(18, 0.55 * Math.sqrt((width * height) / Math.max(1, seen.length))));
    for (const pass of [false, true]) {
      context.globalAlpha = pass ? 0.9 : 0.12;
      seen.forEach((i, at) => {
        if (meant[at] === pass) thumbs ? this.thumb(context, i, side) : this.dot(context, i);
      });
    }
    context.globalAlpha = 1;
    const chosen = this.part.names.indexOf(this.kept.chosen || "");
    if (chosen >= 0) this.ring(context, chosen, thumbs ? side * 0.75 : 9);
  }

  /** @param {CanvasRenderingContext2D} context @param {number} i */
  dot(context, i) {
    const [x, y] = this.pixel(i);
    const radius = this.part.points.length > 2000 ? 0.7 * SCREEN.dot : SCREEN.dot;
    context.fillStyle = this.shades?.[i] || "";
    context.beginPath();
    context.arc(x, y, radius, 0, 7);
    context.fill();
  }

  /** @param {CanvasRenderingContext2D} context @param {number} i @param {number} side */
  thumb(context, i, side) {
    const [x, y] = this.pixel(i);
    const { side: from, columns } = this.part.sheet;
    context.fillStyle = this.shades?.[i] || "";
    context.fillRect(x - side / 2 - 2, y - side / 2 - 2, side + 4, side + 4);
    context.drawImage(/** @type {HTMLImageElement} */ (this.image), (i % columns) * from, Math.floor(i / columns) * from, from, from,
      x - side / 2, y - side / 2, side, side);
  }

  /** @param {CanvasRenderingContext2D} context @param {number} i @param {number} radius */
  ring(context, i, radius) {
    const [x, y] = this.pixel(i);
    context.strokeStyle = colour("text");
    context.lineWidth = 2.5;
    context.beginPath();
    context.arc(x, y, radius, 0, 7);
    context.stroke();
  }

  /** The nearest point that is meant; -1 = none near. @param {number} px @param {number} py @param {number} limit */
  at(px, py, limit) {
    let [best, least] = [-1, limit * limit];
    for (let i = 0; i < this.part.points.length; i++) {
      const [x, y] = this.pixel(i);
      const distance = (x - px) ** 2 + (y - py) ** 2;
      if (distance < least && this.matches(i)) [best, least] = [i, distance];
    }
    return best;
  }

  /** A thumbnail, or nothing where there is no sheet. @param {number} i */
  picture(i) {
    const { columns, images } = this.part.sheet;
    const rows = Math.ceil(images / columns);
    const shown = make("div", { className: `thumb ${this.sheet}` });
    const [x, y] = [(i % columns) / Math.max(1, columns - 1), Math.floor(i / columns) / Math.max(1, rows - 1)];
    shown.style.backgroundPosition = `${100 * x}% ${100 * y}%`;
    return shown;
  }

  /** What is known of an image. @param {number} i */
  known(i) {
    return Object.entries(this.part.colours).map(([name, values]) => {
      const value = values[i];
      return `${name}: ${typeof value === "string" ? value : told(value)}`;
    }).join(" · ");
  }

  /** @param {number} i @param {number} px @param {number} py */
  hover(i, px, py) {
    this.tip.hidden = i < 0;
    this.canvas.style.cursor = i < 0 ? "grab" : "pointer";
    if (i < 0) return;
    this.tip.replaceChildren(this.picture(i), make("b", {}, this.part.names[i]), make("span", {}, this.known(i)));
    const left = Math.min(px + 14, this.box.clientWidth - this.tip.offsetWidth - 4);
    const top = py + 14 + this.tip.offsetHeight > this.box.clientHeight ? py - this.tip.offsetHeight - 10 : py + 14;
    Object.assign(this.tip.style, { left: `${Math.max(4, left)}px`, top: `${Math.max(4, top)}px` });
  }

  /** Keep a point, and show those nearest on the plane. @param {number} i */
  choose(i) {
    this.kept.chosen = i < 0 ? undefined : this.part.names[i];
    this.chosen.replaceChildren();
    this.draw();
    if (i < 0) return;
    const [x, y] = this.part.points[i];
    const distances = this.part.points.map(([x2, y2]) => (x2 - x) ** 2 + (y2 - y) ** 2);
    const others = distances.map((_, at) => at).filter((at) => at !== i).sort((a, b) => distances[a] - distances[b]).slice(0, NEAREST);
    /** @param {number} at */
    const item = (at) => {
      const press = make("button", { type: "button", className: "thumb", "aria-label": `Choose ${this.part.names[at]}` });
      const shown = this.picture(at);
      Object.assign(press, { className: shown.className, onclick: () => this.choose(at) });
      press.style.cssText = shown.style.cssText;
      return make("li", {}, press, make("span", {}, this.part.names[at]));
    };
    const text = make("p", {}, make("b", {}, this.part.names[i]), ` ${this.known(i)}`);
    this.chosen.append(text, make("ul", { className: "thumbs" }, item(i)), make("p", {}, "Nearest on the map:"),
      make("ul", { className: "thumbs" }, ...others.map(item)), button("Forget", "Choose none", () => this.choose(-1)));
  }

  pointing() {
    const canvas = this.canvas;
    /** @type {Map<number, [number, number]>} */
    const down = new Map();
    let travelled = 0;
    /** @param {MouseEvent} event @returns {[number, number]} */
    const at = (event) => {
      const box = canvas.getBoundingClientRect();
      return [event.clientX - box.left, event.clientY - box.top];
    };
    canvas.onpointerdown = (event) => {
      down.set(event.pointerId, at(event));
      canvas.setPointerCapture(event.pointerId);
      travelled = 0;
    };
    canvas.onpointermove = (event) => {
      const [x, y] = at(event);
      const before = down.get(event.pointerId);
      if (!before) return this.hover(this.at(x, y, SCREEN.near), x, y);
      const other = [...down].find(([id]) => id !== event.pointerId)?.[1];
      travelled += Math.abs(x - before[0]) + Math.abs(y - before[1]);
      down.set(event.pointerId, [x, y]);
      if (other) {
        const apart = Math.hypot(x - other[0], y - other[1]) / Math.max(1, Math.hypot(before[0] - other[0], before[1] - other[1]));
        this.zoom(apart, (x + other[0]) / 2, (y + other[1]) / 2);
      } else if (travelled > 3) this.pan(x - before[0], y - before[1]);
    };
    canvas.onpointerup = (event) => {
      const [x, y] = at(event);
      down.delete(event.pointerId);
      if (travelled > 3) return;
      const i = this.at(x, y, event.pointerType === "touch" ? 2 * SCREEN.near : SCREEN.near);
      this.choose(i);
      if (event.pointerType === "touch") this.hover(i, x, y);
    };
    canvas.addEventListener("pointercancel", (event) => down.delete(event.pointerId));
    canvas.onpointerleave = () => this.hover(-1, 0, 0);
    canvas.addEventListener("wheel", (event) => {
      if (!(event.ctrlKey || document.activeElement === canvas)) return; // else the page scrolls
      event.preventDefault();
      this.zoom(event.deltaY < 0 ? 1.25 : 0.8, ...at(event));
    }, { passive: false });
    keys(canvas, {
      "+": () => this.zoom(1.6), "=": () => this.zoom(1.6), "-": () => this.zoom(1 / 1.6), 0: () => this.whole(),
      ArrowLeft: () => this.pan(60, 0), ArrowRight: () => this.pan(-60, 0), ArrowUp: () => this.pan(0, 60), ArrowDown: () => this.pan(0, -60),
      Enter: () => this.choose(this.at(this.box.clientWidth / 2, this.box.clientHeight / 2, Infinity)),
    });
  }
}
