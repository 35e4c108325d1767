"""The dashboard *Early exit*: what the early exit does, what it saves, and whether it keeps its promise."""

from __future__ import annotations

from grafana_foundation_sdk.builders import timeseries
from grafana_foundation_sdk.models import dashboard as schema
from panels import (
    CONFIDENCE,
    COUNT,
    IMAGES_PER_SECOND,
    MODEL,
    MONEY,
    MULTIPLY_ADDS,
    REPLICA,
    SAVING,
    SECONDS,
    SHARE,
    Panel,
    alerts,
    dashboard,
    heat,
    lines,
    number,
)


def early_exit() -> schema.Dashboard:
    """All of it. Time comes first, multiply-adds second."""
    time: list[Panel] = [
        number(
            "Time saved",
            "How much of the single-scale network's time is saved? Negative: the cascade takes longer. All "
            "models, all replicas, five minutes.",
            ("lowfirst:time_saved:ratio_rate5m", "saved"),
            unit=SHARE,
            colours=SAVING,
        ),
        number(
            "Compute per image",
            "How long does one image occupy a worker on average, without audits? How long would the single-scale "
            "network take? All models, all replicas, five minutes.",
            ("lowfirst:compute_seconds_per_image:rate5m", "cascade"),
            ("lowfirst:single_scale_seconds_per_image:rate5m", "single-scale"),
            unit=SECONDS,
        ),
        number(
            "Cost per million images",
            "What do a million images cost, and what would they cost with the single-scale network? Set "
            "LOWFIRST_COST_PER_HOUR to see it. All models, all replicas, five minutes.",
            ("lowfirst:cost_per_million_images:rate5m", "cascade"),
            ("lowfirst:single_scale_cost_per_million_images:rate5m", "single-scale"),
            unit=MONEY,
            missing="no price set",
        ),
        number(
            "Images per second",
            "How many images are answered? All replicas, five minutes.",
            (f"lowfirst:images:rate5m{{{MODEL}}}", "{{model}}"),
            unit=IMAGES_PER_SECOND,
        ),
    ]
    now: list[Panel] = [
        number(
            "Early-exit rate",
            "What share of the images exits before the last stage? All replicas, five minutes.",
            (f"lowfirst:early_exit:ratio_rate5m{{{MODEL}}}", "{{model}}"),
            unit=SHARE,
        ),
        number(
            "Multiply-adds per image",
            "How many multiply-adds does an image take on average, without audits? All replicas, five minutes.",
            (f"lowfirst:multiply_adds_per_image:rate5m{{{MODEL}}}", "{{model}}"),
            unit=MULTIPLY_ADDS,
        ),
        number(
            "Multiply-adds saved",
            "What share of the single-scale network's multiply-adds is saved? Negative: the cascade needs more. "
            "All replicas, five minutes.",
            (f"lowfirst:multiply_adds_saved:ratio_rate5m{{{MODEL}}}", "{{model}}"),
            unit=SHARE,
            colours=SAVING,
        ),
        number(
            "Threshold in force",
            "What is the lowest threshold in force on the selected replicas? Overload lowers it, down to the floor.",
            (f"min by (model) (lowfirst_effective_threshold{{{MODEL}, {REPLICA}}})", "{{model}}"),
            unit=CONFIDENCE,
            missing="no replica",
        ),
    ]
    over_time: list[Panel] = [
        lines(
            "Compute per image against the single-scale network",
            "How long does one image occupy a worker, and how long would it without early exit? All models, all "
            "replicas, five minutes.",
            ("lowfirst:compute_seconds_per_image:rate5m", "cascade"),
            ("lowfirst:single_scale_seconds_per_image:rate5m", "single-scale"),
            unit=SECONDS,
        ),
        lines(
            "Early-exit rate against the prediction",
            "Do as many images exit as the calibration table predicts? If not, they differ from the calibration "
            "images. All replicas, five minutes.",
            (f"lowfirst:early_exit:ratio_rate5m{{{MODEL}}}", "{{model}}"),
            (f"lowfirst:early_exit:expected_ratio{{{MODEL}}}", "{{model}} predicted"),
            unit=SHARE,
            most=1,
        ),
        lines(
            "Multiply-adds per image against the single-scale network",
            "How many multiply-adds does an image take, and how many would it without early exit? All replicas, "
            "five minutes.",
            (f"lowfirst:multiply_adds_per_image:rate5m{{{MODEL}}}", "{{model}}"),
            (f"max by (model) (lowfirst_single_scale_multiply_adds{{{MODEL}}})", "{{model}} single-scale"),
            unit=MULTIPLY_ADDS,
        ),
    ]
    exits: list[Panel] = [
        lines(
            "Answers by exit and reason",
            "Why did images exit or escalate? brownout and deadline are degraded answers.",
            (
                f"sum by (exit, reason) (rate(lowfirst_images_total{{{MODEL}, {REPLICA}}}[$__rate_interval]))",
                "{{exit}} {{reason}}",
            ),
            unit=IMAGES_PER_SECOND,
            stacked=True,
        ),
        lines(
            "Threshold asked and in force",
            "When was the threshold changed, and when did overload lower it?",
            (f"min by (model) (lowfirst_threshold{{{MODEL}, {REPLICA}}})", "{{model}} asked"),
            (f"min by (model) (lowfirst_effective_threshold{{{MODEL}, {REPLICA}}})", "{{model}} in force"),
            unit=CONFIDENCE,
            steps=True,
            most=1,
        ),
        lines(
            "Latency by exit",
            "How long do images take, from the request's head to the answer, by the stage that answers? All "
            "replicas, five minutes.",
            (f"lowfirst:image_seconds:p50{{{MODEL}}}", "{{model}} {{exit}} p50"),
            (f"lowfirst:image_seconds:p99{{{MODEL}}}", "{{model}} {{exit}} p99"),
            unit=SECONDS,
        ),
    ]
    confidence: list[Panel] = [
        heat(
            "Confidence of early answers",
            "Which confidences are compared with the threshold? If many are near it, a small change of the "
            "threshold has a large effect.",
            "lowfirst_confidence",
            f"{MODEL}, {REPLICA}",
            CONFIDENCE,
        ),
        _confidence_and_threshold(),
    ]
    audits: list[Panel] = [
        lines(
            "Disagreement of audited images",
            "For what share of the audited early exits would the last stage have given another answer? All "
            "replicas, six hours, with Wilson's bounds, each at 95 %.",
            (f"lowfirst:audit_disagreement:upper6h{{{MODEL}}}", "{{model}} at most"),
            (f"lowfirst:audit_disagreement:ratio6h{{{MODEL}}}", "{{model}}"),
            (f"lowfirst:audit_disagreement:lower6h{{{MODEL}}}", "{{model}} at least"),
            unit=SHARE,
        ),
        lines(
            "Disagreement against the promise",
            "Does the threshold keep its promise over all images? Broken if even the lower bound exceeds the "
            "allowed share; in doubt if only the upper bound does. All replicas, six hours.",
            (f"lowfirst:disagreement:upper6h{{{MODEL}}}", "{{model}} at most"),
            (f"lowfirst:disagreement:lower6h{{{MODEL}}}", "{{model}} at least"),
            (f"lowfirst:disagreement:allowed{{{MODEL}}}", "{{model}} allowed"),
            unit=SHARE,
        ),
        lines(
            "Audits",
            "How many audits were made, and how many were skipped for lack of time (all models)?",
            (f"sum(rate(lowfirst_audits_total{{{MODEL}, {REPLICA}}}[$__rate_interval]))", "audited"),
            (f"sum(rate(lowfirst_audits_skipped_total{{{REPLICA}}}[$__rate_interval]))", "skipped"),
            unit=IMAGES_PER_SECOND,
        ),
    ]
    trial: list[Panel] = [
        lines(
            "Disagreement of a trial",
            "On what share of the images do the served model and the canary or shadow differ? All replicas, one "
            "hour, with Wilson's bounds, each at 95 %.",
            (f"lowfirst:trial_disagreement:upper1h{{{MODEL}}}", "{{model}} at most"),
            (f"lowfirst:trial_disagreement:ratio1h{{{MODEL}}}", "{{model}}"),
            (f"lowfirst:trial_disagreement:lower1h{{{MODEL}}}", "{{model}} at least"),
            unit=SHARE,
        ),
        lines(
            "Share of a trial",
            "Which model is on trial, as canary or shadow, for what share of the images?",
            (f"max by (model, kind) (lowfirst_trial_share{{{MODEL}, {REPLICA}}})", "{{model}} {{kind}}"),
            unit=SHARE,
            steps=True,
        ),
        lines(
            "Images of a trial",
            "How many images were compared, skipped for lack of time, or failed in the new model?",
            (f"sum by (model) (rate(lowfirst_comparisons_total{{{MODEL}, {REPLICA}}}[$__rate_interval]))", "{{model}}"),
            (
                f"sum by (model) (rate(lowfirst_comparisons_skipped_total{{{MODEL}, {REPLICA}}}[$__rate_interval]))",
                "{{model}} skipped",
            ),
            (
                f"sum by (model) (rate(lowfirst_trial_errors_total{{{MODEL}, {REPLICA}}}[$__rate_interval]))",
                "{{model}} failed",
            ),
            unit=IMAGES_PER_SECOND,
        ),
    ]
    traffic: list[Panel] = [
        lines(
            "Drift from the calibration",
            "Do recent images differ from the calibration images (1)? By four two-sample tests, together at 5 %, "
            "see /calibration/live.",
            (f"max by (model) (lowfirst_drift{{{MODEL}, {REPLICA}}})", "{{model}}"),
            unit=COUNT,
            steps=True,
            most=1,
            words={0: "no", 1: "yes"},
        ),
        lines(
            "Live goal lost",
            "Is there no threshold that reaches the goal with the live table (1)?",
            (f"max by (model) (lowfirst_promise_lost{{{MODEL}, {REPLICA}}})", "{{model}}"),
            unit=COUNT,
            steps=True,
            most=1,
            words={0: "no", 1: "yes"},
        ),
    ]
    return dashboard(
        "lowfirst-early-exit",
        "lowfirst: Early exit",
        "What the early exit does, what it saves, and whether it keeps its promise.",
        {
            "Time and cost": time,
            "Current values": now,
            "Alerts": [alerts("Alerts", "Which alerts of Prometheus fire or are pending?")],
            "Savings over time": over_time,
            "Exits and thresholds": exits,
            "Confidence": confidence,
            "Audits": audits,
            "Trial": trial,
            "Traffic": traffic,
        },
        by_model=True,
    )


