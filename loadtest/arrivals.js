// Posts random bodies in stages, one after another, and writes what it counted as JSON.
//   k6 run -e PLAN=plan.json arrivals.js
// The plan: {"url", "contentType", "blob", "offsets": [[start, length], …], "report",
//   "stages": [{"name", "seconds", "rate" or "users", "windows"}, …]}
// A stage has arrivals at a rate, whatever the answers take, or users that each wait for their answer. With windows,
// the latencies of each second are kept apart, by when the request was sent.

import http from "k6/http";
import exec from "k6/execution";
import { open as openShared, SeekMode } from "k6/experimental/fs";
import { Counter, Trend } from "k6/metrics";

const plan = JSON.parse(open(__ENV.PLAN));
const MAX_USERS = 600;

const latencies = {};
const statuses = {};
const STATUSES = [0, 200, 400, 404, 408, 413, 422, 429, 499, 500, 502, 503, 504];
const scenarios = {};
const thresholds = {};
let start = 0;
for (const stage of plan.stages) {
  latencies[stage.name] = new Trend(`latency_${stage.name}`);
  for (const status of STATUSES) statuses[`${stage.name}_${status}`] = new Counter(`status_${stage.name}_${status}`);
  if (stage.windows) {
    for (let second = 0; second < stage.seconds; second++) {
      latencies[`${stage.name}_${second}`] = new Trend(`latency_${stage.name}_${second}`);
    }
  }
  const shared = { startTime: `${start}s`, gracefulStop: "30s" };
  scenarios[stage.name] = stage.users
    ? { ...shared, executor: "constant-vus", vus: stage.users, duration: `${stage.seconds}s` }
    : {
        ...shared,
        executor: "constant-arrival-rate",
        rate: Math.round(stage.rate * 100),
        timeUnit: "100s",
        duration: `${stage.seconds}s`,
        preAllocatedVUs: Math.min(MAX_USERS, Math.ceil(stage.rate) + 50),
        maxVUs: MAX_USERS,
      };
  thresholds[`dropped_iterations{scenario:${stage.name}}`] = ["count>=0"]; // or they are not told apart
  start += stage.seconds;
}

export const options = {
  scenarios,
  thresholds,
  discardResponseBodies: true,
  noConnectionReuse: false,
  summaryTrendStats: ["count", "med", "p(90)", "p(95)", "p(99)", "max"],
};

const blob = await openShared(plan.blob); // one copy for all users

export default async function () {
  const [offset, length] = plan.offsets[Math.floor(Math.random() * plan.offsets.length)];
  const body = new Uint8Array(length);
  await blob.seek(offset, SeekMode.Start);
  await blob.read(body);
  const stage = exec.scenario.name;
  const second = Math.floor((Date.now() - exec.scenario.startTime) / 1000);
  const answer = http.post(plan.url, body.buffer, { headers: { "Content-Type": plan.contentType }, timeout: "60s" });
  (statuses[`${stage}_${answer.status}`] || statuses[`${stage}_0`]).add(1);
  if (answer.status === 200) {
    latencies[stage].add(answer.timings.duration);
    const window = latencies[`${stage}_${second}`];
    if (window) window.add(answer.timings.duration);
  }
}

export function handleSummary(data) {
  const values = {};
  for (const [name, metric] of Object.entries(data.metrics)) values[name] = metric.values;
  return { [plan.report]: JSON.stringify(values) };
}
