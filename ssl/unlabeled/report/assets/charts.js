// Charts. ECharts draws them; zoom, crosshair and legend are shared by all charts over the same axis.

const echarts = /** @type {any} */ (globalThis).echarts;

/** @typedef {{part: Chart, figure: HTMLElement, drawn: any, cross: HTMLElement, legend: HTMLElement}} Drawn */
/** @type {Drawn[]} */
let charts = [];

/** @param {HTMLElement} figure @param {Chart} part */
function chart(figure, part) {
  const place = one(".drawn", figure);
  const cross = make("div", { className: "cross", hidden: true });
  const legend = make("div", { className: "legend" });
  /** @type {Drawn} */
  const self = { part, figure, cross, legend, drawn: echarts.init(place, null, { renderer: "canvas" }) };
  place.before(legend);
  place.append(cross);
  if (part.kind !== "bars" || part.lines.some((line) => line.x.length > 1)) controls(self, place);
  figure.classList.toggle("wide", state.wide.includes(part.title));
  charts.push(self);
  draw(self);
  readout(self, null);
  sized(place, () => {
    if (self.drawn.getWidth() !== place.clientWidth || self.drawn.getHeight() !== place.clientHeight) self.drawn.resize();
  });
}

/** @param {Drawn} self */
function draw(self) {
  const { part, drawn } = self;
  const [text, faint, healthy] = ["muted", "rule", "healthy"].map(colour);
  const [from, to] = state.zooms[part.x] || extent(part);
  const { low, high, step } = heights(part, from, to);
  const shades = palette(part.lines.length);
  const axis = { axisLine: { lineStyle: { color: faint } }, axisLabel: { color: text, hideOverlap: true, fontSize: 11 } };
  const series = part.lines.flatMap((line, i) => (state.hidden[line.name] ? [] : lines(part, line, shades[i], i)));
  drawn.setOption(
    {
      animation: false,
      grid: { left: 4, right: 12, top: part.y ? 26 : 10, bottom: part.x ? 22 : 4, containLabel: true },
      xAxis: {
        ...axis, type: "value", min: from, max: to, name: part.x, nameLocation: "middle", nameGap: 26,
        nameTextStyle: { color: text, fontSize: 11 }, splitLine: { show: false }, splitNumber: 4, interval: part.names.length ? 1 : undefined,
        axisLabel: {
          ...axis.axisLabel, showMinLabel: part.kind === "lines", showMaxLabel: part.kind === "lines",
          formatter: (/** @type {number} */ at) => place(part, at),
        },
      },
      yAxis: {
        ...axis, type: "value", min: low, max: high, name: part.y, nameTextStyle: { color: text, fontSize: 11, align: "left" },
        nameGap: 10, splitLine: { lineStyle: { color: faint } }, interval: step, axisLabel: { ...axis.axisLabel, formatter: short },
      },
      series: [...series, around(part, healthy, low, high)],
    },
    { replaceMerge: ["series"] },
  );
}

/** A place of the x axis. @param {Chart} part @param {number} at */
function place(part, at) {
  return part.names.length ? (part.names[at] ?? "") : short(at);
}

/** The series of one line: between the smallest and the largest values, and the line.
 * @param {Chart} part @param {Line} line @param {string} shade @param {number} i @returns {object[]} */
