// Line charts in SVG.

import {h, s, sized} from "./dom.js";

const SECONDS = 120;
const HEIGHT = 56;

// The least of 1, 2, 2.5, 5 times a power of ten that is at least `value`.
function roundUp(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 2.5, 5, 10].map((step) => step * power).find((nice) => nice >= value * 0.9999);
}

// The latest minutes of one figure: `series` are its lines, `top` the scale's end, or 0 where it follows the values.
export class LiveChart {
  constructor(title, {series, format, tick = format, top = 0, least = 1, marked = ""}) {
    Object.assign(this, {title, format, tick, top, least, marked: null});
    this.lines = series.map(({name, tone}) => ({
      name,
      values: Array(SECONDS).fill(null),
      path: s("path", {class: `line ${tone}`}),
      number: h("b", {}, "–"),
      tone,
    }));
    this.area = s("path", {class: `area ${series[0].tone}`});
    this.mark = s("line", {class: "mark", x1: 0, x2: SECONDS - 1, visibility: "hidden"});
    this.scale = h("span", {class: "scale"});
    this.drawing = s(
      "svg",
      {viewBox: `0 0 ${SECONDS - 1} ${HEIGHT}`, preserveAspectRatio: "none", role: "img"},
      this.mark, this.area, ...this.lines.map((line) => line.path),
    );
    const legend = this.lines.map(({name, number, tone}) =>
      h("span", {class: "figure"}, number, name ? h("small", {class: `key ${tone}`}, name) : null));
    if (marked) legend.push(h("small", {class: "key dashed"}, marked));
    this.element = h(
      "article", {class: "card chart"},
      h("h3", {}, title), h("p", {class: "figures"}, ...legend), h("div", {class: "plot"}, this.drawing, this.scale),
    );
    this.draw();
  }

  // One value a line; null where nothing is known.
  push(values) {
    this.lines.forEach((line, i) => {
      line.values.push(values[i] ?? null);
      line.values.shift();
      line.number.textContent = this.format(values[i] ?? null);
    });
    this.draw();
  }

  // A dashed line across at `value`; null for none.
  at(value) {
    this.marked = value;
  }

  draw() {
    const known = this.lines.flatMap((line) => line.values).filter((value) => value !== null);
    const top = this.top || roundUp(Math.max(this.least, this.marked ?? 0, ...known));
    const y = (value) => HEIGHT - 2 - (value / top) * (HEIGHT - 4);
    for (const line of this.lines) line.path.setAttribute("d", strokes(line.values, y));
    this.area.setAttribute("d", fillUnder(this.lines[0].values, y));
    for (const end of ["y1", "y2"]) this.mark.setAttribute(end, y(this.marked ?? 0));
    this.mark.setAttribute("visibility", this.marked === null ? "hidden" : "visible");
    this.scale.textContent = this.tick(top);
    const now = this.lines.map((line) => `${line.name} ${line.number.textContent}`.trim()).join(", ");
    this.drawing.setAttribute("aria-label", `${this.title} over the last two minutes; now ${now}`);
  }
}

// Neighbours that are known, as lists of [x, y].
function runs(values, y) {
  const found = [[]];
  values.forEach((value, x) => {
    if (value === null) found.push([]);
    else found.at(-1).push([x, y(value).toFixed(2)]);
  });
  return found.filter((run) => run.length);
}

const strokes = (values, y) => runs(values, y).map((run) => `M${run.join("L")}${run.length === 1 ? "h0" : ""}`).join("");

const fillUnder = (values, y) =>
  runs(values, y).map((run) => `M${run[0][0]},${HEIGHT}L${run.join("L")}L${run.at(-1)[0]},${HEIGHT}Z`).join("");

const EDGE = {left: 44, right: 14, top: 16, bottom: 34};

// What answers are worth against what they cost. `show` draws it, as does every change of its width.
export class Curve {
  constructor(place) {
    this.place = place;
    this.shown = null;
    new ResizeObserver(() => this.draw()).observe(place);
  }

