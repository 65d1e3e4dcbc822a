// One line chart in SVG: fixed time axis, one or two lanes, limits, burst bands and a shared crosshair. Knows nothing of the
// environment; panels.js says what is drawn.

import { explained } from "./terms.js";

const NS = "http://www.w3.org/2000/svg";
const MARGIN = { top: 22, right: 12, bottom: 36, left: 44 };

function make(tag, attributes = {}, text) {
  const node = document.createElementNS(NS, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  if (text !== undefined) node.textContent = text;
  return node;
}

/** 1234 as "1.2k"; for axis ticks. */
function short(value) {
  const size = Math.abs(value);
  if (size >= 1e6) return `${+(value / 1e6).toPrecision(3)}M`;
  if (size >= 1e3) return `${+(value / 1e3).toPrecision(3)}k`;
  return `${+value.toPrecision(3)}`;
}

/** Round ticks (1, 2, 5 times a power of ten) that cover low to high in about `count` intervals. */
export function niceTicks(low, high, count = 4) {
  const raw = Math.max(high - low, 1e-9) / count;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = power * [1, 2, 2.5, 5, 10].find((factor) => factor * power >= raw * 0.999);
  const ticks = [];
  for (let i = Math.floor(low / step + 1e-9); i <= Math.ceil(high / step - 1e-9); i++) ticks.push(+(i * step).toPrecision(12));
  return ticks;
}

/** Powers of ten that cover low to high, both above 0. */
export function logTicks(low, high) {
  const ticks = [];
  for (let k = Math.floor(Math.log10(low)); k <= Math.ceil(Math.log10(high) - 1e-9); k++) ticks.push(10 ** k);
  return ticks.length > 1 ? ticks : [ticks[0], ticks[0] * 10];
}

export class Chart {
  /**
   * @param {HTMLElement} host a figure is appended to it.
   * @param {object} panel title, about, unit, value(row), format(number), and optionally log, least (top of the axis at least), hold (draw as steps),
   *   shared (one line for both lanes), lines (`[{name, kind, value(row)}]`: these instead, of the first lane), bands (the same, filled, one on
   *   top of the other, below the lines), mark(row) (true: a tick above the plot).
   * @param {(t: number|null) => void} onInspect called with the step under the pointer.
   */
  constructor(host, panel, onInspect) {
    this.panel = panel;
    this.length = 200;
    this.limits = [];
    this.lanes = [];
    this.figure = document.createElement("figure");
    this.figure.className = "panel";
    this.figure.innerHTML = "<figcaption><span class='name'></span><span class='now'></span></figcaption>";
    this.name = this.figure.querySelector(".name");
    this.name.textContent = panel.title;
    this.figure.dataset.panel = panel.id;
    this.now = this.figure.querySelector(".now");
    this.svg = make("svg", { role: "img" });
    this.figure.append(this.svg);
    host.append(this.figure);
    this.layers = Object.fromEntries(["bands", "areas", "grid", "lines", "marks", "cross", "limits"].map((name) => [name, make("g", { class: name })]));
    this.svg.append(...Object.values(this.layers));
    this.svg.addEventListener("pointermove", (event) => onInspect(this.stepAt(event)));
    this.svg.addEventListener("pointerdown", (event) => onInspect(this.stepAt(event)));
    this.svg.addEventListener("pointerleave", () => onInspect(null));
    new ResizeObserver(() => this.resize()).observe(this.svg);
  }

  /** Start an episode: its length in steps, its task and the lanes `[{name, kind, rows, shown}]`. */
  begin(length, task, lanes) {
    const { panel } = this;
    const limits = panel.limits(task);
    Object.assign(this, { length, limits, lanes, domain: "", seconds: task.step_s });
    explained(this.name, typeof panel.about === "function" ? panel.about(task) : panel.about);
    this.figure.hidden = !panel.shown(task);
    this.peak = -Infinity;
    this.floor = Infinity;
    this.seen = lanes.map(() => 0);
    for (const limit of limits) this.include(limit.value);
    this.draw(null);
  }

  include(value) {
    if (!Number.isFinite(value)) return;
    this.peak = Math.max(this.peak, value);
    this.floor = Math.min(this.floor, value);
  }

  resize() {
    const { width, height } = this.svg.getBoundingClientRect();
    if (width < 120 || (width === this.width && height === this.height)) return;
    Object.assign(this, { width, height, domain: "" });
    this.svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    this.draw(this.inspected ?? null);
  }

  stepAt(event) {
    const box = this.svg.getBoundingClientRect();
    const share = (event.clientX - box.left - MARGIN.left) / (box.width - MARGIN.left - MARGIN.right);
    return Math.min(this.length, Math.max(1, Math.round(share * this.length)));
  }

  x(step) {
    return MARGIN.left + (step / this.length) * (this.width - MARGIN.left - MARGIN.right);
  }

  y(value) {
    const [low, high] = [this.ticks[0], this.ticks.at(-1)];
    const share = this.panel.log
      ? Math.log(Math.max(value, low) / low) / Math.log(high / low)
      : (value - low) / (high - low);
    return this.height - MARGIN.bottom - share * (this.height - MARGIN.top - MARGIN.bottom);
  }

  /** Scan rows not yet seen, so that an axis only ever grows within an episode. A replayed lane is known to its end. */
  scale() {
    this.lanes.forEach((lane, i) => {
      for (; this.seen[i] < lane.rows.length; this.seen[i]++) {
        for (const { value } of this.linesOf(lane)) this.include(value(lane.rows[this.seen[i]]));
      }
    });
    const { log, least = 1 } = this.panel;
    if (log) this.ticks = logTicks(Number.isFinite(this.floor) ? Math.max(this.floor, 1) : 10, Math.max(this.peak, 100));
    else this.ticks = niceTicks(Math.min(this.floor, 0), Math.max(this.peak, this.floor, least));
    const key = this.ticks.join();
    if (key === this.domain) return;
    this.domain = key;
    this.drawFrame();
  }

  drawFrame() {
    const { grid, limits } = this.layers;
    const [left, right, bottom] = [MARGIN.left, this.width - MARGIN.right, this.height - MARGIN.bottom];
    grid.replaceChildren();
    for (const tick of this.ticks) {
      grid.append(make("line", { x1: left, x2: right, y1: this.y(tick), y2: this.y(tick), class: tick === 0 ? "zero" : "" }));
      grid.append(make("text", { x: left - 6, y: this.y(tick) + 3.5, "text-anchor": "end" }, short(tick)));
    }
    const [unit, per] = this.seconds > 1 ? ["min", 60 / this.seconds] : ["s", 1]; // a long step is told in minutes
    for (const tick of niceTicks(0, this.length / per).filter((one) => one * per <= this.length)) {
      grid.append(make("text", { x: this.x(tick * per), y: bottom + 14, "text-anchor": "middle" }, tick));
    }
    grid.append(make("text", { x: (left + right) / 2, y: bottom + 29, "text-anchor": "middle", class: "axis" }, `time (${unit})`));
    grid.append(make("text", { x: 4, y: 11, class: "axis" }, this.panel.unit + (this.panel.log ? ", log scale" : "")));
    limits.replaceChildren();
    for (const { value, label, strong } of this.limits) {
      const y = this.y(value);
      limits.append(make("line", { x1: left, x2: right, y1: y, y2: y, class: strong ? "strong" : "" }));
      limits.append(make("text", { x: right - 2, y: y - 4, "text-anchor": "end" }, label));
    }
  }

  /** What is drawn of a lane: `[{lane, name, kind, value}]`. */
  linesOf(lane) {
    const { lines, shared, value } = this.panel;
    if (lines) return lines.map((line) => ({ lane, ...line }));
    return [{ lane, name: shared ? "" : lane.name, kind: shared ? "both" : lane.kind, value }];
  }

  path({ lane, value }) {
    let d = "";
    for (let i = 0; i < lane.shown; i++) {
      const [x, y] = [this.x(i + 1).toFixed(1), this.y(value(lane.rows[i])).toFixed(1)];
      if (i === 0) d = this.panel.hold ? `M${this.x(0).toFixed(1)},${y}H${x}` : `M${x},${y}`;
      else d += this.panel.hold ? `V${y}H${x}` : `L${x},${y}`;
    }
    return d;
  }

  /** The bands of a lane as areas, held from step to step. */
  stacked(lane) {
    const below = Array(lane.shown).fill(0);
    return (this.panel.bands ?? []).map(({ kind, value }) => {
      const from = [...below];
      for (let i = 0; i < lane.shown; i++) below[i] += value(lane.rows[i]);
      const edge = (heights, i) => `${this.y(heights[i]).toFixed(1)}`;
      let d = "";
      for (let i = 0; i < lane.shown; i++) d += `${i ? "V" : `M${this.x(0).toFixed(1)},`}${edge(below, i)}H${this.x(i + 1).toFixed(1)}`;
      for (let i = lane.shown - 1; i >= 0; i--) d += `V${edge(from, i)}H${this.x(i).toFixed(1)}`;
      return make("path", { d: d && `${d}Z`, class: kind });
    });
  }

  /** Redraw what is shown; `inspected` is the step under the crosshair (of any chart), or null for the latest. */
  draw(inspected) {
    this.inspected = inspected;
    if (!this.width || !this.lanes.length || this.figure.hidden) return;
    this.scale();
    const lanes = this.panel.shared ? this.lanes.slice(0, 1) : this.lanes;
    const drawn = lanes.flatMap((lane) => this.linesOf(lane));
    const { bands, areas, lines, marks, cross } = this.layers;
    areas.replaceChildren(...this.stacked(this.lanes[0]));
    bands.replaceChildren(...this.bursts());
    // The second lane is drawn first, so that the first one stays on top of it.
    lines.replaceChildren(...drawn.map((line) => make("path", { d: this.path(line), class: line.kind })).reverse());
    marks.replaceChildren(...(this.panel.mark ? lanes.flatMap((lane) => this.ticksAbove(lane)) : []));
    const latest = Math.max(0, ...lanes.map((lane) => lane.shown));
    const step = Math.min(inspected ?? latest, latest);
    cross.replaceChildren();
    if (inspected !== null && step > 0) {
      cross.append(make("line", { x1: this.x(step), x2: this.x(step), y1: MARGIN.top, y2: this.height - MARGIN.bottom }));
    }
    const readings = drawn.filter(({ lane }) => step > 0 && lane.rows[step - 1]).map(({ lane, name, kind, value }) => {
      const now = value(lane.rows[step - 1]);
      cross.append(make("circle", { cx: this.x(step), cy: this.y(now), r: 3.2, class: kind }));
      return { name, kind, text: this.panel.format(now) };
    });
    const parts = step > 0 ? (this.panel.bands ?? []).map(({ name, kind, value }) => ({ name, kind, text: this.panel.format(value(lanes[0].rows[step - 1])) })) : [];
    const named = this.panel.lines || this.panel.bands;
    this.now.replaceChildren(...(parts.length ? parts : readings).map(({ name, kind, text }) => {
      const span = document.createElement("span");
      span.className = kind;
      span.textContent = named ? `${name} ${text}` : text;
      return span;
    }));
    const said = [...parts, ...readings].map(({ name, text }) => `${name ? `${name} ` : ""}${text} ${this.panel.unit}`).join(", ");
    const limits = this.limits.map((limit) => limit.label).join(", ");
    this.svg.setAttribute("aria-label", `${this.panel.title}: ${said ? `${said} at ${this.seconds > 1 ? "step" : "second"} ${step}` : "no data yet"}${limits ? `; ${limits}` : ""}`);
  }

  /** Shaded spans of the first lane's burst steps. */
  bursts() {
    const lane = this.lanes[0];
    const spans = [];
    for (let i = 0; i < lane.shown; i++) {
      if (!lane.rows[i].workload.is_burst) continue;
      if (spans.at(-1)?.[1] === i) spans.at(-1)[1] = i + 1;
      else spans.push([i, i + 1]);
    }
    return spans.map(([from, to]) =>
      make("rect", { x: this.x(from), width: this.x(to) - this.x(from), y: MARGIN.top, height: this.height - MARGIN.top - MARGIN.bottom }));
  }

  ticksAbove(lane) {
    let d = "";
    for (let i = 0; i < lane.shown; i++) {
      if (this.panel.mark(lane.rows[i])) d += `M${this.x(i + 1).toFixed(1)},${MARGIN.top - 7}v5`;
    }
    return d ? [make("path", { d })] : [];
  }
}