function lines(part, line, shade, i) {
  const type = { lines: "line", bars: "bar", dots: "scatter" }[part.kind];
  const few = line.x.length <= 30;
  const main = {
    type, name: line.name, data: line.x.map((x, at) => [x, line.y[at]]), itemStyle: { color: shade }, silent: true,
    lineStyle: { width: 1.75, color: shade }, symbol: "circle", showSymbol: few || lonely(line), z: 3,
    symbolSize: part.kind === "dots" ? 7 : 5, barMaxWidth: 28,
  };
  if (!line.low.length) return [main];
  if (part.kind === "dots") {
    const ends = line.x.flatMap((x, at) => [[x, line.low[at]], [x, line.high[at]], [x, null]]);
    return [{ type: "line", name: line.name, data: ends, symbol: "none", silent: true, lineStyle: { width: 1.5, color: shade }, z: 2 }, main];
  }
  const bare = { type: "line", stack: `envelope-${i}`, stackStrategy: "all", symbol: "none", silent: true, lineStyle: { width: 0 }, z: 1 };
  const spread = line.x.map((_, at) => difference(line.high[at], line.low[at]));
  return [
    { ...bare, name: line.name, data: line.x.map((x, at) => [x, line.low[at]]) },
    { ...bare, name: line.name, data: line.x.map((x, at) => [x, spread[at]]), areaStyle: { color: shade, opacity: 0.18 } },
    main,
  ];
}

/** @param {number|null} high @param {number|null} low */
function difference(high, low) {
  return high === null || low === null ? null : high - low;
}

/** Whether a line has a value without neighbours, which only a dot shows. @param {Line} line */
function lonely(line) {
  return line.y.some((y, i) => y !== null && (line.y[i - 1] ?? null) === null && (line.y[i + 1] ?? null) === null);
}

/** The healthy band and the marks, as an empty series. @param {Chart} part @param {string} healthy
 * @param {number|undefined} bottom @param {number|undefined} top */
function around(part, healthy, bottom, top) {
  const band = part.band;
  const area = band && [[{ yAxis: band.low ?? bottom ?? "min" }, { yAxis: band.high ?? top ?? "max" }]];
  return {
    type: "line", data: [], silent: true,
    markArea: area ? { silent: true, itemStyle: { color: healthy }, data: area } : undefined,
    markLine: {
      silent: true, symbol: "none", label: { show: false },
      data: part.marks.map((mark) => ({ xAxis: mark.x, lineStyle: { color: colour(`tone-${mark.tone}`), type: "dashed", width: 1.5 } })),
    },
  };
}

/** @param {Chart} part @returns {[number, number]} */
function extent(part) {
  const xs = part.lines.flatMap((line) => [line.x[0], line.x[line.x.length - 1]]).filter((x) => x !== undefined);
  const [from, to] = xs.length ? [Math.min(...xs), Math.max(...xs)] : [0, 1];
  const most = Math.max(1, ...part.lines.map((line) => line.x.length));
  const edge = { lines: 0, dots: (to - from) / 30, bars: (to - from) / Math.max(1, most - 1) / 2 || 0.5 }[part.kind]; // half a bar
  return from === to && !edge ? [from - 1, to + 1] : [from - edge, to + edge];
}

/** The range of the values between two places, and of their neighbours: round numbers around it, and between them.
 * @param {Chart} part @param {number} from @param {number} to */
function heights(part, from, to) {
  let [low, high] = part.kind === "bars" ? [0, 0] : [Infinity, -Infinity];
  for (const line of part.lines) {
    if (state.hidden[line.name]) continue;
    for (let i = 0; i < line.x.length; i++) {
      if ((line.x[i + 1] ?? line.x[i]) < from || (line.x[i - 1] ?? line.x[i]) > to) continue;
      for (const y of [line.y[i], line.low[i] ?? null, line.high[i] ?? null]) {
        if (y !== null) [low, high] = [Math.min(low, y), Math.max(high, y)];
      }
    }
  }
  if (low > high) return { low: 0, high: 1, step: 0.25 };
  if (low === high) [low, high] = low === 0 ? [0, 1] : [low - Math.abs(low) / 10, high + Math.abs(low) / 10];
  const raw = (high - low) / 4;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = power * ([1, 2, 2.5, 5].find((times) => times * power >= raw) || 10);
  return { low: Math.floor(low / step) * step, high: Math.ceil(high / step) * step, step };
}

const compact = Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 4 });

/** A number on an axis. @param {number} value */
function short(value) {
  const size = Math.abs(value);
  if (size >= 1e4) return compact.format(value);
  return size !== 0 && size < 1e-3 ? value.toExponential(1).replace(".0", "") : String(Number(value.toPrecision(6)));
}

