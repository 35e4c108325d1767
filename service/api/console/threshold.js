// The threshold in force, the one chosen, and what the calibration expects of either.

import {Refused, about, call, patch, whyNot} from "./api.js";
import {Curve} from "./charts.js";
import {$, count, h, millions, ms, percent, share, sized, wholePercent} from "./dom.js";

const PREVIEW_DELAY_MS = 60;

let inForce = null; // GET /config/threshold
let etag = null;
let preview = null; // GET /config/threshold/preview, the latest that came
let model = null;
let curve = null;
let lowered = null; // the effective threshold, where overload holds it lower
let timer = 0;
let asked = null; // aborts the preview that is asked for

export function start() {
  curve = new Curve($("curve"));
  $("slider").addEventListener("input", () => choose());
  $("revert").addEventListener("click", () => {
    reset();
    say("");
    $("slider").focus();
  });
  $("threshold-form").addEventListener("submit", (event) => {
    event.preventDefault();
    apply();
  });
}

export function use(serving) {
  if (serving.name !== model?.name || serving.version !== model.version) {
    inForce = preview = null; // another model's
    say("");
  }
  model = serving;
  render();
}

export const version = () => inForce?.version ?? null;
export const at = () => inForce?.threshold ?? null; // which moves without a new version where it follows the traffic

// What /stats tells of the traffic: whether it is unlike the calibration's, and whether a budget is held.
export function watch({drift, budget}) {
  tell("drift", drift?.notice ?? "");
  tell("kept", budget?.kept === false ? exceeded(budget) : "");
}

function tell(id, words) {
  if ($(id).textContent !== words) $(id).textContent = words; // read aloud once, not every second
}

function exceeded({goal, asked, mean, images}) {
  const format = goal === "max_mean_ms" ? ms : millions;
  return `The budget is exceeded: the latest ${count(images)} images took ${format(mean)} each, of ${format(asked)}.`;
}

// Take what is in force; what is being chosen stays.
export async function load() {
  const before = inForce;
  const {body, etag: tag} = await call(about("config/threshold"), {ask: false});
  if (inForce !== before) return; // changed here meanwhile: what came may be older
  const wasChosen = isChosen();
  take(body, tag);
  if (!wasChosen) await reset();
  else if (before.threshold !== body.threshold) {
    say(`The threshold was changed elsewhere: it is ${share(body.threshold)} now.`);
  }
  render();
}

export function loweredTo(effective) {
  const now = inForce && effective < inForce.threshold ? effective : null;
  if (now === lowered) return;
  lowered = now;
  render();
}

function take(body, tag) {
  if (body.model !== model.name) return; // the page has turned to another since
  inForce = body;
  etag = tag;
}

const chosen = () => Number($("slider").value);
const nearest = (threshold) => Math.round(threshold * 100) / 100;
const isChosen = () => inForce !== null && chosen() !== nearest(inForce.threshold);

function reset() {
  $("slider").value = String(nearest(inForce.threshold));
  return choose(0);
}

function choose(delay = PREVIEW_DELAY_MS) {
  render();
  clearTimeout(timer);
  return new Promise((resolve) => {
    timer = setTimeout(() => look().then(resolve), delay);
  });
}

// Ask what the chosen threshold would do, by the table and to the images seen lately.
export async function look() {
  const asking = new AbortController();
  asked?.abort();
  asked = asking;
  const threshold = isChosen() ? chosen() : inForce.threshold;
  try {
    ({body: preview} = await call(about("config/threshold/preview", {threshold}), {signal: asking.signal, ask: false}));
    render();
  } catch (error) {
    if (error instanceof Refused) say(whyNot(error), true);
    else if (error.name !== "AbortError") throw error;
  }
}

async function apply() {
  if ($("apply").ariaDisabled === "true") return; // `disabled` would lose the focus
  const wanted = chosen();
  $("apply").ariaDisabled = "true";
  try {
    const {body, etag: tag} = await patch(about("config/threshold"), {threshold: wanted}, {"If-Match": etag});
    take(body, tag);
    say(`Applied: the threshold is ${share(body.threshold)}, config version ${body.version}.`);
    await reset();
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    if (error.status === 412) await conflict(wanted);
    else say(`Not applied. ${whyNot(error)}`, true);
  } finally {
    render();
  }
}

async function conflict(wanted) {
  try {
    const {body, etag: tag} = await call(about("config/threshold"));
    take(body, tag);
    const now = `it is ${share(body.threshold)} now, version ${body.version}`;
    say(`Not applied: somebody changed the config meanwhile, ${now}. Apply again to set ${share(wanted)}.`, true);
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    say(`Not applied: somebody changed the config meanwhile. ${whyNot(error)}`, true);
  }
}

function say(words, isError = false) {
  const outcome = $("outcome");
  outcome.textContent = words;
  outcome.classList.toggle("error", isError);
}

