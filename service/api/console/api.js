// The server, which of its models is meant, and the keys it may ask for.

import {$, megabytes, megapixels} from "./dom.js";

// `status` is 0 when no answer came; `message` is the server's own, `whyNot` says it to people.
export class Refused extends Error {
  constructor(status, message, {code = "", field = null, value = null, bound = null, retryAfter = null} = {}) {
    super(message);
    Object.assign(this, {status, code, field, value, bound, retryAfter});
  }
}

const NO_IMAGE = "The server reads JPEG, PNG, WebP, GIF and BMP; this file is none of them.";
// By the code of the error, what people are told where the server's words are for engineers.
const WORDS = {
  busy: ({retryAfter}) => `The server is busy. Try again in ${retryAfter ?? 1} s.`,
  image_too_large: ({value, bound, message}) => {
    const size = message.includes(" pixels") ? megapixels : megabytes;
    return `The image has ${size(value)}; the server takes up to ${size(bound)}.`;
  },
  invalid_field: ({field, bound, message}) => (field && typeof bound === "string" ? `The ${field} must be ${bound}.` : sentence(message)),
  invalid_image: () => "The image is damaged or incomplete.",
  unauthorized: ({message}) => sentence(message.split(": ")[0]), // how to send one is the page's business
  unavailable: ({message}) => sentence(message.replace(/^not ready: /, "")),
  unsupported_body: () => NO_IMAGE,
  unsupported_image: () => NO_IMAGE,
};

export const whyNot = (refused) => WORDS[refused.code]?.(refused) ?? sentence(refused.message);

const sentence = (words) => words.charAt(0).toUpperCase() + words.slice(1) + (/[.!?]$/.test(words) ? "" : ".");

let meant = null; // name of the model that was picked for the page; null for the server's default

export const model = () => meant;

export function mean(name) {
  meant = name;
}

// `path` with a query that names the model, where one was picked.
export function about(path, query = {}) {
  const search = new URLSearchParams({...query, ...(meant && {model: meant})});
  return search.size ? `${path}?${search}` : path;
}

const NAMES = {api: "API key", admin: "Admin key"};
const slot = (kind) => `lowfirst-${kind}-key`;
const stored = (kind) => sessionStorage.getItem(slot(kind));
const keyFor = (kind) => stored(kind) ?? stored(kind === "api" ? "admin" : "api");

// call("config/threshold", {method, body, headers, kind, ask}) -> {body, etag}; throws Refused.
// `kind`: the key it may need, api or admin. `ask`: whether a person is there to be asked for it.
export async function call(path, {kind = "api", ask = true, ...request} = {}) {
  for (;;) {
    const key = keyFor(kind);
    const response = await reach(path, request, key);
    const body = await read(response);
    if (response.ok && body !== null) return {body, etag: response.headers.get("ETag")};
    const refused = refusal(response, body);
    const wanted = refused.status === 401 || (refused.status === 403 && kind === "admin");
    if (!wanted) throw refused;
    if (keyFor(kind) !== key) continue; // one was given meanwhile
    if (!ask || !(await askFor(kind, whyNot(refused)))) throw refused;
  }
}

async function reach(path, request, key) {
  const headers = {...request.headers, ...(key && {Authorization: `Bearer ${key}`})};
  try {
    return await fetch(path, {...request, headers, cache: "no-store"});
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused(0, "The server does not answer.");
  }
}

// The body; null where it is no JSON, as of a proxy on the way.
async function read(response) {
  try {
    return await response.json();
  } catch (error) {
    if (error instanceof SyntaxError) return null;
    if (error.name === "AbortError") throw error;
    throw new Refused(0, "The connection broke during the answer.");
  }
}

function refusal(response, body) {
  const {message = response.statusText, ...detail} = body?.error ?? {};
  const retryAfter = Number(response.headers.get("Retry-After")) || null;
  return new Refused(response.status, message || `status ${response.status}`, {...detail, retryAfter});
}

let asking = null; // one question at a time, however many requests wait for it

// Whether a key was given; then `document` is told by an event `key` as well.
export function askFor(kind, why) {
  asking ??= answerOf(kind, why).finally(() => {
    asking = null;
  });
  return asking;
}

function answerOf(kind, why) {
  const dialog = $("key");
  const form = dialog.querySelector("form");
  const input = $("key-value");
  $("key-title").textContent = `${NAMES[kind]} needed`;
  $("key-why").textContent = why;
  input.value = "";
  dialog.showModal();
  return new Promise((resolve) => {
    let given = false;
    form.onsubmit = (event) => {
      event.preventDefault();
      sessionStorage.setItem(slot(kind), input.value.trim());
      given = true;
      dialog.close();
      document.dispatchEvent(new Event("key"));
    };
    $("key-cancel").onclick = () => dialog.close();
    dialog.addEventListener("close", () => resolve(given), {once: true});
  });
}

const JSON_TYPE = {"Content-Type": "application/json"};

export const classify = (file, query = {}) =>
  call(about("classify", {passes: "true", ...query}), {
    method: "POST",
    body: file,
    headers: {"Content-Type": file.type || "application/octet-stream"},
    ask: false,
  }).then(({body}) => body);

export const patch = (path, change, headers = {}) =>
  call(path, {method: "PATCH", body: JSON.stringify(change), headers: {...JSON_TYPE, ...headers}, kind: "admin"});
