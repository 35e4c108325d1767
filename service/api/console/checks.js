// What today's traffic says of the threshold: audits against the promise, exits against the prediction.

import {$, count, percent} from "./dom.js";

const FEW = 100; // images that say little
const FAR = 0.15; // from the predicted exit rate, as the alert LowfirstExitRateLeftBand has it

function say(place, state, words) {
  place.dataset.state = state;
  if (place.textContent !== words) place.textContent = words;
}

// audit: of /stats.
export function audited({images, disagreements, overall_at_most: most, allowed, promise_kept: isKept}) {
  const place = $("audit");
  if (!images) return say(place, "unknown", "Audit: no early exit has been audited yet.");
  const found = `${count(disagreements)} of ${count(images)} audited early exits disagree with the last stage`;
  const bound = most === null ? "" : `, so at most ${percent(most)} of all answers do (95% confidence)`;
  if (allowed === null) return say(place, "unknown", `Audit: ${found}${bound}. Nothing is promised.`);
  const [state, verdict] = {
    true: ["kept", "The promise is kept"], false: ["broken", "The promise is broken"], null: ["unknown", "Too few audits for a verdict"],
  }[isKept];
  say(place, state, `${verdict}: ${found}${bound}; the promise allows ${percent(allowed)}.`);
}

// recent: what the threshold asked would do to the latest images; predicted: what the calibration expects; drift: what the
// server's tests say of both; null if unknown.
export function drifted(recent, predicted, drift) {
  const place = $("drift");
  if (drift?.notice) return say(place, "broken", drift.notice);
  if (!recent?.images || !predicted) return say(place, "unknown", "Drift: nothing to compare yet.");
  const {images, exit_rate: rate} = recent;
  const seen = `${percent(rate)} of the latest ${count(images)} images exit early at the threshold asked; the calibration predicts ${percent(predicted.exit_rate)}`;
  if (images < FEW) return say(place, "unknown", `Drift: too few images for a verdict. ${seen}.`);
  const isFar = Math.abs(rate - predicted.exit_rate) > FAR;
  say(place, isFar ? "broken" : "kept", `${isFar ? "Images differ from the calibration images" : "No drift"}: ${seen}.`);
}

// feedback: of /stats; null where the server takes none.
export function told(feedback) {
  $("feedback").hidden = !feedback?.images;
  if (!feedback?.images) return;
  const exits = Object.entries(feedback.by_exit).filter(([, {images}]) => images);
  const each = exits.map(([name, of]) => `${name} ${percent(of.accuracy)} of ${count(of.images)} (${interval(of)})`);
  const {images, accuracy} = feedback;
  const all = `${percent(accuracy)} of ${count(images)} labelled answers are right (${interval(feedback)}, 95% confidence)`;
  say($("feedback"), "unknown", `Feedback: ${all}${exits.length > 1 ? `; ${each.join(", ")}` : ""}.`);
}

const interval = ({accuracy_interval: [from, to]}) => `${percent(from)} to ${percent(to)}`;