function render() {
  if (!inForce) return;
  const choice = isChosen() ? chosen() : inForce.threshold;
  $("in-force").textContent = `${share(inForce.threshold)} in force${why(inForce)} · version ${inForce.version}`;
  $("chosen").textContent = share(choice);
  sized($("slider"), {at: choice});
  $("slider").setAttribute("aria-valuetext", `${share(choice)}${isChosen() ? "" : ", in force"}`);
  $("apply").ariaDisabled = String(!isChosen());
  $("apply").textContent = isChosen() ? `Apply ${share(choice)}` : "Apply";
  $("revert").hidden = !isChosen();
  $("floor").textContent = floorInWords();
  $("marks").replaceChildren(...[["now", inForce.threshold], ["floor", inForce.floor], ["lowered", lowered]]
    .filter(([, at]) => at !== null).map(([tone, at]) => sized(h("i", {class: tone}), {at})));
  const expected = preview?.threshold === choice ? preview : null; // another threshold's is none of this one's
  renderPreview(choice, expected);
  renderCurve(choice, expected);
}

function why({goal, value, table, followed}) {
  const reason = {
    max_mean_mmacs: `, for at most ${value} M an image`,
    max_mean_ms: `, for at most ${value} ms an image`,
    min_agreement: `, for an agreement of at least ${percent(value)}`,
    max_accuracy_drop: `, for a loss of at most ${percent(value)}`,
  }[goal] ?? "";
  if (table !== "live") return reason;
  return `${reason} of today's traffic${followed?.lost ? `, which cannot be kept: ${followed.lost}` : ""}`;
}

function floorInWords() {
  if (lowered !== null) return `Overload holds it at ${share(lowered)}; the floor is ${share(inForce.floor)}.`;
  if (inForce.floor === null) return "No floor: overload does not lower it.";
  return `Floor ${share(inForce.floor)}: overload may lower it so far.`;
}

const ROWS = [
  ["Time saved", (effect) => effect.saved, percent],
  ["Compute an image", (effect) => effect.mean_ms, ms],
  ["Multiply-adds an image", (effect) => effect.mean_mmacs, millions],
  ["… of the single-scale network", (effect) => effect.mean_mmacs / model.stages.at(-1).mmacs, wholePercent],
  ["Exit early", (effect) => effect.exit_rate, percent],
  ["Accuracy", (effect) => effect, accuracy],
  ["Answers as the last stage", (effect) => effect.agreement, percent],
];

function accuracy({accuracy: share, accuracy_interval: interval}) {
  return interval === null ? percent(share) : `${percent(share)} (${interval.map(percent).join(" – ")})`;
}

function renderPreview(choice, expected) {
  $("preview-title").textContent = isChosen() ? `At ${share(choice)}` : "Chosen";
  const now = inForce.predicted;
  const then = isChosen() ? expected?.predicted : null;
  const rows = now === null
    ? [h("tr", {}, h("td", {colspan: 3}, "The model has no calibration table: what a threshold does cannot be predicted."))]
    : ROWS.map(([name, of, format]) => h(
      "tr", {}, h("th", {scope: "row"}, name), h("td", {}, format(of(now))), then ? h("td", {}, format(of(then))) : h("td", {class: "none"}, "–"),
    ));
  $("preview").replaceChildren(...rows);
  $("pays").textContent = paysInWords(isChosen() ? then : now);
  $("recent").textContent = expected ? recentInWords(expected.recent) : "…";
}

// Whether the cascade is worth it here: on this machine, with this runtime.
function paysInWords(effect) {
  if (!effect || effect.saved === null || model.stages.length === 1) return "";
  const times = `${ms(effect.mean_ms)} of compute an image; the single-scale network takes ${ms(effect.single_scale_ms)}`;
  return effect.saved > 0 ? `It pays here: ${times}.` : `It does not pay here: ${times}.`;
}

function recentInWords({images, exit_rate: rate, mean_mmacs: mmacs}) {
  if (!images) return "No image has been seen yet.";
  return `Of the latest ${count(images)} images ${percent(rate)} would exit early, at ${millions(mmacs)} each.`;
}

// In time where that was measured, and by agreement where the photographs had no labels.
function renderCurve(choice, expected) {
  const points = model?.curve ?? [];
  const timed = points.length > 0 && points[0].mean_ms !== null;
  const labelled = points.length > 0 && points[0].accuracy !== null;
  const [cost, worth] = [timed ? "mean_ms" : "mean_mmacs", labelled ? "accuracy" : "agreement"];
  const at = (effect) => ({cost: effect[cost], worth: effect[worth]});
  const single = timed ? points[0].single_scale_ms : model?.stages.at(-1).mmacs ?? null;
  const axis = timed
    ? {title: "mean compute an image", tick: (value) => `${value} ms`}
    : {title: "mean multiply-adds an image", tick: (value) => `${value} M`};
  const mark = (tone, name, effect) => ({
    name, tone, point: at(effect),
    words: `${name}: ${percent(effect[worth])} ${labelled ? "right" : "as the last stage"} at ${(timed ? ms : millions)(effect[cost])}`,
  });
  const marks = [];
  if (inForce.predicted) marks.push(mark("now", `${share(inForce.threshold)} now`, inForce.predicted));
  if (isChosen() && expected?.predicted) marks.push(mark("then", share(choice), expected.predicted));
  $("curve-title").textContent = `${labelled ? "Accuracy" : "Agreement"} against ${timed ? "time" : "cost"}, by threshold`;
  curve.show(points.map(at), single, marks, axis);
}
