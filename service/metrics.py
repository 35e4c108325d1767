"""All metrics, on an injected registry.

Rates and averages over replicas come from counters alone. The early-exit rate is the share of ``images_total`` whose
exit is not the last stage (reason ``escalated`` or ``only``), the mean cost ``multiply_adds_total / images_total``. The
time saved is 1 minus ``compute_seconds / single_scale_compute_seconds_total``.

A gauge's ``multiprocess_mode`` says how the values of several processes become one value.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from service.errors import (
    BadRequest,
    DeadlinePassed,
    DeviceFailed,
    Draining,
    ImageTooLarge,
    InvalidImage,
    UnsupportedImage,
)

# Narrow where passes and answers are, so that 1.5 ms is told from 1.9. The edges of earlier releases (0.5 ms, 1, 2, 5,
# 10, …) stay, so that queries that name one go on. What `observe` takes grows with them: 1.1 us, 0.7 with those alone.
SECONDS = (
    *(0.0001, 0.0002, 0.0003, 0.0004, 0.0005, 0.00075),
    *(0.001, 0.00125, 0.0015, 0.00175, 0.002, 0.0025, 0.003, 0.004, 0.005, 0.0075),
    *(0.01, 0.0125, 0.015, 0.02, 0.025, 0.03, 0.04, 0.05, 0.075),
    *(0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1.0, 2.0, 5.0, 10.0),
)
BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64)
EARLY_REASONS = ("confident", "brownout", "deadline", "cached")
LAST_REASONS = ("escalated", "cached")
ONLY_REASONS = ("only", "cached")
CONFIDENCES = tuple(i / 20 for i in range(1, 21))
INFER = ("/v2/models/{model}/infer", "/v2/models/{model}/versions/{version}/infer")
CLASSIFYING = ("/classify", "/classify/json", "/classify/batch", *INFER)
STATUSES = (200, 429, 500, 503, 504)  # an answer, or what alerts look at
IMAGE_ERRORS = (InvalidImage, UnsupportedImage, ImageTooLarge, BadRequest, Draining, DeadlinePassed, DeviceFailed)


class Metrics:
    """The server's metrics. Attributes are named after the metric, without the ``lowfirst_`` prefix."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        self.images = Counter("lowfirst_images", "Images answered.", ["model", "exit", "reason"], registry=registry)
        self.multiply_adds = Counter(
            "lowfirst_multiply_adds", "Multiply-adds computed.", ["model", "stage"], registry=registry
        )
        self.requests = Counter("lowfirst_requests", "HTTP requests answered.", ["route", "code"], registry=registry)
        self.image_errors = Counter(
            "lowfirst_image_errors",
            "Accepted images that ended in an error, alone or within a batch.",
            ["code"],
            registry=registry,
        )
        self.rejected = Counter("lowfirst_rejected", "Images rejected.", ["reason"], registry=registry)
        self.dropped = Counter(
            "lowfirst_dropped",
            "Images dropped because the client disconnected or no answer could meet the deadline, "
            "by the point where they were dropped.",
            ["point"],
            registry=registry,
        )
        self.cache_requests = Counter(
            "lowfirst_cache_requests", "Look-ups in the result cache.", ["result"], registry=registry
        )
        self.batches = Counter(
            "lowfirst_batches", "Batches run, by the reason for their start.", ["stage", "reason"], registry=registry
        )
        self.audits = Counter(
            "lowfirst_audits",
            "Images that exited early and also ran the remaining stages.",
            ["model"],
            registry=registry,
        )
        self.audit_disagreements = Counter(
            "lowfirst_audit_disagreements",
            "Audits in which the last stage gave another answer.",
            ["model"],
            registry=registry,
        )
        self.audits_skipped = Counter("lowfirst_audits_skipped", "Audits skipped for lack of time.", registry=registry)
        self.samples = Counter(
            "lowfirst_samples",
            "Images for the sample log: written, or lost because too many waited (busy) or writing failed (failed).",
            ["result"],
            registry=registry,
        )
        self.feedback = Counter("lowfirst_feedback", "Answers with feedback.", ["model"], registry=registry)
        self.feedback_right = Counter(
            "lowfirst_feedback_right", "Answers that feedback confirmed.", ["model"], registry=registry
        )
        self.comparisons = Counter(
            "lowfirst_comparisons",
            "Images answered by both the served model and the model on trial.",
            ["model"],
            registry=registry,
        )
        self.comparison_disagreements = Counter(
            "lowfirst_comparison_disagreements", "Compared images with different answers.", ["model"], registry=registry
        )
        self.comparisons_skipped = Counter(
            "lowfirst_comparisons_skipped",
            "Images of a trial not compared for lack of time.",
            ["model"],
            registry=registry,
        )
        self.trial_errors = Counter(
            "lowfirst_trial_errors",
            "Images on which a model on trial failed; clients got the answer of the served model.",
            ["model"],
            registry=registry,
        )
        self.trial_share = Gauge(
            "lowfirst_trial_share",
            "Share of the images in the trial of a model, as canary or shadow.",
            ["model", "kind"],
            registry=registry,
            multiprocess_mode="livemax",
        )
        self.trial_cancelled = Gauge(
            "lowfirst_trial_cancelled_timestamp_seconds",
            "When a guard cancelled the latest trial beside a model; 0 if it did not.",
            ["model"],
            registry=registry,
            multiprocess_mode="livemax",
        )
        self.request_seconds = Histogram(
            "lowfirst_request_seconds",
            "Time from a request's head to its answer.",
            ["route"],
            buckets=SECONDS,
            registry=registry,
        )
        self.image_seconds = Histogram(
            "lowfirst_image_seconds",
            "Time from a request's head to an image's answer, by the stage that answers.",
            ["model", "exit"],
            buckets=SECONDS,
            registry=registry,
        )
        self.decode_seconds = Histogram(
            "lowfirst_decode_seconds", "Time to decode one image.", buckets=SECONDS, registry=registry
        )
        self.decoders_ended = Counter(
            "lowfirst_decoders_ended",
            "Images that passed every limit, then ended the process that decoded them, by the time limit (slow) or a "
            "crash (crashed), or took a thread too long (late).",
            ["reason"],
            registry=registry,
        )
        self.queue_seconds = Histogram(
            "lowfirst_queue_wait_seconds",
            "Time that an image waits for a stage.",
            ["stage"],
            buckets=SECONDS,
            registry=registry,
        )
        self.compute_seconds = Histogram(
            "lowfirst_compute_seconds", "Compute time of one batch.", ["stage"], buckets=SECONDS, registry=registry
        )
        self.batch_size = Histogram(
            "lowfirst_batch_size", "Images per batch.", ["stage"], buckets=BATCH_SIZES, registry=registry
        )
        self.confidence = Histogram(
            "lowfirst_confidence",
            "Confidence last compared with the threshold.",
            ["model"],
            buckets=CONFIDENCES,
            registry=registry,
        )
        self.threshold = Gauge(
            "lowfirst_threshold", "Threshold asked for.", ["model"], registry=registry, multiprocess_mode="livemax"
        )
        self.effective_threshold = Gauge(
            "lowfirst_effective_threshold",
            "Threshold in force: lower than the one asked for, down to its floor, while overloaded.",
            ["model"],
            registry=registry,
            multiprocess_mode="livemin",
        )
        self.feature_bytes = Gauge(
            "lowfirst_feature_bytes",
            "Memory used by the features of escalated images.",
            registry=registry,
            multiprocess_mode="livesum",
        )
        self.config_version = Gauge(
            "lowfirst_config_version", "Version of the runtime config.", registry=registry, multiprocess_mode="livemax"
        )
        self.store_up = Gauge(
            "lowfirst_store_up",
            "Whether the shared state answers; 1 if none is used.",
            registry=registry,
            multiprocess_mode="livemin",
        )
        self.config_invalid = Gauge(
            "lowfirst_config_invalid",
            "Whether the shared config is ignored because a newer release wrote it or a value is out of bounds.",
            registry=registry,
            multiprocess_mode="livemax",
        )
        self.unshared_series = Gauge(
            "lowfirst_unshared_series",
            "Series missing here because the memory shared by the processes has no room for them.",
            registry=registry,
            multiprocess_mode="livesum",
        )
        self.queue_depth = Gauge(
            "lowfirst_queue_depth",
            "Images waiting for a stage.",
            ["stage"],
            registry=registry,
            multiprocess_mode="livesum",
        )
        self.queued_seconds = Gauge(
            "lowfirst_queued_seconds",
            "Age of the oldest image waiting for a stage.",
            ["stage"],
            registry=registry,
            multiprocess_mode="livemax",
        )
        self.in_flight = Gauge(
            "lowfirst_images_in_flight",
            "Images accepted and not yet answered.",
            registry=registry,
            multiprocess_mode="livesum",
        )
        self.single_scale_multiply_adds = Gauge(
            "lowfirst_single_scale_multiply_adds",
            "Multiply-adds per image without early exit.",
            ["model"],
            registry=registry,
            multiprocess_mode="livemax",
        )
        self.expected_exit_rate = Gauge(
            "lowfirst_expected_exit_rate",
            "Early-exit rate predicted by the calibration table for the threshold asked for.",
            ["model"],
            registry=registry,
            multiprocess_mode="livemax",
        )
        self.promised_agreement = Gauge(
            "lowfirst_promised_agreement",
            "Promised share of images with the last stage's answer: the goal, otherwise the certified bound.",
            ["model"],
            registry=registry,
            multiprocess_mode="livemax",
        )
        self.promise_kept = Gauge(
            "lowfirst_promise_kept",
            "Whether this replica's audits show that the promise is kept (1) or broken (0); NaN while undecided.",
            ["model"],
            registry=registry,
            multiprocess_mode="livemostrecent",
        )
        self.drift = Gauge(
            "lowfirst_drift",
            "Whether the traffic differs from the calibration images, by the tests of /calibration/live.",
            ["model"],
            registry=registry,
            multiprocess_mode="livemax",
        )
        self.promise_lost = Gauge(
            "lowfirst_promise_lost",
            "Whether no threshold reaches the goal with the live table.",
            ["model"],
            registry=registry,
            multiprocess_mode="livemax",
        )
        self.cost_per_hour = Gauge(
            "lowfirst_cost_per_hour",
            "Cost of one worker per hour, as configured; 0 if unset.",
            registry=registry,
            multiprocess_mode="livemax",
        )
        self.single_scale_compute_seconds = Counter(
            "lowfirst_single_scale_compute_seconds",
            "Time that the single-scale network would have taken for the computed images, in the same batches.",
            ["model"],
            registry=registry,
        )
        self._start_at_zero()

    def serve(self, model: str, stages: Sequence[str]) -> None:
        """Start the counters of ``model`` at zero: what has not happened yet is a 0, not a gap in every ratio."""
        *early, last = stages
        for stage in stages:
            self.multiply_adds.labels(model, stage)
            self.dropped.labels(stage)
            self.image_seconds.labels(model, stage)
        for stage in early:
            for reason in EARLY_REASONS:
                self.images.labels(model, stage, reason)
        for reason in LAST_REASONS if early else ONLY_REASONS:
            self.images.labels(model, last, reason)
        self.single_scale_compute_seconds.labels(model)
        self.audits.labels(model)
        self.audit_disagreements.labels(model)
        self.feedback.labels(model)
        self.feedback_right.labels(model)

    def try_out(self, model: str) -> None:
        """Start the counters of a model on trial at zero."""
        for counter in (self.comparisons, self.comparison_disagreements, self.comparisons_skipped, self.trial_errors):
            counter.labels(model)

    def watch(self, gauge: Gauge, value: Callable[[], float], **labels: str) -> None:
        """Update ``gauge`` from ``value`` at every scrape."""
        (gauge.labels(**labels) if labels else gauge).set_function(value)

    def _start_at_zero(self) -> None:
        """Initialise the series that have no model label."""
        for counter, label_values in (
            (self.rejected, ("images", "bytes", "seconds")),
            (self.dropped, ("decode", "escalation", "answer", "deadline")),
            (self.cache_requests, ("hit", "miss")),
            (self.samples, ("written", "busy", "failed")),
            (self.decoders_ended, ("slow", "crashed", "late")),
            (self.image_errors, tuple(error.code for error in IMAGE_ERRORS)),
        ):
            for value in label_values:
                counter.labels(value)
        for route in CLASSIFYING:
            for status in STATUSES:
                self.requests.labels(route, status)
