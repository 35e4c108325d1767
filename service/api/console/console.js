// The page: what it loads, and what it asks once a second.

import {Refused, about, askFor, call, mean, model as meant, whyNot} from "./api.js";
import {LiveChart} from "./charts.js";
import * as checks from "./checks.js";
import {$, count, h, millions, money, ms, percent, reference, sum, wholePercent} from "./dom.js";
import * as models from "./models.js";
import * as result from "./result.js";
import * as threshold from "./threshold.js";
import * as trial from "./trial.js";

const POLL_MS = 1000;
const WINDOW = 10; // seconds that "now" is

const charts = {
  saved: new LiveChart("Time saved", {series: [{name: "", tone: "tone-0"}], format: percent, tick: wholePercent, top: 1}),
  time: new LiveChart("Compute per image", {series: [{name: "", tone: "tone-0"}], format: ms, least: 0.01, marked: "single-scale"}),
  cost: new LiveChart("Multiply-adds per image", {series: [{name: "", tone: "tone-1"}], format: millions, marked: "single-scale"}),
  exit: new LiveChart("Exit early", {series: [{name: "", tone: "tone-0"}], format: percent, tick: wholePercent, top: 1}),
  latency: new LiveChart("Latency, last minute", {series: [{name: "p50", tone: "tone-0"}, {name: "p99", tone: "tone-1"}], format: ms}),
  queue: new LiveChart("Images in flight", {
    series: [{name: "in all", tone: "ink"}, {name: "escalated", tone: "tone-1"}], format: count, least: 4,
  }),
};

let stages = []; // of the model that the page is about, cheapest first
let filledFor = []; // the model that the page is about, then all that are served, as name/version
let snapshots = []; // the latest of /stats, without a gap
let timer = 0;
let polls = 0;

async function poll() {
  clearTimeout(timer);
  const mine = ++polls;
  try {
    const [stats, unready] = await Promise.all([call(about("stats"), {ask: false}), whyUnready()]);
    if (mine !== polls) return; // another was begun meanwhile, perhaps about another model
    await take(stats.body);
    state(unready ? "unready" : "ready", unready ? "not ready" : "ready");
    notice(unready ? `The server does not accept work. ${unready}` : "");
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    if (mine === polls) trouble(error);
  } finally {
    if (mine === polls && !document.hidden) timer = setTimeout(poll, POLL_MS);
  }
}

async function whyUnready() {
  try {
    await call("health/ready", {ask: false});
    return null;
  } catch (error) {
    if (!(error instanceof Refused) || error.status !== 503) throw error;
    return whyNot(error);
  }
}

async function take(stats) {
  const isKnown = stats.config_version === threshold.version() && stats.threshold === threshold.at();
  if (reference(stats.model) !== filledFor[0] || !isKnown) {
    const {body: config} = await call("config", {ask: false});
    const wanted = [stats.model, ...config.models].map(reference);
    if (wanted.join() === filledFor.join()) await threshold.load();
    else {
      await fill(stats, config.models);
      filledFor = wanted;
    }
  }
  await trial.follow(stats.config_version);
  models.mark(trial.tried());
  threshold.loweredTo(stats.effective_threshold);
  threshold.watch(stats);
  follow(stats);
}

// Everything that changes with the models alone.
async function fill(stats, served) {
  const {body} = await call("models", {ask: false});
  const model = body.models.find((one) => reference(one) === reference(stats.model));
  $("serving").textContent = `${reference(model)} · ${stats.runtime} ${stats.precision} · ${stats.device}`;
  $("classes").textContent = told(model.classes);
  $("several").hidden = served.length < 2;
  $("model").replaceChildren(...served.map(({name}) => h("option", {selected: name === model.name}, name)));
  stages = model.stages;
  charts.cost.at(stats.single_scale_mmacs);
  charts.cost.top = sum(stages.map(({mmacs}) => mmacs));
  snapshots = [];
  models.show(body.models, served);
  result.use(model, body.models);
  threshold.use(model);
  await threshold.load();
}

function told(classes) {
  const named = classes.slice(0, 10).join(", ");
  return `It knows ${classes.length > 10 ? `${count(classes.length)} classes: ${named}, …` : named}, and gives one of them for any picture.`;
}

