"""The dashboard *Serving*: whether clients are served well, and where their images wait."""

from __future__ import annotations

from grafana_foundation_sdk.models import dashboard as schema
from panels import (
    BATCHES_PER_SECOND,
    BYTES,
    CLASSIFIES,
    COUNT,
    IMAGES_PER_SECOND,
    MEAN_COUNT,
    REPLICA,
    REQUESTS_PER_SECOND,
    SECONDS,
    SHARE,
    Panel,
    alerts,
    dashboard,
    heat,
    lines,
    number,
    percentiles,
    share_is_bad_from,
)


def serving() -> schema.Dashboard:
    """All of it."""
    now: list[Panel] = [
        number(
            "Images per second",
            "How many images are answered? All models, all replicas, five minutes.",
            ("sum(lowfirst:images:rate5m)", "images"),
            unit=IMAGES_PER_SECOND,
        ),
        number(
            "Median latency",
            "Within what time are half of the requests answered? All replicas, five minutes.",
            ("lowfirst:request_seconds:p50", "p50"),
            unit=SECONDS,
        ),
        number(
            "p99 latency",
            "How long do the slowest 1 % of requests take? Red: longer than half a second, the default of "
            "LOWFIRST_TARGET_LATENCY_MS. All replicas, five minutes.",
            ("lowfirst:request_seconds:p99", "p99"),
            unit=SECONDS,
            colours=share_is_bad_from(0.5),
        ),
        number(
            "Images failed",
            "What share of the images fails through no fault of the client? Red from 1 %, when LowfirstErrors "
            "fires. All replicas, five minutes.",
            ("lowfirst:image_errors:ratio_rate5m", "failed"),
            unit=SHARE,
            colours=share_is_bad_from(0.01),
        ),
        number(
            "Images rejected",
            "What share of the images is rejected because the server is full? Red from 1 %, when "
            "LowfirstRejecting fires. All replicas, five minutes.",
            ("lowfirst:rejected:ratio_rate5m", "rejected"),
            unit=SHARE,
            colours=share_is_bad_from(0.01),
        ),
        number(
            "Deadlines missed",
            "What share of the images has no answer by its deadline? Clients choose deadlines, so this alone is "
            "no error. All replicas, five minutes.",
            ("lowfirst:late:ratio_rate5m", "late"),
            unit=SHARE,
        ),
    ]
    requests: list[Panel] = [
        lines(
            "Requests by route",
            "How many requests arrive, by route?",
            (f"sum by (route) (rate(lowfirst_requests_total{{{REPLICA}}}[$__rate_interval]))", "{{route}}"),
            unit=REQUESTS_PER_SECOND,
            stacked=True,
        ),
        lines(
            "Classifying requests by status",
            "How are classification requests answered? 429: the server is full. 504: the deadline passed. Other "
            "5xx: an error.",
            (f"sum by (code) (rate(lowfirst_requests_total{{{CLASSIFIES}, {REPLICA}}}[$__rate_interval]))", "{{code}}"),
            unit=REQUESTS_PER_SECOND,
            stacked=True,
        ),
        lines(
            "Errors and rejections",
            "What share of the requests and of the images fails, is rejected, or misses its deadline? The dashed "
            "line is the limit of the alerts on errors and rejections. All replicas, five minutes.",
            ("lowfirst:errors:ratio_rate5m", "requests failed"),
            ("lowfirst:image_errors:ratio_rate5m", "images failed"),
            ("lowfirst:rejected:ratio_rate5m", "images rejected"),
            ("lowfirst:late:ratio_rate5m", "images late"),
            unit=SHARE,
            limit=[(None, "transparent"), (0.01, "red")],
        ),
    ]
    latency: list[Panel] = [
        heat(
            "Latency",
            "How long do requests take? Exits and escalations form two bands.",
            "lowfirst_request_seconds",
            f"{CLASSIFIES}, {REPLICA}",
            SECONDS,
        ),
        lines(
            "Latency percentiles",
            "How long do slow requests take? All replicas, five minutes.",
            *percentiles("lowfirst:request_seconds"),
            unit=SECONDS,
        ),
        lines(
            "Latency by exit",
            "How long do images take, by the stage that answers? All models, all replicas, five minutes.",
            ("lowfirst:image_seconds:p50", "{{model}} {{exit}} p50"),
            ("lowfirst:image_seconds:p99", "{{model}} {{exit}} p99"),
            unit=SECONDS,
        ),
    ]
    stages: list[Panel] = [
        lines(
            "Queue wait by stage",
            "How long do images wait for each stage? All replicas, five minutes.",
            *percentiles("lowfirst:queue_wait_seconds", "{{stage}}"),
            unit=SECONDS,
        ),
        lines(
            "Compute by stage",
            "How long does one batch take in each stage? All replicas, five minutes.",
            *percentiles("lowfirst:compute_seconds", "{{stage}}"),
            unit=SECONDS,
        ),
        lines(
            "Decoding",
            "How long does it take to decode an image?",
            *(
                (
                    f"histogram_quantile({share}, sum by (le) "
                    f"(rate(lowfirst_decode_seconds_bucket{{{REPLICA}}}[$__rate_interval])))",
                    f"p{share * 100:g}",
                )
                for share in (0.5, 0.95, 0.99)
            ),
            unit=SECONDS,
        ),
    ]
    queues: list[Panel] = [
        lines(
            "Queue depth",
            "How many images wait for each stage?",
            (f"sum by (stage) (lowfirst_queue_depth{{{REPLICA}}})", "{{stage}}"),
            unit=COUNT,
        ),
        lines(
            "Oldest image in the queue",
            "How long has the oldest image waited, on the worst replica? It keeps rising if nothing runs. The "
            "dashed line is the limit of LowfirstQueue.",
            (f"max by (stage) (lowfirst_queued_seconds{{{REPLICA}}})", "{{stage}}"),
            unit=SECONDS,
            limit=[(None, "transparent"), (0.5, "red")],
        ),
        lines(
            "In flight",
            "How many images are accepted and not yet answered? LOWFIRST_MAX_IMAGES_IN_FLIGHT limits it.",
            (f"sum(lowfirst_images_in_flight{{{REPLICA}}})", "images"),
            unit=COUNT,
        ),
        lines(
            "Features kept for later stages",
            "How much memory do the features of escalated images use?",
            (f"sum(lowfirst_feature_bytes{{{REPLICA}}})", "features"),
            unit=BYTES,
        ),
    ]
    batches: list[Panel] = [
        lines(
            "Batch size by stage",
            "How many images does a batch have on average? Larger batches are cheaper per image.",
            (
                f"sum by (stage) (rate(lowfirst_batch_size_sum{{{REPLICA}}}[$__rate_interval])) "
                f"/ sum by (stage) (rate(lowfirst_batch_size_count{{{REPLICA}}}[$__rate_interval]))",
                "{{stage}}",
            ),
            unit=MEAN_COUNT,
        ),
        lines(
            "Batches by reason",
            "Why did each batch start? full: maximum size; drained: a worker was idle; slots: no room for more "
            "features; deadline: a larger batch would have been late.",
            (
                f"sum by (stage, reason) (rate(lowfirst_batches_total{{{REPLICA}}}[$__rate_interval]))",
                "{{stage}} {{reason}}",
            ),
            unit=BATCHES_PER_SECOND,
            stacked=True,
        ),
        lines(
            "Dropped",
            "How many images were dropped, and where? Their client disconnected, or no answer could meet the deadline.",
            (f"sum by (point) (rate(lowfirst_dropped_total{{{REPLICA}}}[$__rate_interval]))", "{{point}}"),
            unit=IMAGES_PER_SECOND,
        ),
        lines(
            "Rejected",
            "How many images were rejected, by limit?",
            (f"sum by (reason) (rate(lowfirst_rejected_total{{{REPLICA}}}[$__rate_interval]))", "{{reason}}"),
            unit=IMAGES_PER_SECOND,
        ),
    ]
    return dashboard(
        "lowfirst-serving",
        "lowfirst: Serving",
        "Whether clients are served well, and where their images wait.",
        {
            "Current values": now,
            "Alerts": [alerts("Alerts", "Which alerts of Prometheus fire or are pending?")],
            "Requests": requests,
            "Latency": latency,
            "Stages": stages,
            "Queues": queues,
            "Batches": batches,
            "Feedback": _feedback(),
        },
    )


def _feedback() -> list[Panel]:
    """Whether answers are right, by those who told later, and what is logged."""
    told = f"sum by (model) (increase(lowfirst_feedback_total{{{REPLICA}}}[1h]))"
    right = f"sum by (model) (increase(lowfirst_feedback_right_total{{{REPLICA}}}[1h]))"
    return [
        lines(
            "Accuracy by feedback",
            "What share of the answers with feedback in the last hour was right? It is the accuracy of all "
            "answers only if feedback comes from a random sample.",
            (f"{right} / ({told} > 0)", "{{model}}"),
            unit=SHARE,
        ),
        lines("Feedback", "How many labels of the last hour is this based on?", (told, "{{model}}"), unit=COUNT),
        lines(
            "Sample log",
            "How many images were written to the sample log, or lost? busy: too many waited; failed: the folder "
            "or store could not be written.",
            (f"sum by (result) (rate(lowfirst_samples_total{{{REPLICA}}}[$__rate_interval]))", "{{result}}"),
            unit=IMAGES_PER_SECOND,
            stacked=True,
        ),
    ]
