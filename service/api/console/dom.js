// Elements and numbers as the page writes them.

const SVG = "http://www.w3.org/2000/svg";

// h("p", {class: "quiet"}, "text", child): an element. Functions are listeners; null children and properties are left out.
export function h(tag, properties = {}, ...children) {
  return fill(document.createElement(tag), properties, children);
}

export function s(tag, properties = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), properties, children);
}

function fill(element, properties, children) {
  for (const [name, value] of Object.entries(properties)) {
    if (value === null || value === undefined || value === false) continue;
    if (typeof value === "function") element.addEventListener(name, value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

export const $ = (id) => document.getElementById(id);

// Lengths go in as custom properties: the page's policy allows no style attributes.
export function sized(element, lengths) {
  for (const [name, value] of Object.entries(lengths)) element.style.setProperty(`--${name}`, value);
  return element;
}

// The class that gives what belongs to a stage its colour, by the stage's place in the cascade.
export const tone = (index) => `tone-${index % 5}`;

export const sum = (values) => values.reduce((total, value) => total + value, 0);

export const reference = ({name, version}) => `${name}/${version}`;

const NONE = "–";

function number(digits, options = {}) {
  const format = new Intl.NumberFormat("en", {minimumFractionDigits: digits, maximumFractionDigits: digits, ...options});
  return (value) => (value === null || value === undefined ? NONE : format.format(value));
}

export const count = number(0);
export const percent = number(1, {style: "percent"});
export const wholePercent = number(0, {style: "percent"});
export const millions = (value) => (value === null || value === undefined ? NONE : `${number(1)(value)}\u00a0M`);
export const money = number(2);
export const share = (value) => (value === null || value === undefined ? NONE : String(Number(value.toFixed(4))));
export const sure = (value) => (value > 0.995 && value < 1 ? String(Math.floor(value * 1e4) / 1e4) : value.toFixed(2));

export function ms(value) {
  if (value === null || value === undefined) return NONE;
  return `${number(value < 1 ? 2 : value < 10 ? 1 : 0)(value)}\u00a0ms`;
}

export const megabytes = (bytes) => `${short(bytes / 1e6)}\u00a0MB`;
export const megapixels = (pixels) => `${short(pixels / 1e6)} million pixels`;
const short = (value) => String(Number(value.toPrecision(3)));