// The server tells totals since its start; rates are of the last seconds.
function follow(stats) {
  if (snapshots.length && stats.images < snapshots.at(-1).images) snapshots = []; // it was started anew
  if (stats.images !== snapshots.at(-1)?.images) threshold.look();
  snapshots = [...snapshots, stats].slice(-WINDOW - 1);
  const [first] = snapshots;
  const images = stats.images - first.images;
  const mean = (figure) => meanSince(first.images, first[figure], stats.images, stats[figure]);
  const time = (figure) => meanSince(first.time.images, first.time[figure], stats.time.images, stats.time[figure]);
  const [spent, single] = [time("mean_ms"), time("single_scale_ms")];
  charts.saved.push([spent !== null && single ? 1 - spent / single : null]);
  charts.time.at(single ?? stats.time.single_scale_ms);
  charts.time.push([spent]);
  charts.exit.push([clamped(mean("exit_rate"))]);
  charts.cost.push([mean("mean_mmacs")]);
  charts.latency.push(images ? [stats.latency_ms.p50, stats.latency_ms.p99] : []); // known for a minute, but no news
  charts.queue.push([stats.queue.images_in_flight, sum(stages.slice(1).map(({name}) => stats.queue[name]))]);
  result.timed(stats.time);
  checks.audited(stats.audit);
  checks.told(stats.feedback);
  $("totals").textContent = stats.images ? totals(stats) : " · no image yet";
}

// The mean of a figure over the images since a snapshot, from its means over all images then and now; null if unknown.
function meanSince(imagesThen, then, images, now) {
  return images > imagesThen && now !== null ? (now * images - (then ?? 0) * imagesThen) / (images - imagesThen) : null;
}

function totals({images, time, exit_rate: rate, mean_mmacs: mmacs, last_minute: minute, since_change: since}) {
  const facts = [`${count(images)} images since the start`];
  if (time.saved !== null) facts.push(`${wholePercent(time.saved)} of the single-scale time saved`);
  facts.push(`${percent(rate)} exited early`, `${millions(mmacs)} each`);
  if (time.cost_per_million !== null) {
    const single = time.single_scale_cost_per_million;
    const instead = single === null ? "" : ` (single-scale ${money(single)})`;
    facts.push(`a million images cost ${money(time.cost_per_million)}${instead}`);
  }
  const rates = [["in the last minute", minute], ["since the last threshold change", since]]
    .filter(([, lately]) => lately.images)
    .map(([when, lately]) => `${when} ${percent(lately.exit_rate)} exited early at ${millions(lately.mean_mmacs)}`);
  return ` · ${[facts.join(", "), ...rates].join("; ")}`;
}

const clamped = (rate) => (rate === null ? null : Math.min(1, Math.max(0, rate)));

function trouble(error) {
  snapshots = [];
  if (error.status === 404 && meant()) {
    turnTo(null); // the model is not served any more
  } else if (error.status === 0) {
    state("gone", "no answer");
    notice("The server does not answer. The page tries again every second.");
  } else if (error.status === 401 || error.status === 403) {
    state("unready", "key needed");
    notice(whyNot(error), true);
  } else {
    state("unready", "trouble");
    notice(whyNot(error));
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
  if (!keyNeeded && document.activeElement === button) $("files").focus(); // the button goes
  if (text.textContent !== words) text.textContent = words;
  button.hidden = !keyNeeded;
  $("notice").hidden = !words;
}

$("charts").replaceChildren(...Object.values(charts).map((chart) => chart.element));
// Turn the page to the model of this name; null for the server's default.
function turnTo(name) {
  mean(name);
  filledFor = [];
  poll();
}

$("notice").querySelector("button").addEventListener("click", () => askFor("api", $("notice").firstElementChild.textContent));
$("model").addEventListener("change", ({target}) => turnTo(target.value));
document.addEventListener("key", poll);
document.addEventListener("visibilitychange", () => {
  clearTimeout(timer);
  if (document.hidden) return;
  snapshots = [];
  poll();
});
result.start();
threshold.start();
const exchanged = (to, from) => turnTo(meant() === from ? to : meant());
models.start(exchanged, trial);
trial.start(exchanged);
poll();
