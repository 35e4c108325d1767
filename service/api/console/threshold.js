// The threshold asked, the one chosen, and what the calibration expects of either. Overload may hold another in force.

import {Refused, about, call, patch, whyNot} from "./api.js";
import {Curve} from "./charts.js";
import * as checks from "./checks.js";
import {$, count, h, millions, ms, percent, share, sized, wholePercent} from "./dom.js";
import * as goals from "./goals.js";

const PREVIEW_DELAY_MS = 60;

let asked = null; // GET /config/threshold
let etag = null;
let preview = null; // GET /config/threshold/preview, the latest that came
let model = null;
let curve = null;
let drift = null; // of /stats
let lowered = null; // the effective threshold, where overload holds it lower
let timer = 0;
let looking = null; // aborts the preview that is waited for

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
  goals.start(change);
}

export function use(serving) {
  if (serving.name !== model?.name || serving.version !== model.version) {
    asked = preview = null; // another model's
    say("");
  }
  model = serving;
  render();
}

export const version = () => asked?.version ?? null;
export const at = () => asked?.threshold ?? null; // which moves without a new version where it follows the traffic

// What /stats says of the traffic: whether it differs from the calibration images, and whether a budget is kept.
export function watch(stats) {
  drift = stats.drift;
  if (preview && !isChosen()) checks.drifted(preview.recent, preview.predicted, drift);
  const words = stats.budget?.kept === false ? exceeded(stats.budget) : "";
  if ($("kept").textContent !== words) $("kept").textContent = words; // read aloud once, not every second
}

function exceeded({goal, asked: most, mean, images}) {
  const format = goal === "max_mean_ms" ? ms : millions;
  return `The budget is exceeded: the latest ${count(images)} images took ${format(mean)} each; the budget is ${format(most)}.`;
}

// Take what is in force; what is being chosen stays.
export async function load() {
  const before = asked;
  const {body, etag: tag} = await call(about("config/threshold"), {ask: false});
  if (asked !== before) return; // changed here meanwhile: what came may be older
  const wasChosen = isChosen();
  take(body, tag);
  if (!wasChosen) await reset();
  else if (before.threshold !== body.threshold) {
    say(`The threshold was changed elsewhere: it is ${share(body.threshold)} now.`);
  }
  render();
}

export function loweredTo(effective) {
  const now = asked && effective < asked.threshold ? effective : null;
  if (now === lowered) return;
  lowered = now;
  $("brownout").hidden = now === null;
  render();
}

function take(body, tag) {
  if (body.model !== model.name) return; // the page has turned to another since
  asked = body;
  etag = tag;
}

const chosen = () => Number($("slider").value);
const nearest = (threshold) => Math.round(threshold * 100) / 100;
const isChosen = () => asked !== null && chosen() !== nearest(asked.threshold);

function reset() {
  $("slider").value = String(nearest(asked.threshold));
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
  looking?.abort();
  looking = asking;
  const threshold = isChosen() ? chosen() : asked.threshold;
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
  await change({threshold: wanted}, share(wanted));
}

