// The server, and the keys it may ask for.

import {$} from "./dom.js";

// `status` is 0 when no answer came; `message` is the server's own.
export class Refused extends Error {
  constructor(status, message, {field = null, retryAfter = null} = {}) {
    super(message);
    Object.assign(this, {status, field, retryAfter});
  }
}

const NAMES = {api: "API key", admin: "Admin key"};
const slot = (kind) => `lowfirst-${kind}-key`;
const stored = (kind) => sessionStorage.getItem(slot(kind));

// call("config/threshold", {method, body, headers, kind, ask}) -> {body, etag}; throws Refused.
// `kind`: the key it may need, api or admin. `ask`: whether a person is there to be asked for it.
export async function call(path, {kind = "api", ask = true, ...request} = {}) {
  for (;;) {
    const key = stored(kind) ?? stored(kind === "api" ? "admin" : "api");
    const response = await reach(path, request, key);
    const body = await read(response);
    if (response.ok && body !== null) return {body, etag: response.headers.get("ETag")};
    const refused = refusal(response, body);
    const wanted = refused.status === 401 || (refused.status === 403 && kind === "admin");
    if (!wanted || !ask || !(await askFor(kind, refused.message))) throw refused;
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
    throw new Refused(0, "The server stopped in the middle of its answer.");
  }
}

function refusal(response, body) {
  const {message = response.statusText, ...detail} = body?.error ?? {};
  const retryAfter = Number(response.headers.get("Retry-After")) || null;
  return new Refused(response.status, message || `status ${response.status}`, {...detail, retryAfter});
}

let asking = null; // one question at a time, however many requests wait for it

export function askFor(kind, why = "") {
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
    };
    $("key-cancel").onclick = () => dialog.close();
    dialog.addEventListener("close", () => resolve(given), {once: true});
  });
}

const JSON_TYPE = {"Content-Type": "application/json"};

export const classify = (file, query = {}) =>
  call(`classify?${new URLSearchParams({passes: "true", ...query})}`, {
    method: "POST",
    body: file,
    headers: {"Content-Type": file.type || "application/octet-stream"},
  }).then(({body}) => body);

export const patch = (path, change, headers = {}) =>
  call(path, {method: "PATCH", body: JSON.stringify(change), headers: {...JSON_TYPE, ...headers}, kind: "admin"});
