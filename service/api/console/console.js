// The page: what it loads, and what it asks once a second.

import {Refused, askFor, call} from "./api.js";
import {LiveChart} from "./charts.js";
import {$, count, millions, ms, percent, wholePercent} from "./dom.js";
import * as models from "./models.js";
import * as result from "./result.js";
import * as threshold from "./threshold.js";

const POLL_MS = 1000;
const WINDOW = 10; // seconds that a rate is taken over

const charts = {
  exit: new LiveChart("Exit early", {series: [{name: "", tone: "low"}], format: percent, tick: wholePercent, top: 1}),
  cost: new LiveChart("Multiply-adds an image", {series: [{name: "", tone: "high"}], format: millions, marked: "single-scale"}),
  latency: new LiveChart("Latency", {series: [{name: "p50", tone: "low"}, {name: "p99", tone: "high"}], format: ms}),
  queue: new LiveChart("In flight", {
    series: [{name: "in all", tone: "ink"}, {name: "high queue", tone: "high"}], format: count, least: 4,
  }),
};

let serving = ""; // name/version that the page was filled for
let snapshots = []; // the latest of /stats, without a gap
let timer = 0;

async function poll() {
  clearTimeout(timer);
  try {
    const [stats] = await Promise.all([call("stats", {ask: false}), ready()]);
    await take(stats.body);
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    trouble(error);
  } finally {
    if (!document.hidden) timer = setTimeout(poll, POLL_MS);
  }
}

async function ready() {
  try {
    await call("health/ready", {ask: false});
    state("ready", "ready");
    notice("");
  } catch (error) {
    if (!(error instanceof Refused) || error.status !== 503) throw error;
    state("unready", "not ready");
    notice(`The server takes no work: ${error.message}.`);
  }
}

async function take(stats) {
  const name = `${stats.model.name}/${stats.model.version}`;
  if (name !== serving) {
    await fill(stats);
    serving = name;
  } else if (stats.config_version !== threshold.version()) {
    await threshold.load();
  }
  threshold.loweredTo(stats.effective_threshold);
  follow(stats);
}

// Everything that changes with the model alone.
async function fill(stats) {
  const {body} = await call("models", {ask: false});
  const {name, version} = stats.model;
  const model = body.models.find((one) => one.name === name && one.version === version);
  $("serving").textContent = `${name}/${version} · ${stats.runtime} ${stats.precision} · ${stats.device}`;
  $("classes").textContent = told(model.classes);
  charts.cost.at(stats.single_scale_mmacs);
  charts.cost.top = stats.single_scale_mmacs + stats.low_mmacs;
  snapshots = [];
  models.show(body.models);
  result.use(model);
  threshold.use(model);
  await threshold.load();
}

function told(classes) {
  const named = classes.slice(0, 10).join(", ");
  return `It knows ${classes.length > 10 ? `${count(classes.length)} classes: ${named}, …` : named}, and takes anything for one of them.`;
}

// The server tells totals since its start; rates are of the last seconds.
function follow(stats) {
  if (snapshots.length && stats.images < snapshots.at(-1).images) snapshots = []; // it was started anew
  if (stats.images !== snapshots.at(-1)?.images) threshold.look();
  snapshots = [...snapshots, stats].slice(-WINDOW - 1);
  const [first] = snapshots;
  const images = stats.images - first.images;
  const mean = (figure) => (images ? (stats[figure] * stats.images - first[figure] * first.images) / images : null);
  charts.exit.push([clamped(mean("exit_rate"))]);
  charts.cost.push([mean("mean_mmacs")]);
  charts.latency.push([stats.latency_ms.p50, stats.latency_ms.p99]);
  charts.queue.push([stats.queue.images_in_flight, stats.queue.high]);
  $("totals").textContent = stats.images
    ? ` · ${count(stats.images)} images since the start, ${percent(stats.exit_rate)} of them early, ${millions(stats.mean_mmacs)} each`
    : " · no image yet";
}

const clamped = (rate) => (rate === null ? null : Math.min(1, Math.max(0, rate)));

function trouble(error) {
  snapshots = [];
  if (error.status === 0) {
    state("gone", "no answer");
    notice("The server does not answer. The page tries again every second.");
  } else if (error.status === 401 || error.status === 403) {
    state("unready", "key needed");
    notice(error.message, true);
  } else {
    state("unready", "trouble");
    notice(error.message);
  }
}

function state(name, words) {
  const place = $("state");
  if (place.dataset.state === name && place.textContent === words) return; // said once, not every second
  place.dataset.state = name;
  place.textContent = words;
}

function notice(words, keyNeeded = false) {
  const [text, button] = $("notice").children;
  if (text.textContent !== words) text.textContent = words;
  button.hidden = !keyNeeded;
  $("notice").hidden = !words;
}

$("charts").replaceChildren(...Object.values(charts).map((chart) => chart.element));
$("notice").querySelector("button").addEventListener("click", async () => {
  if (await askFor("api")) poll();
});
document.addEventListener("visibilitychange", () => {
  clearTimeout(timer);
  if (document.hidden) return;
  snapshots = [];
  poll();
});
result.start();
threshold.start();
models.start(() => {
  serving = ""; // the next poll fills the page anew
});
poll();