// Set what `fields` name, which people call `words`, unless somebody else has changed it meanwhile.
async function change(fields, words) {
  try {
    const {body, etag: tag} = await patch(about("config/threshold"), fields, {"If-Match": etag});
    take(body, tag);
    say(`Applied: the threshold is ${share(body.threshold)}, config version ${body.version}.`);
    await reset();
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    if (error.status === 412) await conflict(words);
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
    say(`Not applied: somebody changed the config meanwhile, ${now}. Apply again to set ${wanted}.`, true);
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
  if (!asked) return;
  const choice = isChosen() ? chosen() : asked.threshold;
  $("in-force").textContent = `asked ${share(asked.threshold)}${why(asked)} · in force ${share(lowered ?? asked.threshold)} · version ${asked.version}`;
  $("brownout").textContent = brownOutInWords();
  goals.show(asked);
  $("chosen").textContent = share(choice);
  sized($("slider"), {at: choice});
  $("slider").setAttribute("aria-valuetext", `${share(choice)}${isChosen() ? "" : ", asked"}`);
  $("apply").ariaDisabled = String(!isChosen());
  $("apply").textContent = isChosen() ? `Apply ${share(choice)}` : "Apply";
  $("revert").hidden = !isChosen();
  $("floor").textContent = floorInWords();
  $("marks").replaceChildren(...[["now", asked.threshold], ["floor", asked.floor], ["lowered", lowered]]
    .filter(([, at]) => at !== null).map(([tone, at]) => sized(h("i", {class: tone}), {at})));
  const expected = preview?.threshold === choice ? preview : null; // another threshold's is none of this one's
  renderPreview(choice, expected);
  renderCurve(choice, expected);
}

function why({goal, value, table, followed}) {
  if (!goals.isGoal(goal)) return "";
  const reason = `, for ${goals.inWords(goal, value)}`;
  if (table !== "live") return reason;
  return `${reason} of today's traffic${followed?.lost ? `, which cannot be kept: ${followed.lost}` : ""}`;
}

function brownOutInWords() {
  if (lowered === null) return "";
  return `Overload: the threshold asked is ${share(asked.threshold)}, in force is ${share(lowered)}, the floor is ${share(asked.floor)}. ` +
    "More images exit early, and their answers are marked as degraded, until the load falls.";
}

function floorInWords() {
  if (asked.floor === null) return "No floor: overload does not lower the threshold.";
  return `Floor ${share(asked.floor)}: overload may lower the threshold to it.`;
}

const ROWS = [
  ["Time saved", (effect) => effect.saved, percent],
  ["Compute per image", (effect) => effect.mean_ms, ms],
  ["Multiply-adds per image", (effect) => effect.mean_mmacs, millions],
  ["… relative to single-scale", (effect) => effect.mean_mmacs / model.stages.at(-1).mmacs, wholePercent],
  ["Exit early", (effect) => effect.exit_rate, percent],
  ["Accuracy", (effect) => effect, accuracy],
  ["Accuracy loss, certified at most", (effect) => effect.accuracy_drop_at_most, percent],
  ["Agreement with the last stage", (effect) => effect.agreement, percent],
  ["Agreement, certified at least", (effect) => effect.agreement_at_least, percent],
];

function accuracy({accuracy: share, accuracy_interval: interval}) {
  return interval === null ? percent(share) : `${percent(share)} (${interval.map(percent).join(" – ")})`;
}

function renderPreview(choice, expected) {
  $("preview-title").textContent = isChosen() ? `At ${share(choice)}` : "Chosen";
  const now = asked.predicted;
  const then = isChosen() ? expected?.predicted : null;
  const rows = now === null
    ? [h("tr", {}, h("td", {colspan: 3}, "The model has no calibration table: the effect of a threshold cannot be predicted."))]
    : ROWS.map(([name, of, format]) => h(
      "tr", {}, h("th", {scope: "row"}, name), h("td", {}, format(of(now))), then ? h("td", {}, format(of(then))) : h("td", {class: "none"}, "–"),
    ));
  $("preview").replaceChildren(...rows);
  $("pays").textContent = paysInWords(isChosen() ? then : now);
  $("recent").textContent = expected ? recentInWords(expected.recent) : "…";
  if (expected && !isChosen()) checks.drifted(expected.recent, expected.predicted, drift);
}

// Whether the cascade is worth it here: on this machine, with this runtime.
function paysInWords(effect) {
  if (!effect || effect.saved === null || model.stages.length === 1) return "";
  const times = `${ms(effect.mean_ms)} of compute per image; the single-scale network takes ${ms(effect.single_scale_ms)}`;
  return effect.saved > 0 ? `It pays here: ${times}.` : `It does not pay here: ${times}.`;
}

function recentInWords({images, exit_rate: rate, mean_mmacs: mmacs}) {
  if (!images) return "No image has been seen yet.";
  return `Of the latest ${count(images)} images ${percent(rate)} would exit early, at ${millions(mmacs)} multiply-adds each.`;
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
    ? {title: "mean compute per image", tick: (value) => `${value} ms`}
    : {title: "mean multiply-adds per image", tick: (value) => `${value} M`};
  const mark = (tone, name, effect) => ({
    name, tone, point: at(effect),
    words: `${name}: ${percent(effect[worth])} ${labelled ? "right" : "as the last stage"} at ${(timed ? ms : millions)(effect[cost])}`,
  });
  // The last stage's answers are taken for the single-scale network's: calibration has none of its own.
  const singleScale = (at_, worth_) => ({
    name: "single-scale", tone: "single", point: {cost: at_, worth: worth_},
    words: `single-scale: the last stage's answers at ${(timed ? ms : millions)(at_)}`,
  });
  const marks = [];
  if (single !== null) marks.push(singleScale(single, points.at(-1)[worth]));
  if (asked.predicted) marks.push(mark("now", `${share(asked.threshold)} asked`, asked.predicted));
  if (isChosen() && expected?.predicted) marks.push(mark("then", share(choice), expected.predicted));
  $("curve-title").textContent = `${labelled ? "Accuracy" : "Agreement"} against ${timed ? "time" : "cost"}, by threshold`;
  curve.show(points.map(at), single, marks, axis);
}