/** Those over the same axis. @param {Drawn} self */
function fellows(self) {
  return charts.filter((other) => other.part.x === self.part.x);
}

/** The values at a place of the axis, the newest without one. @param {Drawn} self @param {number|null} x */
function readout(self, x) {
  const { part, legend } = self;
  const shades = palette(part.lines.length);
  const near = x !== null && part.marks.find((mark) => Math.abs(pixel(self, mark.x) - pixel(self, x)) < 5);
  const items = part.lines.map((line, i) => {
    const at = x === null ? newest(line) : nearest(line.x, x);
    const swatch = make("i");
    swatch.style.background = shades[i];
    const value = make("b", {}, told(line.y[at]));
    if (part.lines.length === 1) return make("span", { className: "key" }, swatch, value);
    const key = make("button", { type: "button", className: "key", "aria-pressed": !state.hidden[line.name] }, swatch,
      make("span", {}, line.name), value);
    key.onclick = () => hide(line.name, i);
    return key;
  });
  const focused = legend.contains(document.activeElement) ? Array.from(legend.children).indexOf(/** @type {any} */ (document.activeElement)) : -1;
  const at = x === null ? "" : part.names[Math.round(x)] ?? told(Math.round(x * 100) / 100);
  const where = x === null ? [] : [make("span", { className: "where" }, `${part.x} ${at}`)];
  legend.replaceChildren(...items, ...where, ...(near ? [make("span", { className: `tone ${near.tone}` }, near.text)] : []));
  if (focused >= 0) /** @type {HTMLElement} */ (legend.children[focused])?.focus();
}

/** @param {Line} line */
function newest(line) {
  for (let i = line.y.length - 1; i > 0; i--) if (line.y[i] !== null) return i;
  return 0;
}

/** The index of the value of an ascending list that is nearest. @param {number[]} xs @param {number} x */
function nearest(xs, x) {
  let [low, high] = [0, xs.length - 1];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (xs[middle] < x) low = middle + 1;
    else high = middle;
  }
  return low > 0 && x - xs[low - 1] < xs[low] - x ? low - 1 : low;
}

/** @param {string} name @param {number} place of its button */
function hide(name, place) {
  state.hidden[name] = !state.hidden[name];
  const focused = document.activeElement?.closest("figure");
  for (const other of charts.filter(({ part }) => part.lines.some((line) => line.name === name))) {
    draw(other);
    readout(other, null);
    if (other.figure === focused) /** @type {HTMLElement} */ (other.legend.children[place]).focus();
  }
}

/** @param {Drawn} self @param {number} x */
function pixel(self, x) {
  return self.drawn.convertToPixel({ xAxisIndex: 0 }, x);
}

/** Show part of an axis in all charts over it. @param {Drawn} self @param {[number, number]|null} range */
function zoom(self, range) {
  const [least, most] = extent(self.part);
  const whole = range === null || (range[0] <= least && range[1] >= most);
  if (whole) delete state.zooms[self.part.x];
  else state.zooms[self.part.x] = /** @type {[number, number]} */ (range);
  fellows(self).forEach(draw);
}

/** Make the part of the axis larger or smaller, around a place of it. @param {Drawn} self @param {number} factor
 * @param {number} [around] */
function scale(self, factor, around) {
  const [from, to] = state.zooms[self.part.x] || extent(self.part);
  const centre = around ?? (from + to) / 2;
  zoom(self, within(self, centre - (centre - from) * factor, centre + (to - centre) * factor));
}

/** @param {Drawn} self @param {number} share of what is seen */
function pan(self, share) {
  const [from, to] = state.zooms[self.part.x] || extent(self.part);
  const [least, most] = extent(self.part);
  const shift = Math.max(least - from, Math.min(most - to, (to - from) * share));
  zoom(self, [from + shift, to + shift]);
}

