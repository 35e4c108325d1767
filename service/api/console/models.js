// The store: what is served, and what could be.

import {Refused, patch} from "./api.js";
import {bar} from "./charts.js";
import {$, count, h, millions, share} from "./dom.js";

let onSwitch = () => {};

export function start(whenSwitched) {
  onSwitch = whenSwitched;
}

export function show(models) {
  const most = Math.max(...models.map((model) => model.low_mmacs + model.high_mmacs));
  $("store").replaceChildren(...models.map((model) => row(model, most)));
}

function row(model, most) {
  const {name, version, serving, network, classes, resolution, low_mmacs: low, high_mmacs: high, dataset} = model;
  const facts = [network, `${resolution} px`, `${count(classes.length)} classes`, dataset && `trained on ${dataset}`];
  const costs = low ? `low ${millions(low)} · high ${millions(high)}` : `single-scale ${millions(high)}`;
  const threshold = model.default_threshold === null ? null : `default threshold ${share(model.default_threshold)}`;
  const checked = model.calibration_images ? `calibrated on ${count(model.calibration_images)} images` : "not calibrated";
  return h(
    "li", {class: serving ? "serving" : ""},
    h("div", {}, h("h3", {}, `${name}/${version}`), h("p", {class: "quiet"}, facts.filter(Boolean).join(" · "))),
    h("div", {}, h("p", {}, costs), bar([["low", low / most], ["high", high / most]], null, costs),
      h("p", {class: "quiet"}, [threshold, checked].filter(Boolean).join(" · "))),
    serving ? h("span", {class: "badge"}, "serving") : h("button", {type: "button", class: "small", click: serve(model)}, "Serve this"),
  );
}

const serve = ({name, version}) => async ({currentTarget: button}) => {
  const wanted = `${name}/${version}`;
  button.disabled = true;
  button.setAttribute("aria-busy", "true");
  say(`Loading ${wanted} …`);
  try {
    await patch("config/model", {model: wanted});
    say(`Serving ${wanted}.`);
    onSwitch();
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    say(`${wanted} is not served. ${error.message}`, true);
  } finally {
    button.disabled = false;
    button.removeAttribute("aria-busy");
  }
};

function say(words, isError = false) {
  $("switched").textContent = words;
  $("switched").classList.toggle("error", isError);
}
