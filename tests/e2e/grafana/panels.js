// Draws a dashboard as Grafana would from the same JSON: legends, units, colours, thresholds, stacks, bands, defaults.

const PALETTE = ["#73bf69", "#f2cc0c", "#8ab8ff", "#ff780a", "#f2495c", "#5794f2", "#b877d9", "#c0d8ff", "#56a64b", "#fade2a"];
const COLOURS = {green: "#73bf69", red: "#f2495c", blue: "#5794f2", orange: "#ff9830", yellow: "#fade2a", transparent: "transparent"};
const DEFAULT_STEPS = [{value: null, color: "green"}, {value: 80, color: "red"}];
const CALCULATIONS = {
  lastNotNull: ["Last *", (values) => values.at(-1)],
  mean: ["Mean", (values) => values.reduce((sum, value) => sum + value, 0) / values.length],
  max: ["Max", (values) => Math.max(...values)],
};

const colour = (name) => COLOURS[name] ?? name;

function h(tag, name, ...children) {
  const element = document.createElement(tag);
  element.className = name;
  element.append(...children);
  return element;
}

// numbers

function scaled(value, decimals, factor, units) {
  let i = 0;
  while (Math.abs(value) >= factor && i < units.length - 1) {
    value /= factor;
    i++;
  }
  return [value.toFixed(decimals), units[i]];
}

function seconds(value, decimals) {
  const size = Math.abs(value);
  if (size === 0) return [value.toFixed(decimals), " s"];
  for (const [factor, unit] of [[1e-6, " µs"], [1e-3, " ms"], [1, " s"]]) {
    if (size < factor * 1000 || unit === " s") return [(value / factor).toFixed(decimals), unit];
  }
}

const UNITS = {
  none: (value, decimals) => [value.toFixed(decimals), ""],
  percentunit: (value, decimals) => [(100 * value).toFixed(decimals), "%"],
  s: seconds,
  sishort: (value, decimals) => scaled(value, decimals, 1000, ["", " k", " M", " G"]),
  bytes: (value, decimals) => scaled(value, decimals, 1024, [" B", " KiB", " MiB", " GiB"]),
  reqps: (value, decimals) => scaled(value, decimals, 1000, [" req/s", "K req/s"]),
};

// What a value is called: a mapping's words, `noValue` for none, else the number in its unit.
function told(value, {unit = "none", decimals, mappings = [], noValue = "No data"}) {
  if (value === null || value === undefined || Number.isNaN(value)) return noValue;
  for (const {type, options} of mappings) if (type === "value" && options[value]) return options[value].text;
  const [prefix, suffix] = unit.split(":");
  const format = prefix === "suffix" ? (number, digits) => [number.toFixed(digits), ` ${suffix}`] : UNITS[unit];
  if (!format) throw new Error(`unknown unit ${unit}`);
  return format(value, decimals ?? (Number.isInteger(value) ? 0 : 2)).join("");
}

// Of a stat: by the panel's thresholds, or else Grafana's own.
function thresholdColour(value, {thresholds}) {
  const reached = (thresholds?.steps ?? DEFAULT_STEPS).filter((step) => step.value === null || value >= step.value);
  return colour(reached.at(-1).color);
}

const valuesOf = ({values}) => values.filter((value) => value !== null);

// a panel's field config, for one series

function fieldOf(panel, name, index) {
  const {defaults, overrides = []} = panel.fieldConfig;
  const field = {...defaults, custom: {...defaults.custom}, tone: PALETTE[index % PALETTE.length]};
  for (const {matcher, properties} of overrides) {
    const meant = matcher.id === "byName" ? matcher.options === name : new RegExp(matcher.options.slice(1, -1)).test(name);
    if (!meant) continue;
    for (const {id, value} of properties) {
      if (id.startsWith("custom.")) field.custom[id.slice(7)] = value;
      else if (id === "color") field.tone = colour(value.fixedColor);
      else throw new Error(`unknown override ${id}`);
    }
  }
  return field;
}

// kinds of panels

function stat(place, panel, {series}) {
  const {defaults} = panel.fieldConfig;
  const shown = series.filter((one) => valuesOf(one).length);
  if (!shown.length) return place.append(h("p", "value none", told(null, defaults)));
  for (const one of shown) {
    const last = valuesOf(one).at(-1);
    const value = h("p", "value", told(last, defaults));
    value.style.color = thresholdColour(last, defaults);
    const box = h("div", "stat", value);
    if (panel.options.textMode !== "value") box.prepend(h("p", "name", one.name));
    if (panel.options.graphMode === "area") box.append(spark(one.values, value.style.color));
    place.append(box);
  }
}

