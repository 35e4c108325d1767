// What the two passes say of a photograph, and the strip of the latest ones.

import {Refused, askFor, classify, whyNot} from "./api.js";
import {bar} from "./charts.js";
import {$, h, millions, ms, percent, reference, share, sized, sure, wholePercent} from "./dom.js";

const KEPT = 24;
const AT_ONCE = 4;
const SHOWN_LABELS = 4;
const HOPELESS = [400, 413, 415]; // the image is at fault

// Photographs, newest first: {file, url, answer, forced, refused, asking, thumbnail}. `forced` is the high pass asked for by hand.
const photographs = [];
const known = new Map(); // models by name/version, as /models tells them: photographs outlast a switch
let shown = null;
let serving = null; // the one that is asked

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
  document.addEventListener("key", () => askAll(photographs.filter(({refused}) => refused?.status === 401)));
  render();
}

export function use(model, models) {
  for (const one of models) known.set(reference(one), one);
  serving = model;
  render();
}

const modelOf = (answer) => (answer ? known.get(reference(answer.model)) : serving);

function add(files) {
  const added = [...files].map((file) => thumbnailed({file, url: URL.createObjectURL(file)}));
  if (!added.length) return;
  photographs.unshift(...added);
  $("strip").prepend(...added.map(({thumbnail}) => thumbnail));
  for (const old of photographs.splice(Math.max(KEPT, added.length))) {
    URL.revokeObjectURL(old.url);
    old.thumbnail.remove();
  }
  shown = added[0];
  askAll(added);
}

// A few at a time. Where a key is needed and a person declines to give it, the rest is not asked for.
async function askAll(wanted) {
  const waiting = [...wanted];
  let locked = null;
  await Promise.all(Array.from({length: AT_ONCE}, async () => {
    while (waiting.length && !locked) {
      const {refused} = await ask(waiting.shift());
      if (refused?.status === 401 && !locked && !(await askFor("api", whyNot(refused)))) locked = refused;
    }
  }));
  for (const photograph of waiting) photograph.refused = locked;
  render();
}

// Ask the server; the high pass runs whatever the low one says where that is wanted, or an answer is there.
async function ask(photograph, force = Boolean(photograph.answer)) {
  photograph.asking = true;
  photograph.refused = null;
  render();
  try {
    const answer = await classify(photograph.file, force ? {threshold: "1"} : {});
    photograph[force ? "forced" : "answer"] = answer;
    announce(`${photograph.file.name}: ${inWords(answer)}`);
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    photograph.refused = error;
    announce(`${photograph.file.name}: ${whyNot(error)}`);
  } finally {
    photograph.asking = false;
    render();
  }
  return photograph;
}

const announce = (words) => {
  $("announcer").textContent = words;
};

const inWords = ({label, score, exit}) => `${label}, ${percent(score)}, by the ${exit} pass`;

// The focus stays where it was, or goes to what came instead.
function render() {
  const focused = document.activeElement?.closest("#result *")?.id;
  $("try").classList.toggle("empty", shown === null);
  $("result").replaceChildren(...(shown ? [picture(shown), ...outcome(shown)] : [cascade(null)]));
  if (focused) ($(focused) ?? $("try-again") ?? $("low-pass"))?.focus({preventScroll: true});
  $("latest").hidden = photographs.length < 2;
  photographs.forEach(refresh);
}

const image = (url) =>
  h("img", {src: url, alt: "", error: ({target}) => target.replaceWith(h("i", {class: "undrawn"}, "no preview"))});

const picture = ({file, url}) =>
  h("figure", {class: "picture"}, image(url), h("figcaption", {class: "quiet"}, file.name));