  // points: [{cost, worth}] by rising threshold, `worth` a share; single: what the single-scale network costs, or null;
  // marks: [{name, tone, point, words}]; axis: {title, tick} of the costs.
  show(points, single, marks, axis) {
    this.shown = {points, single, marks, axis};
    this.draw();
  }

  draw() {
    const width = Math.floor(this.place.clientWidth);
    if (!this.shown || width < 100) return;
    if (!this.shown.points.length) {
      this.place.replaceChildren(h("p", {class: "quiet"}, "The model has no calibration table."));
      return;
    }
    const {points, single, marks, axis} = this.shown;
    const height = Math.round(Math.min(270, Math.max(190, width * 0.52)));
    const right = Math.max(single ?? 0, ...points.map(({cost}) => cost)) * 1.02;
    const worths = points.map(({worth}) => worth);
    const step = roundUp(Math.max(0.01, (Math.max(...worths) - Math.min(...worths)) / 4));
    const bottom = Math.max(0, Math.floor(Math.min(...worths) / step) * step);
    const top = Math.min(1, Math.ceil(Math.max(...worths) / step + 0.2) * step);
    const x = (cost) => EDGE.left + (cost / right) * (width - EDGE.left - EDGE.right);
    const y = (worth) => height - EDGE.bottom - ((worth - bottom) / (top - bottom)) * (height - EDGE.top - EDGE.bottom);
    const words = marks.map((mark) => mark.words).join("; ");
    const drawing = s("svg", {width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": words});
    for (let at = bottom; at <= top + 1e-9; at += step) {
      const decimals = step < 0.01 ? 1 : 0;
      drawing.append(
        s("line", {class: "grid", x1: EDGE.left, x2: width - EDGE.right, y1: y(at), y2: y(at)}),
        s("text", {class: "tick end", x: EDGE.left - 8, y: y(at) + 4}, `${(100 * at).toFixed(decimals)}%`),
      );
    }
    const across = roundUp(right / 5);
    for (let i = 0; i * across <= right; i++) {
      const at = Number((i * across).toPrecision(6));
      drawing.append(s("text", {class: "tick middle", x: x(at), y: height - EDGE.bottom + 16}, at ? axis.tick(at) : "0"));
    }
    drawing.append(s("text", {class: "tick end", x: width - EDGE.right, y: height - 3}, axis.title));
    if (single !== null) {
      drawing.append(s("line", {class: "mark", x1: x(single), x2: x(single), y1: EDGE.top - 4, y2: height - EDGE.bottom}));
    }
    const line = points.map(({cost, worth}) => `${x(cost)},${y(worth)}`).join("L");
    drawing.append(s("path", {class: "line curve-line", d: `M${line}`}));
    for (const {tone, point} of marks) {
      drawing.append(s("circle", {class: `point ${tone}`, cx: x(point.cost), cy: y(point.worth), r: 6}));
    }
    marks.forEach(({name, tone, point}) => {
      const below = tone === "now"; // what is asked; others have their names above
      const at = {x: x(point.cost) + (below ? 8 : -8), y: y(point.worth) + (below ? 20 : -10)};
      const label = s("text", {class: `point-name ${tone}`, ...at}, name);
      label.classList.add(below ? "start" : "end");
      if (x(point.cost) < EDGE.left + 70) label.classList.replace("end", "start");
      if (x(point.cost) > width - EDGE.right - 70) label.classList.replace("start", "end");
      drawing.append(label);
    });
    this.place.replaceChildren(drawing);
  }
}

// A horizontal bar of parts, each a share of the whole, with a mark somewhere.
// The words beside it say the same.
export function bar(parts, mark) {
  const segments = parts.map(([tone, length]) => sized(h("i", {class: tone}), {share: length}));
  const at = mark === null ? null : sized(h("em"), {at: Math.min(1, mark)});
  return h("div", {class: "bar", "aria-hidden": "true"}, ...segments, at);
}
