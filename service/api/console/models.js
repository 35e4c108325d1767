// The store: what is served, and what could be.

import {Refused, model as meant, patch, whyNot} from "./api.js";
import {bar} from "./charts.js";
import {$, count, h, millions, reference, sum, tone} from "./dom.js";

let onSwitch = () => {};
let trial = null;

// `whenSwitched(to, from)`: the names of both models. `tries`: what begins a shadow.
export function start(whenSwitched, tries) {
  onSwitch = whenSwitched;
  trial = tries;
}

// Say which one is tried: {model: name/version, kind}, or null.
export function mark(tried) {
  for (const one of $("store").children) {
    const isTried = one.querySelector("h3").textContent === tried?.model;
    one.classList.toggle("tried", isTried);
    one.querySelector(".kind").textContent = isTried ? tried.kind : "";
  }
}

// models: of /models; served: of /config, the default first.
export function show(models, served) {
  const most = Math.max(...models.map(({stages}) => sum(stages.map(({mmacs}) => mmacs))));
  const rowInUse = [...$("store").children].findIndex((one) => one.contains(document.activeElement));
  $("store").replaceChildren(...models.map((model) => row(model, most, replacedBy(model, served))));
  $("store").children[rowInUse]?.querySelector("h3").focus();
}

// A model takes the place of the one of its name, or else of the one that the page is about.
const replacedBy = ({name}, served) =>
  served.find((one) => one.name === name) ?? served.find((one) => one.name === meant()) ?? served[0];

function row(model, most, instead) {
  const {serving, network, classes, resolution, stages, dataset} = model;
  const facts = [network, `${resolution} px`, `${count(classes.length)} classes`, dataset && `trained on ${dataset}`];
  const costs = stages.map(({name, mmacs}) => `${name} ${millions(mmacs)}`).join(" · ");
  const parts = stages.map(({mmacs}, i) => [tone(i), mmacs / most]);
  const checked = model.calibration_images ? `calibrated on ${count(model.calibration_images)} images` : "not calibrated";
  return h(
    "li", {class: serving ? "serving" : ""},
    h("div", {}, h("div", {class: "named"}, h("h3", {tabindex: "-1"}, reference(model)), h("span", {class: "kind"})), h("p", {class: "quiet"}, facts.filter(Boolean).join(" · "))),
    h("div", {}, h("p", {}, costs), bar(parts, null), h("p", {class: "quiet"}, checked)),
    ...(serving ? [h("span", {class: "badge"}, "serving")] : offer(model, instead)),
  );
}

// A button, and the question that it leads to: the switch is everybody's.
function offer(model, instead) {
  const wanted = reference(model);
  const first = h("button", {type: "button", class: "small", "aria-label": `Serve this: ${wanted}`, click: () => ask(true)}, "Serve this");
  const yes = h("button", {type: "button", class: "small", click: () => serve(yes, model, instead, () => ask(false))}, `Serve ${wanted}`);
  const behind = h("button", {type: "button", class: "small", click: () => shadow(behind, wanted, instead, () => ask(false))}, "Start a shadow first");
  const no = h("button", {type: "button", class: "plain", click: () => ask(false)}, "Cancel");
  const question = h(
    "div", {class: "sure", role: "group", "aria-label": `Serve ${wanted}?`, hidden: true},
    h("p", {class: "quiet"}, `For all requests, instead of ${reference(instead)}?`), yes, no, behind,
  );
  function ask(isAsked) {
    first.hidden = isAsked;
    question.hidden = !isAsked;
    (isAsked ? yes : first).focus();
  }
  return [question, first];
}

async function shadow(button, wanted, instead, done) {
  if (button.ariaDisabled === "true") return;
  button.ariaDisabled = "true";
  say(`Loading ${wanted} …`);
  try {
    await trial.shadow(wanted, instead.name);
    say(`${wanted} runs as a shadow.`);
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    say(`${wanted} was not started. ${whyNot(error)}`, true);
  } finally {
    button.ariaDisabled = null;
    done();
  }
}

async function serve(button, model, instead, giveUp) {
  if (button.ariaDisabled === "true") return;
  const wanted = reference(model);
  button.ariaDisabled = "true"; // `disabled` would lose the focus
  say(`Loading ${wanted} …`);
  try {
    await patch(`config/model?${new URLSearchParams({model: instead.name})}`, {model: wanted});
    say(`Serving ${wanted}.`);
    onSwitch(model.name, instead.name);
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    say(`${wanted} is not served. ${whyNot(error)}`, true);
    giveUp();
  } finally {
    button.ariaDisabled = null;
  }
}

function say(words, isError = false) {
  $("switched").textContent = words;
  $("switched").classList.toggle("error", isError);
}