function spark(values, tone) {
  const canvas = h("canvas", "spark");
  [canvas.width, canvas.height] = [400, 80];
  const context = canvas.getContext("2d");
  const known = values.filter((value) => value !== null);
  const [low, high] = [Math.min(...known), Math.max(...known)];
  const y = (value) => 76 - 60 * (high > low ? (value - low) / (high - low) : 0.5);
  context.strokeStyle = context.fillStyle = tone;
  context.lineWidth = 2;
  context.beginPath();
  let isDown = false;
  values.forEach((value, i) => {
    if (value !== null) context[isDown ? "lineTo" : "moveTo"]((i / (values.length - 1)) * 400, y(value));
    isDown ||= value !== null;
  });
  context.stroke();
  return canvas;
}

function timeseries(place, panel, {times, series, marks}) {
  const {defaults} = panel.fieldConfig;
  const known = series.filter((one) => valuesOf(one).length);
  if (!known.length) return place.append(h("p", "value none", told(null, defaults)));
  const fields = known.map(({name}, i) => fieldOf(panel, name, i));
  const isStacked = defaults.custom?.stacking?.mode === "normal";
  const total = times.map(() => 0);
  const columns = known.map(({values}) => (isStacked ? values.map((value, i) => (total[i] += value ?? 0)) : values));
  const lines = known.map(({name}, i) => {
    const {custom, tone} = fields[i];
    const opacity = Math.round(2.55 * (custom.fillOpacity ?? 0)).toString(16).padStart(2, "0");
    const isFilled = !isStacked && !custom.fillBelowTo && custom.fillOpacity;
    return {
      label: name, stroke: tone, width: custom.lineWidth ?? 1, points: {show: false},
      fill: isFilled || (isStacked && i === 0) ? tone + opacity : undefined,
      dash: custom.lineStyle?.fill === "dash" ? custom.lineStyle.dash : undefined,
      paths: custom.lineInterpolation === "stepAfter" ? uPlot.paths.stepped({align: 1}) : uPlot.paths.linear(),
      opacity,
    };
  });
  const bands = isStacked
    ? known.slice(1).map((_, i) => ({series: [i + 2, i + 1], fill: lines[i + 1].stroke + lines[i + 1].opacity}))
    : fields.flatMap(({custom, tone}, i) => {
      const below = known.findIndex(({name}) => name === custom.fillBelowTo);
      return below < 0 ? [] : [{series: [i + 1, below + 1], fill: tone + lines[i].opacity}];
    });
  const limits = defaults.custom?.thresholdsStyle?.mode === "off" ? [] : defaults.thresholds?.steps ?? [];
  const chart = h("div", "chart");
  place.append(chart);
  const list = legend(place, panel, known, fields);
  chart.plot = new uPlot({
    width: place.clientWidth, height: place.clientHeight - (list?.offsetHeight ?? 0) - 6, legend: {show: false}, cursor: {show: false},
    scales: {y: {range: (_, low, high) => [defaults.min ?? low, defaults.max ?? (high > (defaults.min ?? low) ? high * 1.05 : high + 1)]}},
    axes: [
      {stroke: "#ccccdc", grid: {stroke: "#2c2f37"}, ticks: {show: false}, font: "11px sans-serif", size: 28, values: clock},
      {stroke: "#ccccdc", grid: {stroke: "#2c2f37"}, ticks: {show: false}, font: "11px sans-serif", size: (_, values) => 14 + 6.5 * Math.max(1, ...(values ?? []).map((value) => String(value).length)),
        incrs: defaults.decimals === 0 ? [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000] : undefined,
        values: (_, values) => values.map((value) => told(value, {...defaults, decimals: defaults.unit === "percentunit" ? 0 : defaults.decimals, mappings: defaults.mappings}))},
    ],
    series: [{}, ...lines], bands,
    hooks: {draw: [(plot) => across(plot, limits, marks)]},
  }, [times, ...columns], chart);
}

const clock = (_, times) => times.map((time) => new Date(time * 1000).toISOString().slice(11, 16));

// Lines across: limits by value, marks of annotations by time.
function across({ctx: context, bbox, valToPos, scales}, limits, marks) {
  context.save();
  context.setLineDash([8, 5]);
  context.lineWidth = 2;
  const line = (tone, ...points) => {
    context.strokeStyle = tone;
    context.beginPath();
    points.forEach(([x, y], i) => context[i ? "lineTo" : "moveTo"](x, y));
    context.stroke();
  };
  for (const {value, color} of limits) {
    if (value === null || value > scales.y.max || color === "transparent") continue;
    const y = valToPos(value, "y", true);
    line(colour(color), [bbox.left, y], [bbox.left + bbox.width, y]);
  }
  for (const time of marks) {
    const x = valToPos(time, "x", true);
    line(COLOURS.orange, [x, bbox.top], [x, bbox.top + bbox.height]);
  }
  context.restore();
}

