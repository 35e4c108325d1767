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
    Object.assign(this, {title, format, tick, top, least});
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

  // A dashed line across at `value`.
  at(value) {
    this.marked = value;
  }

  draw() {
    const known = this.lines.flatMap((line) => line.values).filter((value) => value !== null);
    const top = this.top || roundUp(Math.max(this.least, ...known));
    const y = (value) => HEIGHT - 2 - (value / top) * (HEIGHT - 4);
    for (const line of this.lines) line.path.setAttribute("d", strokes(line.values, y));
    this.area.setAttribute("d", fillUnder(this.lines[0].values, y));
    if (this.marked !== undefined) {
      for (const end of ["y1", "y2"]) this.mark.setAttribute(end, y(this.marked));
      this.mark.setAttribute("visibility", "visible");
    }
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

// Accuracy against mean multiply-adds. `show` draws it anew, as does every change of its width.
export class Curve {
  constructor(place) {
    this.place = place;
    this.shown = null;
    new ResizeObserver(() => this.draw()).observe(place);
  }

  // points: [{mean_mmacs, accuracy}] by rising threshold; single: the single-scale network's multiply-adds;
  // marks: [{name, tone, point}].
  show(points, single, marks) {
    this.shown = {points, single, marks};
    this.draw();
  }

  draw() {
    const width = Math.floor(this.place.clientWidth);
    if (!this.shown || width < 100) return;
    if (!this.shown.points.length) {
      this.place.replaceChildren(h("p", {class: "quiet"}, "The model has no calibration table."));
      return;
    }
    const {points, single, marks} = this.shown;
    const height = Math.round(Math.min(270, Math.max(190, width * 0.52)));
    const right = Math.max(single, ...points.map((point) => point.mean_mmacs)) * 1.02;
    const accuracies = points.map((point) => point.accuracy);
    const step = roundUp(Math.max(0.01, (Math.max(...accuracies) - Math.min(...accuracies)) / 4));
    const low = Math.max(0, Math.floor(Math.min(...accuracies) / step) * step);
    const high = Math.min(1, Math.ceil(Math.max(...accuracies) / step + 0.2) * step);
    const x = (mmacs) => EDGE.left + (mmacs / right) * (width - EDGE.left - EDGE.right);
    const y = (accuracy) => height - EDGE.bottom - ((accuracy - low) / (high - low)) * (height - EDGE.top - EDGE.bottom);
    const drawing = s("svg", {width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": told(marks)});
    for (let at = low; at <= high + 1e-9; at += step) {
      const decimals = step < 0.01 ? 1 : 0;
      drawing.append(
        s("line", {class: "grid", x1: EDGE.left, x2: width - EDGE.right, y1: y(at), y2: y(at)}),
        s("text", {class: "tick end", x: EDGE.left - 8, y: y(at) + 4}, `${(100 * at).toFixed(decimals)}%`),
      );
    }
    const across = roundUp(right / 5);
    for (let at = 0; at <= right; at += across) {
      drawing.append(s("text", {class: "tick middle", x: x(at), y: height - EDGE.bottom + 16}, at ? `${at} M` : "0"));
    }
    drawing.append(
      s("text", {class: "tick end", x: width - EDGE.right, y: height - 3}, "mean multiply-adds an image"),
      s("line", {class: "mark", x1: x(single), x2: x(single), y1: EDGE.top - 4, y2: height - EDGE.bottom}),
      s("text", {class: "tick end", x: x(single) - 5, y: height - EDGE.bottom - 6}, "single-scale"),
      s("path", {class: "line curve-line", d: `M${points.map((p) => `${x(p.mean_mmacs)},${y(p.accuracy)}`).join("L")}`}),
    );
    for (const {tone, point} of marks) {
      drawing.append(s("circle", {class: `point ${tone}`, cx: x(point.mean_mmacs), cy: y(point.accuracy), r: 6}));
    }
    marks.forEach(({name, tone, point}, i) => {
      const below = i === 0 && marks.length > 1;
      const label = s("text", {class: `point-name ${tone}`, x: x(point.mean_mmacs) + (below ? 8 : -8), y: y(point.accuracy) + (below ? 20 : -10)}, name);
      label.classList.add(below ? "start" : "end");
      if (x(point.mean_mmacs) < EDGE.left + 70) label.classList.replace("end", "start");
      drawing.append(label);
    });
    this.place.replaceChildren(drawing);
  }
}

const told = (marks) =>
  marks.map(({name, point}) => `${name}: ${(100 * point.accuracy).toFixed(1)} % right at ${point.mean_mmacs.toFixed(1)} million multiply-adds`).join("; ");

// A horizontal bar of parts, each a share of the whole, with a mark somewhere.
// The words beside it say the same.
export function bar(parts, mark) {
  const segments = parts.map(([tone, length]) => sized(h("i", {class: tone}), {share: length}));
  const at = mark === null ? null : sized(h("em"), {at: Math.min(1, mark)});
  return h("div", {class: "bar", "aria-hidden": "true"}, ...segments, at);
}
