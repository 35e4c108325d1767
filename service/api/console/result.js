// What each stage says of a photograph, and the strip of the latest ones.

import {Refused, askFor, classify, whyNot} from "./api.js";
import {bar} from "./charts.js";
import {$, h, millions, ms, percent, reference, share, sized, sum, sure, tone, wholePercent} from "./dom.js";

const KEPT = 24;
const AT_ONCE = 4;
const SHOWN_LABELS = 4;
const HOPELESS = [400, 413, 415]; // the image is at fault

// Photographs, newest first: {file, url, answer, forced, refused, asking, thumbnail}. `forced` is the answer with every
// stage asked for by hand.
const photographs = [];
const known = new Map(); // models by name/version, as /models tells them: photographs outlast a switch
let shown = null;
let serving = null; // the one that is asked
let time = null; // of /stats: what the server measured

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

// `spent`: time of /stats.
export function timed(spent) {
  time = spent;
  $("time-saved")?.replaceWith(timeSaved());
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

// Ask the server; every stage runs, whatever the ones before say, where that is wanted, or an answer is there.
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
  if (focused) ($(focused) ?? $("try-again") ?? $("pass-0"))?.focus({preventScroll: true});
  $("latest").hidden = photographs.length < 2;
  photographs.forEach(refresh);
}

const image = (url) =>
  h("img", {src: url, alt: "", error: ({target}) => target.replaceWith(h("i", {class: "undrawn"}, "no preview"))});

function picture({file, url, answer}) {
  const model = modelOf(answer);
  const crop = h("span", {class: "crop", hidden: true});
  const shown = image(url);
  shown.addEventListener("load", () => {
    if (model) frame(crop, shown, model.resolution / model.resize);
  });
  const seen = model ? h("p", {class: "quiet"}, "The network sees the bright square.") : null;
  return h("figure", {class: "picture"}, h("div", {class: "frame"}, shown, crop), h("figcaption", {class: "quiet"}, file.name), seen);
}

// The network sees the central square: this part of the shorter side.
function frame(crop, {naturalWidth: width, naturalHeight: height}, part) {
  const side = part * Math.min(width, height);
  sized(crop, {width: side / width, height: side / height}).hidden = false;
}

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

// Every stage, with its confidence between it and the next; without a photograph, what they are.
function cascade(photograph) {
  const answer = photograph?.answer ?? null;
  const stages = stagesOf(answer);
  const end = answer ? stages.findIndex(({name}) => name === answer.exit) : -1;
  const decides = Math.min(end, stages.length - 2); // the last stage is asked because the one before was not sure
  return h("div", {class: "cascade"}, stages.map((stage, i) => [
    pass(photograph, stages, i, end), i <= decides ? gauge(answer, stages, i, i === decides) : null,
  ]).flat());
}

// Of a model that is not in the store any more the answer tells the names.
const stagesOf = (answer) =>
  (modelOf(answer)?.stages ?? Object.keys(answer?.passes ?? {}).map((name) => ({name})));

const capital = (name) => name.charAt(0).toUpperCase() + name.slice(1);

function pass(photograph, stages, i, end) {
  const {answer = null, forced = null} = photograph ?? {};
  const {name, resolution, mmacs} = stages[i];
  const ran = i <= end;
  const source = ran ? answer : forced;
  const cost = answer && !source ? "not run" : costOf(mmacs, source?.timing_ms[name]);
  const content = answer ? said(photograph, stages, i, ran, source?.passes[name]) : h("p", {class: "quiet"}, purpose(stages, i));
  const side = h("span", {class: "quiet"}, resolution ? `${resolution} px` : "");
  const title = h("h3", {tabindex: "-1", id: `pass-${i}`}, `${capital(name)} pass`);
  const idle = answer && !source ? "idle" : "";
  const head = h("header", {}, title, side, h("span", {class: "cost"}, cost));
  return h("article", {class: `pass ${tone(i)} ${idle}`}, head, content);
}

function purpose(stages, i) {
  if (stages.length === 1) return "Every image: the model has no early exit.";
  return i ? `Only images that the ${stages[i - 1].name} pass is unsure of.` : "Every image.";
}

function said(photograph, stages, i, ran, ranked) {
  const {answer, forced, asking = false} = photograph;
  if (ranked) return [ranking(ranked), ran ? null : h("p", {class: "quiet"}, asAsked(answer, ranked))];
  const model = modelOf(answer);
  const saved = answer.reason === "confident" ? `Not needed: ${millions(stages[i].mmacs)} multiply-adds saved.` : "Skipped.";
  const offered = i === stages.length - 1 && model === serving && !forced;
  const button = h(
    "button", {type: "button", class: "small", id: "ask-last", "aria-disabled": asking && "true", click: () => asking || askEveryStage(photograph, i)},
    "Run it anyway",
  );
  return h("p", {class: "saved"}, saved, " ", offered ? button : null);
}