def _confidence_and_threshold() -> timeseries.Panel:
    """Grafana's heatmap can draw no line: here are the confidences as bands, on the same axis as the threshold."""

    def quantile(share: float) -> str:
        buckets = f"lowfirst_confidence_bucket{{{MODEL}, {REPLICA}}}[$__rate_interval]"
        return f"histogram_quantile({share}, sum by (le) (rate({buckets})))"

    panel = lines(
        "Confidence against the threshold",
        "How do the confidences lie around the threshold? Images below it escalate. The bands contain the "
        "middle half and the middle four fifths of the images.",
        (quantile(0.9), "p90"),
        (quantile(0.75), "p75"),
        (quantile(0.5), "p50"),
        (quantile(0.25), "p25"),
        (quantile(0.1), "p10"),
        (f"min by (model) (lowfirst_threshold{{{MODEL}, {REPLICA}}})", "{{model}} threshold asked"),
        (f"min by (model) (lowfirst_effective_threshold{{{MODEL}, {REPLICA}}})", "{{model}} threshold in force"),
        unit=CONFIDENCE,
        most=1,
    )
    for upper, lower, opacity in (("p90", "p10", 15), ("p75", "p25", 30)):
        fill = schema.DynamicConfigValue("custom.fillBelowTo", lower)
        panel.override_by_name(upper, [fill, schema.DynamicConfigValue("custom.fillOpacity", opacity)])
    blue = schema.DynamicConfigValue("color", {"mode": "fixed", "fixedColor": "blue"})
    thin = schema.DynamicConfigValue("custom.lineWidth", 1)
    panel.override_by_regexp("/^p(90|75|25|10)$/", [blue, thin])
    panel.override_by_name("p50", [blue])
    orange = schema.DynamicConfigValue("color", {"mode": "shades", "fixedColor": "orange"})
    return panel.override_by_regexp(
        "/threshold (asked|in force)$/", [orange, schema.DynamicConfigValue("custom.fillOpacity", 0)]
    )
