// What the two passes say of a photograph, and the strip of the latest ones.

import {Refused, classify} from "./api.js";
import {bar} from "./charts.js";
import {$, h, millions, ms, percent, share, sized, sure, wholePercent} from "./dom.js";

const KEPT = 24;
const AT_ONCE = 4;
const SHOWN_LABELS = 4;

// Photographs, newest first: {file, url, answer, forced, refused, asking}. `forced` is the high pass asked for by hand.
const photographs = [];
let shown = null;
let model = null; // of /models

export function start() {
  const input = $("files");
  input.addEventListener("keydown", (event) => {
    if (event.key !== "Enter") return; // by itself it opens on the space bar alone
    event.preventDefault();
    input.click();
  });
  input.addEventListener("change", () => {
    add(input.files);
    input.value = "";
  });
  document.addEventListener("paste", (event) => {
    if (event.clipboardData.files.length) add(event.clipboardData.files);
  });
  document.addEventListener("dragover", (event) => {
    event.preventDefault();
    $("drop").classList.add("over");
  });
  document.addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) $("drop").classList.remove("over");
  });
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    $("drop").classList.remove("over");
    add(event.dataTransfer.files);
  });
  render();
}

export function use(serving) {
  model = serving;
  render();
}

async function add(files) {
  const added = [...files].map((file) => ({file, url: URL.createObjectURL(file)}));
  if (!added.length) return;
  photographs.unshift(...added);
  for (const old of photographs.splice(Math.max(KEPT, added.length))) URL.revokeObjectURL(old.url);
  shown = added[0];
  const waiting = added.slice();
  await Promise.all(Array.from({length: AT_ONCE}, async () => {
    while (waiting.length) await ask(waiting.shift());
  }));
}

// Ask the server; `force` has the high pass run whatever the low one says.
async function ask(photograph, force = false) {
  photograph.asking = true;
  render();
  try {
    const answer = await classify(photograph.file, force ? {threshold: "1"} : {});
    photograph[force ? "forced" : "answer"] = answer;
    photograph.refused = null;
    announce(`${photograph.file.name}: ${inWords(answer)}`);
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    photograph.refused = error;
    announce(`${photograph.file.name}: ${whyNot(error)}`);
  } finally {
    photograph.asking = false;
    render();
  }
}

const announce = (words) => {
  $("announcer").textContent = words;
};

const inWords = ({label, score, exit}) => `${label}, ${percent(score)}, by the ${exit} pass`;

function whyNot({status, message, retryAfter}) {
  if (status === 429) return `The server is busy: ${message}. Try again in ${retryAfter ?? 1} s.`;
  return message;
}

function render() {
  $("try").classList.toggle("empty", shown === null);
  $("result").replaceChildren(...(shown ? [picture(shown), ...outcome(shown)] : [cascade(null)]));
  $("latest").hidden = photographs.length < 2;
  $("strip").replaceChildren(...photographs.map(thumbnail));
}

// What the browser cannot draw leaves its place empty.
const image = (url) => h("img", {src: url, alt: "", error: ({target}) => target.classList.add("undrawn")});

const picture = ({file, url}) =>
  h("figure", {class: "picture"}, image(url), h("figcaption", {class: "quiet"}, file.name));

function outcome(photograph) {
  const {answer, refused, asking} = photograph;
  if (refused) {
    const again = h("button", {type: "button", class: "small", click: () => ask(photograph, Boolean(answer))}, "Try again");
    const failed = h("div", {class: "refused"}, h("p", {}, h("strong", {}, "No answer. "), whyNot(refused)), again);
    return answer ? [cascade(photograph), spent(answer), failed] : [failed];
  }
  if (!answer) return [h("div", {class: asking ? "asking" : ""}, cascade(null))];
  return [cascade(photograph), spent(answer)];
}

// Both passes, with the confidence between them; without a photograph, what they are.
function cascade(photograph) {
  const answer = photograph?.answer ?? null;
  return h("div", {class: "cascade"}, lowPass(answer), answer ? gauge(answer) : null, highPass(photograph));
}

function pass(tone, name, side, cost, ...content) {
  const head = h("header", {}, h("h3", {tabindex: "-1", id: `${tone}-pass`}, name), side, h("span", {class: "cost"}, cost));
  return h("article", {class: `pass ${tone}`}, head, ...content);
}

const pixels = (divisor) => h("span", {class: "quiet"}, model ? `${Math.floor(model.resolution / divisor)} px` : "");

function lowPass(answer) {
  const cost = costOf(model?.low_mmacs, answer?.timing_ms.low);
  const content = answer ? ranking(answer.passes.low) : h("p", {class: "quiet"}, "Every image, at half the resolution.");
  return pass("low", "Low pass", pixels(2), cost, content);
}