async function askEveryStage(photograph, last) {
  await askAll([photograph]);
  if (photograph.forced) $(`pass-${last}`)?.focus(); // the button is gone
}

const asAsked = (answer, ranked) =>
  `Run anyway: it ${answer.label === ranked[0].label ? "agrees" : "disagrees"} with the ${answer.exit} pass.`;

const costOf = (mmacs, spent) => [mmacs && millions(mmacs), spent && ms(spent)].filter(Boolean).join(" · ");

function ranking(ranked) {
  const worth = ranked.filter(({score}, i) => i < 2 || score >= 0.01).slice(0, SHOWN_LABELS);
  return h("ol", {class: "ranking"}, ...worth.map(({label, score}) =>
    sized(h("li", {}, h("span", {}, label), h("span", {}, percent(score))), {share: score})));
}

// How sure stage `i` was, and what followed; `isLast` of those that could end the photograph's way.
function gauge(answer, stages, i, isLast) {
  const {threshold} = answer;
  const confidence = answer.passes[stages[i].name][0].score;
  const words = isLast ? verdict(answer, stages, i) : onward(answer, stages, i);
  const ended = isLast && answer.exit === stages[i].name;
  const meter = h(
    "div", {class: `gauge ${tone(ended ? i : i + 1)}`, role: "img", "aria-label": `Confidence ${sure(confidence)}, threshold ${share(threshold)}`},
    sized(h("i"), {share: confidence}), sized(h("em", {}, h("span", {}, `threshold ${share(threshold)}`)), {at: threshold}),
  );
  if (threshold > 0.5) meter.querySelector("em").classList.add("late");
  return h("div", {class: "decision"}, meter, h("p", {class: "verdict"}, h("b", {}, `${sure(confidence)} sure`), ` · ${words}`));
}

const onward = ({threshold}, stages, i) => `not above ${share(threshold)}, so it continues to the ${stages[i + 1].name} pass`;

function verdict(answer, stages, i) {
  const {reason, exit, threshold} = answer;
  const at = share(threshold);
  return {
    confident: `above ${at}, so the ${exit} answer is final`,
    escalated: onward(answer, stages, i),
    deadline: `the deadline left no time for the ${stages[i + 1].name} pass`,
    brownout: `overload lowered the threshold to ${at}, so the ${exit} answer is final`,
    cached: `a cached answer of the ${exit} pass`,
  }[reason] ?? reason;
}

function spent(answer) {
  const {mmacs, timing_ms: time} = answer;
  const model = modelOf(answer);
  if (!model) return "";
  const {stages} = model;
  const last = stages.at(-1);
  const times = stages.map(({name}) => time[name]);
  const computed = sum(times);
  const whole = sum(stages.map((stage) => stage.mmacs));
  const costs = stages.map((stage) => (mmacs && time[stage.name] ? stage.mmacs : 0));
  const part = stages.length > 1 ? ` · ${wholePercent(mmacs / last.mmacs)} of single-scale` : "";
  const parts = (values, all) => values.map((value, i) => [tone(i), value / all]);
  const way = `decoded in ${ms(time.decode)}, waited ${ms(time.queue)}, answered after ${ms(time.total)}`;
  return h(
    "div", {class: "spent"},
    timeSaved(),
    spentRow("This image's batches took", ms(computed), parts(times, computed || 1), null),
    spentRow("Multiply-adds", millions(mmacs) + part, parts(costs, whole), last.mmacs / whole),
    h("p", {class: "quiet"}, way),
  );
}

// As the server measures it, over all its images: one image of a batch takes as long as the batch, so its own time
// cannot stand beside the single-scale network's.
function timeSaved() {
  const {saved = null, mean_ms: mean, single_scale_ms: single} = time ?? {};
  if (saved === null) return h("div", {id: "time-saved"});
  const longest = Math.max(mean, single);
  const words = `${wholePercent(saved)} · ${ms(mean)} per image, single-scale ${ms(single)}`;
  const row = spentRow("Time saved, all images", words, [[tone(0), mean / longest]], single / longest);
  row.id = "time-saved";
  return row;
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
  const state = answer ? "answered" : refused ? "error" : "waiting";
  const stage = answer ? stagesOf(answer).findIndex(({name}) => name === answer.exit) : -1;
  button.className = stage < 0 ? state : `${state} ${tone(stage)}`;
  button.ariaPressed = String(photograph === shown);
  button.querySelector("span").textContent = answer?.label ?? (refused ? "no answer" : "…");
  button.querySelector("small").textContent = answer?.exit ?? (refused ? "failed" : "waiting");
}