/** @param {Drawn} self @param {number} from @param {number} to @returns {[number, number]} */
function within(self, from, to) {
  const [least, most] = extent(self.part);
  return [Math.max(least, from), Math.min(most, to)];
}

/** @param {Drawn} self @param {HTMLElement} place */
function controls(self, place) {
  const widen = () => {
    const wide = self.figure.classList.toggle("wide");
    state.wide = state.wide.filter((title) => title !== self.part.title).concat(wide ? [self.part.title] : []);
  };
  const tools = make("div", { className: "tools" },
    button("+", "Zoom in", () => scale(self, 0.5)), button("−", "Zoom out", () => scale(self, 2)),
    button("↺", "Show all", () => zoom(self, null)), button("⤢", "Wide or narrow", widen));
  self.figure.append(tools);
  place.tabIndex = 0;
  place.setAttribute("role", "application");
  place.setAttribute("aria-label", `${self.part.title}. Keys: plus and minus zoom, arrows move, 0 shows all.`);
  place.title = "Drag to zoom, double click to show all; the wheel zooms after a click";
  keys(place, {
    "+": () => scale(self, 0.5), "=": () => scale(self, 0.5), "-": () => scale(self, 2), 0: () => zoom(self, null),
    ArrowLeft: () => pan(self, -0.2), ArrowRight: () => pan(self, 0.2),
  });
  place.ondblclick = () => zoom(self, null);
  pointing(self, place);
}

/** @param {HTMLElement} place @param {Object<string, () => void>} actions */
function keys(place, actions) {
  place.addEventListener("keydown", (event) => {
    if (event.target !== place || event.ctrlKey || event.metaKey || event.altKey || !actions[event.key]) return;
    event.preventDefault();
    actions[event.key]();
  });
}

/** Crosshair, drag and wheel. @param {Drawn} self @param {HTMLElement} place */
function pointing(self, place) {
  const brush = make("div", { className: "brush", hidden: true });
  place.append(brush);
  /** @type {number|null} */
  let begun = null;
  /** @param {PointerEvent|WheelEvent} event */
  const at = (event) => event.clientX - place.getBoundingClientRect().left;
  /** @param {number} x */
  const value = (x) => self.drawn.convertFromPixel({ xAxisIndex: 0 }, x);
  place.addEventListener("pointerdown", (event) => {
    if (event.pointerType !== "touch" && event.button === 0) begun = at(event);
    if (begun !== null) place.setPointerCapture(event.pointerId);
  });
  place.addEventListener("pointermove", (event) => {
    const x = at(event);
    if (begun !== null) {
      brush.hidden = Math.abs(x - begun) < 5;
      Object.assign(brush.style, { left: `${Math.min(x, begun)}px`, width: `${Math.abs(x - begun)}px` });
    }
    crosshair(self, value(x));
  });
  place.addEventListener("pointerup", (event) => {
    const [start, end] = [begun, at(event)];
    [begun, brush.hidden] = [null, true];
    if (start === null || Math.abs(end - start) < 5) return;
    const range = [value(Math.min(start, end)), value(Math.max(start, end))];
    zoom(self, within(self, range[0], range[1]));
  });
  place.addEventListener("pointercancel", () => ([begun, brush.hidden] = [null, true]));
  place.addEventListener("pointerleave", () => crosshair(self, null));
  place.addEventListener("wheel", (event) => {
    if (!(event.ctrlKey || place.contains(document.activeElement))) return; // else the page scrolls
    event.preventDefault();
    scale(self, event.deltaY < 0 ? 0.8 : 1.25, value(at(event)));
  }, { passive: false });
}

/** A line at the same place of all charts over the axis, and their values there. @param {Drawn} self @param {number|null} x */
function crosshair(self, x) {
  const [from, to] = state.zooms[self.part.x] || extent(self.part);
  const shown = x !== null && x >= from && x <= to ? x : null;
  for (const other of fellows(self)) {
    other.cross.hidden = shown === null;
    if (shown !== null) other.cross.style.left = `${pixel(other, shown)}px`;
    readout(other, shown);
  }
}