function highPass(photograph) {
  const {answer = null, forced = null, asking = false} = photograph ?? {};
  const ran = answer?.passes.high ?? null;
  const known = ran ?? forced?.passes?.high ?? null;
  const cost = costOf(model?.high_mmacs, (ran ? answer : forced)?.timing_ms.high);
  const head = ["high", "High pass", pixels(1), known || !answer ? cost : "not run"];
  if (!answer) {
    return pass(...head, h("p", {class: "quiet"}, "Only the unsure ones; it reuses what the low pass computed."));
  }
  if (known) return pass(...head, ranking(known), ran ? null : h("p", {class: "quiet"}, asAsked(answer, forced)));
  const button = h("button", {type: "button", class: "small", disabled: asking, click: () => askHigh(photograph)}, "Ask it all the same");
  const saved = answer.reason === "confident" ? `Not needed: ${millions(model?.high_mmacs)} multiply-adds saved.` : "Left out.";
  const element = pass(...head, h("p", {class: "saved"}, saved, " ", button));
  element.classList.add("idle");
  return element;
}

async function askHigh(photograph) {
  await ask(photograph, true);
  $("high-pass")?.focus(); // the button is gone
}

const asAsked = (answer, forced) =>
  `Asked all the same: it ${answer.label === forced.label ? "agrees" : "disagrees"} with the low pass.`;

const costOf = (mmacs, spent) => [mmacs && millions(mmacs), spent && ms(spent)].filter(Boolean).join(" · ");

function ranking(ranked) {
  const worth = ranked.filter(({score}, i) => i < 2 || score >= 0.01).slice(0, SHOWN_LABELS);
  return h("ol", {class: "ranking"}, ...worth.map(({label, score}) =>
    sized(h("li", {}, h("span", {}, label), h("span", {}, percent(score))), {share: score})));
}

function gauge(answer) {
  const {confidence, threshold, exit} = answer;
  const words = verdict(answer);
  const meter = h(
    "div", {class: `gauge ${exit}`, role: "img", "aria-label": `Confidence ${sure(confidence)}, threshold ${share(threshold)}`},
    sized(h("i"), {share: confidence}), sized(h("em", {}, h("span", {}, `threshold ${share(threshold)}`)), {at: threshold}),
  );
  if (threshold > 0.5) meter.querySelector("em").classList.add("late");
  return h("div", {class: "decision"}, meter, h("p", {class: "verdict"}, h("b", {}, `${sure(confidence)} sure`), ` · ${words}`));
}

function verdict({reason, exit, threshold}) {
  const at = share(threshold);
  return {
    confident: `above ${at}, so the low answer is final`,
    escalated: `not above ${at}, so on to the high pass`,
    deadline: "the deadline left no time for the high pass",
    brownout: `overload lowered the threshold to ${at}, so the low answer is final`,
    cached: `from the cache, as the ${exit} pass answered before`,
  }[reason] ?? reason;
}

function spent({mmacs, exit, timing_ms: time}) {
  if (!model) return "";
  const single = model.high_mmacs;
  const whole = Math.max(mmacs, model.low_mmacs + single);
  const high = exit === "high" && mmacs ? single : 0;
  const cost = `${millions(mmacs)} · ${wholePercent(mmacs / single)} of single-scale`;
  const rows = [spentRow("Multiply-adds", cost, [["low", (mmacs - high) / whole], ["high", high / whole]], single / whole)];
  const alone = usualHigh();
  const computed = time.low + time.high;
  const longest = Math.max(computed, time.low + (alone ?? 0)) || 1;
  const told = alone === null ? ms(computed) : `${ms(computed)} · single-scale about ${ms(alone)}`;
  rows.push(spentRow("Time", told, [["low", time.low / longest], ["high", time.high / longest]], alone && alone / longest));
  const way = `decoded in ${ms(time.decode)}, waited ${ms(time.queue)}, answered after ${ms(time.total)}`;
  return h("div", {class: "spent"}, ...rows, h("p", {class: "quiet"}, way));
}

// The high pass costs what the single-scale network does: the median time of those that ran for this page.
function usualHigh() {
  const times = photographs.flatMap(({answer, forced}) => [answer, forced].map((one) => one?.timing_ms.high || 0)).filter(Boolean);
  return times.length ? times.sort((a, b) => a - b)[times.length >> 1] : null;
}

function spentRow(name, words, parts, mark) {
  return h("div", {}, h("p", {}, h("b", {}, name), h("span", {}, words)), bar(parts, mark, `${name}: ${words}`));
}

function thumbnail(photograph) {
  const {file, url, answer, refused} = photograph;
  const label = answer?.label ?? (refused ? "no answer" : "…");
  const tone = answer?.exit ?? (refused ? "error" : "waiting");
  const badge = {low: "low", high: "high", error: "failed", waiting: "waiting"}[tone];
  const choose = () => {
    shown = photograph;
    render();
    $("strip").children[photographs.indexOf(photograph)].firstChild.focus();
  };
  return h("li", {}, h(
    "button", {type: "button", class: tone, "aria-pressed": String(photograph === shown), click: choose, title: file.name},
    image(url), h("span", {}, label), h("small", {}, badge),
  ));
}
