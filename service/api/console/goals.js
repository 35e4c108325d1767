// Goals and the floor: the threshold asked for by what it should achieve.

import {$, h} from "./dom.js";

// Fields of PATCH /config/threshold: what people call them, the unit they type, and how many of it are one of the field's.
const GOALS = {
  max_mean_ms: {name: "Compute per image, at most", unit: "ms", scale: 1},
  max_mean_mmacs: {name: "Multiply-adds per image, at most", unit: "M", scale: 1},
  min_agreement: {name: "Agreement with the last stage, at least", unit: "%", scale: 100},
  max_accuracy_drop: {name: "Loss of accuracy, at most", unit: "%", scale: 100},
  threshold: {name: "Threshold", unit: "", scale: 1},
};

const tidy = (value) => Number(value.toPrecision(6));

export const isGoal = (goal) => goal !== "threshold" && goal in GOALS;

// As a phrase: "compute per image at most 1.2 ms".
export function inWords(goal, value) {
  const {name, unit, scale} = GOALS[goal];
  const suffix = unit.length > 1 || unit === "M" ? `\u00a0${unit}` : unit;
  return `${name.charAt(0).toLowerCase()}${name.slice(1).replace(",", "")} ${tidy(scale * value)}${suffix}`;
}

// `change(patch, words)` is called with the fields to set, and what they are called.
export function start(change) {
  $("goal").replaceChildren(...Object.entries(GOALS).map(([goal, {name}]) => h("option", {value: goal}, name)));
  $("goal").addEventListener("change", nameUnit);
  nameUnit();
  $("goal-form").addEventListener("submit", (event) => {
    event.preventDefault();
    const goal = $("goal").value;
    const value = Number($("goal-value").value) / GOALS[goal].scale;
    change({[goal]: value}, inWords(goal, value));
  });
  $("floor-form").addEventListener("submit", (event) => {
    event.preventDefault();
    const typed = $("floor-value").value;
    change({floor: typed === "" ? null : Number(typed)}, typed === "" ? "no floor" : `floor ${typed}`);
  });
}

function nameUnit() {
  $("goal-unit").textContent = GOALS[$("goal").value].unit;
}

// Show what is asked for, where nobody is typing.
export function show({goal, value, floor}) {
  if ($("goals").contains(document.activeElement)) return;
  $("goal").value = goal;
  $("goal-value").value = tidy(GOALS[goal].scale * value);
  $("floor-value").value = floor ?? "";
  nameUnit();
}