function outcome(photograph) {
  const {answer, refused, asking} = photograph;
  if (refused) {
    const again = h("button", {type: "button", class: "small", id: "try-again", click: () => askAll([photograph])}, "Try again");
    const failed = h(
      "div", {class: "refused"},
      h("p", {}, h("strong", {}, "No answer. "), whyNot(refused)), HOPELESS.includes(refused.status) ? null : again,
    );
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

const pixels = (model, divisor) => h("span", {class: "quiet"}, model ? `${Math.floor(model.resolution / divisor)} px` : "");

function lowPass(answer) {
  const model = modelOf(answer);
  const cost = costOf(model?.low_mmacs, answer?.timing_ms.low);
  const content = answer ? ranking(answer.passes.low) : h("p", {class: "quiet"}, "Every image, at half the resolution.");
  return pass("low", "Low pass", pixels(model, 2), cost, content);
}

function highPass(photograph) {
  const {answer = null, forced = null, asking = false} = photograph ?? {};
  const model = modelOf(answer);
  const ran = answer?.passes.high ?? null;
  const high = ran ?? forced?.passes.high ?? null;
  const cost = costOf(model?.high_mmacs, (ran ? answer : forced)?.timing_ms.high);
  const head = ["high", "High pass", pixels(model, 1), high || !answer ? cost : "not run"];
  if (!answer) {
    return pass(...head, h("p", {class: "quiet"}, "Only the unsure ones; it reuses what the low pass computed."));
  }
  if (high) return pass(...head, ranking(high), ran ? null : h("p", {class: "quiet"}, asAsked(answer, forced)));
  const button = h(
    "button", {type: "button", class: "small", id: "ask-high", "aria-disabled": asking && "true", click: () => asking || askHigh(photograph)},
    "Ask it all the same",
  );
  const saved = answer.reason === "confident" ? `Not needed: ${millions(model?.high_mmacs)} multiply-adds saved.` : "Left out.";
  const element = pass(...head, h("p", {class: "saved"}, saved, " ", model === serving ? button : null));
  element.classList.add("idle");
  return element;
}

async function askHigh(photograph) {
  await askAll([photograph]);
  if (photograph.forced) $("high-pass")?.focus(); // the button is gone
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

function spent(answer) {
  const {mmacs, exit, timing_ms: time} = answer;
  const model = modelOf(answer);
  if (!model) return "";
  const single = model.high_mmacs;
  const whole = Math.max(mmacs, model.low_mmacs + single);
  const high = exit === "high" && mmacs ? single : 0;
  const cost = `${millions(mmacs)} · ${wholePercent(mmacs / single)} of single-scale`;
  const rows = [spentRow("Multiply-adds", cost, [["low", (mmacs - high) / whole], ["high", high / whole]], single / whole)];
  const alone = leastHigh(model);
  const computed = time.low + time.high;
  const longest = Math.max(computed, time.low + (alone ?? 0)) || 1;
  const told = alone === null ? ms(computed) : `${ms(computed)} · single-scale about ${ms(alone)}`;
  rows.push(spentRow("Time", told, [["low", time.low / longest], ["high", time.high / longest]], alone && alone / longest));
  const way = `decoded in ${ms(time.decode)}, waited ${ms(time.queue)}, answered after ${ms(time.total)}`;
  return h("div", {class: "spent"}, ...rows, h("p", {class: "quiet"}, way));
}

// The high pass costs what the single-scale network does: the least time that it took for this page, as one of many
// in a batch takes as long as the batch.
function leastHigh(model) {
  const answers = photographs.flatMap(({answer, forced}) => [answer, forced]).filter((one) => one?.timing_ms.high);
  const times = answers.filter((one) => modelOf(one) === model).map((one) => one.timing_ms.high);
  return times.length ? Math.min(...times) : null;
}

function spentRow(name, words, parts, mark) {
  return h("div", {}, h("p", {}, h("b", {}, name), h("span", {}, words)), bar(parts, mark));
}

// Its place in the strip is kept, so that the focus may stay on it while others are answered.
function thumbnailed(photograph) {
  const choose = () => {
    shown = photograph;
    render();
  };
  photograph.thumbnail = h("li", {}, h(
    "button", {type: "button", click: choose, title: photograph.file.name}, image(photograph.url), h("span"), h("small"),
  ));
  return photograph;
}

function refresh(photograph) {
  const {answer, refused, thumbnail} = photograph;
  const button = thumbnail.firstChild;
  const tone = answer?.exit ?? (refused ? "error" : "waiting");
  button.className = tone;
  button.ariaPressed = String(photograph === shown);
  button.querySelector("span").textContent = answer?.label ?? (refused ? "no answer" : "…");
  button.querySelector("small").textContent = tone === "error" ? "failed" : tone;
}
