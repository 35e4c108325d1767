// What is tried beside the model that is served: how both compare, and what becomes of it.

import {Refused, call, patch, whyNot} from "./api.js";
import {$, count, h, millions, ms, percent, reference, share} from "./dom.js";

let known = null; // GET /config/model, the latest that came
let etag = null;
let onEnd = () => {};

// `whenPromoted(to, from)`: the names of both models.
export function start(whenPromoted) {
  onEnd = whenPromoted;
}

export const isOn = () => known?.trial != null;

// What is tried, as name/version and in a word; null for nothing.
export const tried = () => (isOn() ? {model: reference(known.trial.model), kind: known.trial.kind} : null);

// Look again if the config is another one than was seen, or something is being counted.
export async function follow(version) {
  if (known && known.version >= version && !isOn()) return;
  take(await call("config/model", {ask: false}));
}

// Try a model behind the answers of the served one of that name. Throws Refused.
export async function shadow(model, beside) {
  take(await patch(`config/model?${new URLSearchParams({model: beside})}`, {model, shadow: true}));
  say("");
}

// What becomes of what is tried: gives whether that was done.
async function end(body) {
  try {
    take(await patch("config/model", body, {"If-Match": etag}));
    say("");
    return true;
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    say(`Not done. ${error.status === 412 ? "Somebody changed the config meanwhile: check it and try again." : whyNot(error)}`, true);
    return false;
  }
}

function take({body, etag: tag}) {
  const before = known;
  known = body;
  etag = tag;
  render(before);
}

const ROWS = [
  ["Exit early", (side) => percent(side.exit_rate)],
  ["Multiply-adds per image", (side) => millions(side.mean_mmacs)],
  ["Compute per image", (side) => ms(side.mean_ms)],
  ["p50 without waiting", (side) => ms(side.latency_ms.p50)],
  ["p99 without waiting", (side) => ms(side.latency_ms.p99)],
  ["Errors", (side) => count(side.errors)],
];

function render(before) {
  const {trial, ended} = known;
  $("trial").hidden = !trial && !ended;
  $("trial-on").hidden = !trial;
  $("ended").textContent = ended ? endedInWords(ended) : "";
  $("ended").hidden = !ended || trial !== null;
  $("trial-kind").textContent = trial ? kindInWords(trial) : "";
  if (!trial) return;
  $("agreement").textContent = agreementInWords(trial);
  $("guard").textContent = guardInWords(trial);
  $("trial-served").textContent = reference(trial.served.model);
  $("trial-tried").textContent = reference(trial.tried.model);
  $("compared").replaceChildren(...ROWS.map(([name, of]) =>
    h("tr", {}, h("th", {scope: "row"}, name), h("td", {}, of(trial.served)), h("td", {}, of(trial.tried)))));
  if (before?.trial?.began !== trial.began) $("trial-act").replaceChildren(...acts(trial));
}

const kindInWords = ({model, beside, kind, share: part}) => {
  const images = `${share(100 * part)} % of the images`;
  const how = kind === "canary" ? `answers ${images} of` : `runs in the background on ${images} of`;
  return `${reference(model)} ${how} ${reference(beside)}`;
};

function agreementInWords({images, skipped, agreement, agreement_at_least: least}) {
  const missed = skipped ? ` There was no time to compare ${count(skipped)} more.` : "";
  if (!images) return `No image was compared yet.${missed}`;
  return `They agree on ${percent(agreement)} of ${count(images)} images; on at least ${percent(least)} with 95 % confidence.${missed}`;
}

function guardInWords({max_disagreement: most, kind}) {
  if (most === null) return `No guard: the ${kind} continues until somebody ends it.`;
  return `The guard cancels it if, with 95 % confidence, more than ${share(100 * most)} % differ or fail.`;
}

function endedInWords({model, outcome, why}) {
  const what = {promoted: "was promoted", cancelled: "was cancelled"}[outcome] ?? "was cancelled by its guard";
  return `The latest trial, of ${reference(model)}, ${what}: ${why}.`;
}

// Either button leads to a question: what it does is everybody's.
function acts({model, beside}) {
  const promote = () => end({promote: true}).then((done) => done && onEnd(model.name, beside.name));
  return [
    ask(`Promote ${reference(model)}`, `Serve it for all requests, instead of ${reference(beside)}?`, promote, "small"),
    ask("Cancel it", `Let ${reference(beside)} answer everything?`, () => end({cancel: true}), "plain"),
  ];
}

function ask(name, words, act, look) {
  const first = h("button", {type: "button", class: look, click: () => show(true)}, name);
  const yes = h("button", {type: "button", class: "small", click: () => act().then(() => show(false))}, "Yes");
  const no = h("button", {type: "button", class: "plain", click: () => show(false)}, "No");
  const question = h("span", {class: "sure", role: "group", "aria-label": words, hidden: true}, words, " ", yes, no);
  function show(isAsked) {
    first.hidden = isAsked;
    question.hidden = !isAsked;
    (isAsked ? yes : first).focus();
  }
  return h("span", {}, first, question);
}

function say(words, isError = false) {
  $("trial-outcome").textContent = words;
  $("trial-outcome").classList.toggle("error", isError);
}