function legend(place, panel, known, fields) {
  const {showLegend, displayMode, calcs = []} = panel.options.legend ?? {showLegend: true, displayMode: "list"};
  if (!showLegend) return null;
  const columns = displayMode === "table" ? calcs : [];
  const names = known.map(({name}, i) => {
    const key = h("i", "key");
    key.style.background = fields[i].tone;
    const numbers = columns.map((one) => h("td", "", told(CALCULATIONS[one][1](valuesOf(known[i])), fields[i])));
    return h("tr", "", h("td", "", key, name), ...numbers);
  });
  const head = h("tr", "", h("th", "", "Name"), ...columns.map((one) => h("th", "", CALCULATIONS[one][0])));
  const table = h("table", "legend", head, ...names);
  place.append(table);
  return table;
}

// A histogram's buckets: what fell into each is what its count has beyond the one's below.
function heatmap(place, panel, {times, series}) {
  const rows = series.filter(({le}) => Number.isFinite(le)).sort((a, b) => a.le - b.le);
  const counts = rows.map(({values}, i) => values.map((value, at) => Math.max(0, (value ?? 0) - (rows[i - 1]?.values[at] ?? 0))));
  const most = Math.max(1e-9, ...counts.flat());
  const used = counts.map((row) => row.some((count) => count > 0));
  const [low, high] = [used.indexOf(true), used.lastIndexOf(true)];
  if (low < 0) return place.append(h("p", "value none", "No data"));
  const canvas = h("canvas", "heat");
  const [width, height, left, bottom] = [place.clientWidth, place.clientHeight, 66, 22];
  [canvas.width, canvas.height] = [width, height];
  const context = canvas.getContext("2d");
  const x = (at) => left + (at / times.length) * (width - left);
  const y = (row) => height - bottom - ((row - low) / (high - low + 1)) * (height - bottom - 4);
  context.font = "11px sans-serif";
  for (let row = low; row <= high; row++) {
    counts[row].forEach((count, at) => {
      if (!count) return;
      context.fillStyle = `rgba(87, 148, 242, ${0.15 + 0.85 * (count / most)})`;
      context.fillRect(x(at), y(row + 1), x(at + 1) - x(at) + 0.5, y(row) - y(row + 1) - 1);
    });
    context.fillStyle = "#ccccdc";
    const {unit, decimals} = panel.options.yAxis;
    if ((row - low) % Math.ceil((high - low + 1) / 10) === 0) context.fillText(told(rows[row].le, {unit, decimals}), 4, y(row + 0.5) + 4);
  }
  for (let i = 0; i < 6; i++) context.fillText(clock(null, [times[Math.floor((i * times.length) / 6)]])[0], x((i * times.length) / 6), height - 5);
  place.append(canvas);
}

function alertlist(place, panel, {alerts}) {
  const shown = alerts.filter(({state}) => panel.options.stateFilter[state]).slice(0, panel.options.maxItems);
  if (!shown.length) place.append(h("p", "value none", "No alerts matching filters"));
  for (const {state, labels, annotations} of shown) {
    place.append(h("p", `alert ${state}`, h("b", "", labels.alertname), ` ${state} · ${annotations.summary}`));
  }
}

const KINDS = {stat, timeseries, heatmap, alertlist};

// The dashboard with what each panel's queries gave: {panels: {id: {times, series: [{name, le, values}], marks, alerts}}}.
function draw(dashboard, panels) {
  document.title = dashboard.title;
  const page = h("main", "", h("h1", "", dashboard.title));
  document.body.replaceChildren(page);
  const grid = h("div", "grid");
  page.append(grid);
  for (const panel of dashboard.panels) {
    const {x, y, w, h: rows} = panel.gridPos;
    const box = h("section", panel.type, h("h2", "", panel.title));
    Object.assign(box.style, {gridColumn: `${x + 1} / span ${w}`, gridRow: `${y + 1} / span ${rows}`});
    grid.append(box);
    if (panel.type === "row") continue;
    box.dataset.title = panel.title;
    if (!KINDS[panel.type]) throw new Error(`unknown panel ${panel.type}`);
    const content = h("div", "content");
    box.append(content);
    KINDS[panel.type](content, panel, panels[panel.id]);
  }
}
