"""Grafana's dashboards, as JSON: ``python docker/grafana/build.py [FOLDER]``, by default ``dashboards/`` beside it.

Built with Grafana's own SDK, so that a field the schema does not know is an error here. What may be shown by model
comes from the recording rules; what is shown by replica from the replicas' own metrics.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from string import ascii_uppercase

from grafana_foundation_sdk.builders import common, heatmap, prometheus, stat, timeseries
from grafana_foundation_sdk.builders import dashboard as build
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import dashboard as schema
from grafana_foundation_sdk.models.common import (
    BigValueColorMode,
    BigValueGraphMode,
    LineInterpolation,
    SortOrder,
    StackingMode,
    TooltipDisplayMode,
    VisibilityMode,
)
from grafana_foundation_sdk.models.heatmap import HeatmapColorMode
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

DASHBOARDS = Path(__file__).parent / "dashboards"
DATASOURCE = schema.DataSourceRef("prometheus", "lowfirst-prometheus")  # provisioned under this uid

WIDTH = 24  # of Grafana's grid

SHARE, SECONDS, COUNT, EACH_SECOND, BYTES = "percentunit", "s", "sishort", "ops", "bytes"

CLASSIFIES = 'route=~"/classify.*|/v2/.+/infer"'
OURS = 'code!~"bad_request|image_too_large|invalid_image|unsupported_image"'  # errors, not the sender's own
REPLICA = 'instance=~"$replica"'
MODEL = 'model=~"$model"'

# A mark is looked for at each step, in as much time and one scrape more: a change lies between two scrapes.
MARK_STEP_SECONDS, SCRAPE_SECONDS = 60, 5

Panel = timeseries.Panel | heatmap.Panel | stat.Panel
Query = tuple[str, str]  # PromQL, and what its series are called


# kinds of panels


def lines(title: str, answers: str, *queries: Query, unit: str, stacked: bool = False, steps: bool = False) -> Panel:
    """Values over time. ``answers`` is the question that the panel answers, and how to read it."""
    panel = timeseries.Panel().title(title).description(answers).datasource(DATASOURCE).unit(unit).min(0).height(8)
    panel.targets([_target(index, *query).range() for index, query in enumerate(queries)])
    panel.fill_opacity(30 if stacked else 5).show_points(VisibilityMode.NEVER)
    panel.line_interpolation(LineInterpolation.STEP_AFTER if steps else LineInterpolation.LINEAR)
    panel.tooltip(common.VizTooltipOptions().mode(TooltipDisplayMode.MULTI).sort(SortOrder.DESCENDING))
    if stacked:
        panel.stacking(common.StackingConfig().mode(StackingMode.NORMAL).group("all"))
    return panel


def number(title: str, answers: str, *queries: Query, unit: str) -> stat.Panel:
    """The newest value, and its course behind it."""
    panel = stat.Panel().title(title).description(answers).datasource(DATASOURCE).unit(unit).height(4)
    panel.targets([_target(index, *query).range() for index, query in enumerate(queries)])
    panel.graph_mode(BigValueGraphMode.AREA).color_mode(BigValueColorMode.VALUE)
    return panel.reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))


def heat(title: str, answers: str, histogram: str, matching: str, unit: str) -> Panel:
    """Of a Prometheus histogram: how many fell into each bucket, over time."""
    counts = f"sum by (le) (increase({histogram}_bucket{{{matching}}}[$__rate_interval]))"
    panel = heatmap.Panel().title(title).description(answers).datasource(DATASOURCE).height(8)
    panel.with_target(_target(0, counts, "{{le}}").range().format(PromQueryFormat.HEATMAP))
    panel.color(heatmap.HeatmapColorOptions().mode(HeatmapColorMode.SCHEME).scheme("Blues").steps(64))
    return panel.calculate(False).y_axis(heatmap.YAxisConfig().unit(unit)).show_y_histogram()


def percentiles(rule: str, name: str = "") -> list[Query]:
    """p50, p95 and p99 of a recording rule."""
    return [(f"{rule}:p{percent}", f"{name} p{percent}".strip()) for percent in (50, 95, 99)]


def _target(index: int, expression: str, legend: str) -> prometheus.Dataquery:
    query = prometheus.Dataquery().expr(expression).legend_format(legend or "__auto")
    return query.ref_id(ascii_uppercase[index]).datasource(DATASOURCE)


# a dashboard around them


class _Annotation(schema.AnnotationQuery):
    """The SDK knows no words for what Prometheus' annotations are called and how finely they are looked for."""

    def to_json(self) -> dict[str, object]:
        step = f"{MARK_STEP_SECONDS}s"
        return {**super().to_json(), "step": step, "titleFormat": self.name, "textFormat": "{{model}}"}


def threshold_changes(matching: str) -> schema.AnnotationQuery:
    """A mark wherever a model's threshold was moved."""
    moved = f"max by (model) (changes(lowfirst_threshold{{{matching}}}[{MARK_STEP_SECONDS + SCRAPE_SECONDS}s])) > 0"
    return _Annotation("Threshold moved", DATASOURCE, icon_color="orange", expr=moved)


def variable(name: str, query: str) -> build.QueryVariable:
    """A choice of several values, all by default."""
    choice = build.QueryVariable(name).label(name.capitalize()).datasource(DATASOURCE).query(query)
    choice.refresh(schema.VariableRefresh.ON_TIME_RANGE_CHANGED).sort(schema.VariableSort.ALPHABETICAL_ASC)
    choice.multi(True).include_all(True).all_value(".*")
    return choice.current(schema.VariableOption(selected=True, text=["All"], value=["$__all"]))


def dashboard(
    uid: str, title: str, answers: str, rows: dict[str, list[Panel]], by_model: bool = False
) -> schema.Dashboard:
    """Rows of panels; those of a row share its width. Replicas may be chosen, and ``by_model`` models too."""
    page = build.Dashboard(title).uid(uid).description(answers).tags(["lowfirst"]).timezone("browser").readonly()
    page.time("now-1h", "now").refresh("10s").tooltip(schema.DashboardCursorSync.CROSSHAIR)
    if by_model:
        page.with_variable(variable("model", "label_values(lowfirst_threshold, model)"))
    page.with_variable(variable("replica", 'label_values(up{job="lowfirst"}, instance)'))
    others = build.DashboardLink("lowfirst").type(schema.DashboardLinkType.DASHBOARDS).tags(["lowfirst"])
    page.link(others.keep_time(True).include_vars(True))
    number_of = 0
    for name, panels in rows.items():
        number_of += 1
        page.with_row(build.Row(name).id(number_of))
        for panel in panels:
            number_of += 1
            page.with_panel(panel.id(number_of).span(WIDTH // len(panels)))
    result = page.build()
    result.annotations.list_val = [threshold_changes(MODEL if by_model else "")]
    return result


# the three dashboards


def early_exit() -> schema.Dashboard:
    """What the early exit does, what it saves, and whether it keeps its promise."""
    time: list[Panel] = [
        number(
            "Time saved",
            "How much of the single-scale network's time is saved? Negative: the stages take longer than it. "
            "All models, all replicas, five minutes.",
            ("lowfirst:time_saved:ratio_rate5m", "saved"),
            unit=SHARE,
        ),
        number(
            "Compute an image",
            "What does an image take of a worker on average, without the audits, and what would the single-scale "
            "network take? All models, all replicas, five minutes.",
            ("lowfirst:compute_seconds_per_image:rate5m", "cascade"),
            ("lowfirst:single_scale_seconds_per_image:rate5m", "single-scale"),
            unit=SECONDS,
        ),
        number(
            "Cost of a million images",
            "What do a million images cost, and what would they with the single-scale network? Nothing is shown "
            "without LOWFIRST_COST_PER_HOUR. All models, all replicas, five minutes.",
            ("lowfirst:cost_per_million_images:rate5m", "cascade"),
            ("lowfirst:single_scale_cost_per_million_images:rate5m", "single-scale"),
            unit="none",
        ),
    ]
    now: list[Panel] = [
        number(
            "Early-exit rate",
            "How many images end before the last stage? All replicas, five minutes.",
            (f"lowfirst:early_exit:ratio_rate5m{{{MODEL}}}", "{{model}}"),
            unit=SHARE,
        ),
        number(
            "Multiply-adds an image",
            "What does an image cost on average, without the audits? All replicas, five minutes.",
            (f"lowfirst:multiply_adds_per_image:rate5m{{{MODEL}}}", "{{model}}"),
            unit=COUNT,
        ),
        number(
            "Multiply-adds saved",
            "How much of the single-scale network's cost is saved? Negative: the stages cost more than it. "
            "All replicas, five minutes.",
            (f"lowfirst:multiply_adds_saved:ratio_rate5m{{{MODEL}}}", "{{model}}"),
            unit=SHARE,
        ),
        number(
            "Threshold in force",
            "What are confidences compared with? The lowest of the chosen: overload brings it down to its floor.",
            (f"min by (model) (lowfirst_effective_threshold{{{MODEL}, {REPLICA}}})", "{{model}}"),
            unit="none",
        ),
    ]
    course: list[Panel] = [
        lines(
            "Compute an image against the single-scale network",
            "What does an image take of a worker, and what would it take without an early exit? All models, all "
            "replicas, five minutes.",
            ("lowfirst:compute_seconds_per_image:rate5m", "per image"),
            ("lowfirst:single_scale_seconds_per_image:rate5m", "single-scale"),
            unit=SECONDS,
        ),
        lines(
            "Early-exit rate against what is predicted",
            "Do as many images exit as the calibration table predicts? If not, they are unlike the calibration's. "
            "All replicas, five minutes.",
            (f"lowfirst:early_exit:ratio_rate5m{{{MODEL}}}", "{{model}}"),
            (f"lowfirst:early_exit:expected_ratio{{{MODEL}}}", "{{model}} predicted"),
            unit=SHARE,
        ),
        lines(
            "Multiply-adds an image against the single-scale network",
            "What does an image cost, and what would it cost without an early exit? All replicas, five minutes.",
            (f"lowfirst:multiply_adds_per_image:rate5m{{{MODEL}}}", "{{model}}"),
            (f"max by (model) (lowfirst_single_scale_multiply_adds{{{MODEL}}})", "{{model}} single-scale"),
            unit=COUNT,
        ),
    ]
    why: list[Panel] = [
        lines(
            "Answers by reason",
            "Why did images exit or escalate? brownout and deadline are degraded answers.",
            (
                f"sum by (exit, reason) (rate(lowfirst_images_total{{{MODEL}, {REPLICA}}}[$__rate_interval]))",
                "{{exit}} {{reason}}",
            ),
            unit=EACH_SECOND,
            stacked=True,
        ),
        lines(
            "Threshold asked for and in force",
            "When was the threshold moved, and when did overload lower it?",
            (f"min by (model) (lowfirst_threshold{{{MODEL}, {REPLICA}}})", "{{model}} asked for"),
            (f"min by (model) (lowfirst_effective_threshold{{{MODEL}, {REPLICA}}})", "{{model}} in force"),
            unit="none",
            steps=True,
        ),
    ]
    confidences = heat(
        "Confidence of early answers",
        "How sure is the last stage that could end an image early? Many images near the threshold: a small move "
        "changes much.",
        "lowfirst_confidence",
        f"{MODEL}, {REPLICA}",
        "none",
    )
    audits: list[Panel] = [
        lines(
            "Disagreement of audited images",
            "Of the images that exited, to how many would the last stage have given another answer? All replicas, "
            "six hours, with Wilson's bounds, each at 95 %.",
            (f"lowfirst:audit_disagreement:upper6h{{{MODEL}}}", "{{model}} at most"),
            (f"lowfirst:audit_disagreement:ratio6h{{{MODEL}}}", "{{model}}"),
            (f"lowfirst:audit_disagreement:lower6h{{{MODEL}}}", "{{model}} at least"),
            unit=SHARE,
        ),
        lines(
            "Disagreement against the promise",
            "Does the threshold keep its promise over all images? Broken where even the lower bound is above what is "
            "allowed; not shown to be kept where only the upper one is. All replicas, six hours.",
            (f"lowfirst:disagreement:upper6h{{{MODEL}}}", "{{model}} at most"),
            (f"lowfirst:disagreement:lower6h{{{MODEL}}}", "{{model}} at least"),
            (f"lowfirst:disagreement:allowed{{{MODEL}}}", "{{model}} allowed"),
            unit=SHARE,
        ),
        lines(
            "Audits",
            "How many audits stand behind it, and for how many of any model was there no time?",
            (f"sum(rate(lowfirst_audits_total{{{MODEL}, {REPLICA}}}[$__rate_interval]))", "audited"),
            (f"sum(rate(lowfirst_audits_skipped_total{{{REPLICA}}}[$__rate_interval]))", "skipped"),
            unit=EACH_SECOND,
        ),
    ]
    trial: list[Panel] = [
        lines(
            "Disagreement of a trial",
            "Of the images that a canary or a shadow answered as well as the model that is served, on how many do both "
            "differ? All replicas, one hour, with Wilson's bounds, each at 95 %.",
            (f"lowfirst:trial_disagreement:upper1h{{{MODEL}}}", "{{model}} at most"),
            (f"lowfirst:trial_disagreement:ratio1h{{{MODEL}}}", "{{model}}"),
            (f"lowfirst:trial_disagreement:lower1h{{{MODEL}}}", "{{model}} at least"),
            unit=SHARE,
        ),
        lines(
            "Share of a trial",
            "On which share of the images is which model tried, as canary or shadow?",
            (f"max by (model, kind) (lowfirst_trial_share{{{MODEL}, {REPLICA}}})", "{{model}} {{kind}}"),
            unit=SHARE,
            steps=True,
        ),
        lines(
            "Images of a trial",
            "How many are compared, for how many was there no time, and on how many did the new model fail?",
            (f"sum by (model) (rate(lowfirst_comparisons_total{{{MODEL}, {REPLICA}}}[$__rate_interval]))", "{{model}}"),
            (
                f"sum by (model) (rate(lowfirst_comparisons_skipped_total{{{MODEL}, {REPLICA}}}[$__rate_interval]))",
                "{{model}} skipped",
            ),
            (
                f"sum by (model) (rate(lowfirst_trial_errors_total{{{MODEL}, {REPLICA}}}[$__rate_interval]))",
                "{{model}} failed",
            ),
            unit=EACH_SECOND,
        ),
    ]
    return dashboard(
        "lowfirst-early-exit",
        "lowfirst: Early exit",
        "What the early exit does, what it saves, and whether it keeps its promise.",
        {"Time": time, "Now": now, "Course": course, "Why": why, "Confidence": [confidences], "Audit": audits}
        | {"Trial": trial},
        by_model=True,
    )


def serving() -> schema.Dashboard:
    """Whether clients are served well, and where their images wait."""
    requests: list[Panel] = [
        lines(
            "Requests by route",
            "How many requests come, and to what?",
            (f"sum by (route) (rate(lowfirst_requests_total{{{REPLICA}}}[$__rate_interval]))", "{{route}}"),
            unit="reqps",
            stacked=True,
        ),
        lines(
            "Classifying requests by status",
            "How are they answered? 429 is busy, 5xx an error.",
            (f"sum by (code) (rate(lowfirst_requests_total{{{CLASSIFIES}, {REPLICA}}}[$__rate_interval]))", "{{code}}"),
            unit="reqps",
            stacked=True,
        ),
        lines(
            "Errors and rejections",
            "Which share of the requests fails, which of the images, alone or in a batch, and which of them is turned "
            "away? All replicas, five minutes.",
            ("lowfirst:errors:ratio_rate5m", "requests failed"),
            ("lowfirst:image_errors:ratio_rate5m", "images failed"),
            ("lowfirst:rejected:ratio_rate5m", "images turned away"),
            unit=SHARE,
        ),
    ]
    latency: list[Panel] = [
        heat(
            "Latency",
            "How long do requests take? Two bands: exits and escalations.",
            "lowfirst_request_seconds",
            f"{CLASSIFIES}, {REPLICA}",
            SECONDS,
        ),
        lines(
            "Latency percentiles",
            "How long do the slow ones take? All replicas, five minutes.",
            *percentiles("lowfirst:request_seconds"),
            unit=SECONDS,
        ),
    ]
    stages: list[Panel] = [
        lines(
            "Queue wait by stage",
            "How long do images wait for each pass? All replicas, five minutes.",
            *percentiles("lowfirst:queue_wait_seconds", "{{stage}}"),
            unit=SECONDS,
        ),
        lines(
            "Compute by stage",
            "How long does a batch of each pass take? All replicas, five minutes.",
            *percentiles("lowfirst:compute_seconds", "{{stage}}"),
            unit=SECONDS,
        ),
        lines(
            "Decoding",
            "How long does an image take from bytes to pixels?",
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
            "How many images wait for each pass?",
            (f"sum by (stage) (lowfirst_queue_depth{{{REPLICA}}})", "{{stage}}"),
            unit=COUNT,
        ),
        lines(
            "Oldest image in the queue",
            "How long has the oldest waited, on the worst replica? It climbs where nothing runs any more.",
            (f"max by (stage) (lowfirst_queued_seconds{{{REPLICA}}})", "{{stage}}"),
            unit=SECONDS,
        ),
        lines(
            "In flight",
            "How many images are accepted and not yet answered? LOWFIRST_MAX_IMAGES_IN_FLIGHT bounds it.",
            (f"sum(lowfirst_images_in_flight{{{REPLICA}}})", "images"),
            unit=COUNT,
        ),
        lines(
            "Features kept for later stages",
            "How much memory do escalated images hold?",
            (f"sum(lowfirst_feature_bytes{{{REPLICA}}})", "features"),
            unit=BYTES,
        ),
    ]
    batches: list[Panel] = [
        lines(
            "Batch size by stage",
            "How full are batches on average? Fuller is cheaper by the image.",
            (
                f"sum by (stage) (rate(lowfirst_batch_size_sum{{{REPLICA}}}[$__rate_interval])) "
                f"/ sum by (stage) (rate(lowfirst_batch_size_count{{{REPLICA}}}[$__rate_interval]))",
                "{{stage}}",
            ),
            unit=COUNT,
        ),
        lines(
            "Batches by reason",
            "Why was each batch released? full: no room for more; drained: a worker was idle; slots: features ran out.",
            (
                f"sum by (stage, reason) (rate(lowfirst_batches_total{{{REPLICA}}}[$__rate_interval]))",
                "{{stage}} {{reason}}",
            ),
            unit=EACH_SECOND,
            stacked=True,
        ),
        lines(
            "Dropped",
            "How many images did nobody wait for any more, and where were they met?",
            (f"sum by (point) (rate(lowfirst_dropped_total{{{REPLICA}}}[$__rate_interval]))", "{{point}}"),
            unit=EACH_SECOND,
        ),
        lines(
            "Rejected",
            "How many images were turned away, and by which limit?",
            (f"sum by (reason) (rate(lowfirst_rejected_total{{{REPLICA}}}[$__rate_interval]))", "{{reason}}"),
            unit=EACH_SECOND,
        ),
    ]
    return dashboard(
        "lowfirst-serving",
        "lowfirst: Serving",
        "Whether clients are served well, and where their images wait.",
        {"Requests": requests, "Latency": latency, "Stages": stages, "Queues": queues, "Batches": batches},
    )


def fleet() -> schema.Dashboard:
    """Whether the replicas are alive and alike, and what they share."""
    up = number(
        "Store",
        "Does each replica reach Redis? Always up where LOWFIRST_REDIS_URL names none.",
        (f"lowfirst_store_up{{{REPLICA}}}", "{{instance}}"),
        unit="none",
    )
    down, fine = schema.ValueMappingResult("down", "red"), schema.ValueMappingResult("up", "green")
    alive: list[Panel] = [
        number("Replicas", "How many can be scraped, of all replicas?", ('sum(up{job="lowfirst"})', "up"), unit=COUNT),
        number(
            "Config version skew",
            "Do all replicas answer under the same config? 0 but for a second after a change.",
            ("max(lowfirst_config_version) - min(lowfirst_config_version)", "versions apart"),
            unit=COUNT,
        ),
        up.mappings([schema.ValueMap({"0": down, "1": fine})]).graph_mode(BigValueGraphMode.NONE),
    ]
    config: list[Panel] = [
        lines(
            "Config version by replica",
            "Which replica lags behind?",
            (f"lowfirst_config_version{{{REPLICA}}}", "{{instance}}"),
            unit=COUNT,
            steps=True,
        ),
        lines(
            "Threshold in force by replica",
            "Which replica is so loaded that its threshold sinks?",
            (f"lowfirst_effective_threshold{{{REPLICA}}}", "{{instance}} {{model}}"),
            unit="none",
            steps=True,
        ),
    ]
    store: list[Panel] = [
        lines(
            "Store by replica",
            "When did which replica not reach Redis? 1 is up.",
            (f"lowfirst_store_up{{{REPLICA}}}", "{{instance}}"),
            unit="none",
            steps=True,
        ),
        lines(
            "Shared config ignored by replica",
            "Which replica cannot take what stands in Redis? 1: a newer release wrote it, or it is out of bounds.",
            (f"lowfirst_config_invalid{{{REPLICA}}}", "{{instance}}"),
            unit="none",
            steps=True,
        ),
    ]
    work: list[Panel] = [
        lines(
            "Images by replica",
            "Is the load spread evenly?",
            (f"sum by (instance) (rate(lowfirst_images_total{{{REPLICA}}}[$__rate_interval]))", "{{instance}}"),
            unit=EACH_SECOND,
        ),
        lines(
            "Early-exit rate by replica",
            "Does one exit otherwise than the rest? Another threshold or another kind of image is behind it.",
            (
                f"sum by (instance) (rate(lowfirst_images_total{{{REPLICA}}}[$__rate_interval]) "
                f'unless on (model, exit) lowfirst_images_total{{reason=~"escalated|only", {REPLICA}}}) '
                f"/ sum by (instance) (rate(lowfirst_images_total{{{REPLICA}}}[$__rate_interval]))",
                "{{instance}}",
            ),
            unit=SHARE,
        ),
        lines(
            "p95 by replica",
            "Which replica is slow?",
            (
                "histogram_quantile(0.95, sum by (instance, le) "
                f"(rate(lowfirst_request_seconds_bucket{{{CLASSIFIES}, {REPLICA}}}[$__rate_interval])))",
                "{{instance}}",
            ),
            unit=SECONDS,
        ),
        lines(
            "Errors by replica",
            "Which replica fails? Requests answered 500 or above, and images, alone or in a batch.",
            (
                f'sum by (instance) (rate(lowfirst_requests_total{{{CLASSIFIES}, code=~"5..", {REPLICA}}}'
                "[$__rate_interval]))",
                "{{instance}} requests",
            ),
            (
                f"sum by (instance) (rate(lowfirst_image_errors_total{{{OURS}, {REPLICA}}}[$__rate_interval]))",
                "{{instance}} images",
            ),
            unit=EACH_SECOND,
        ),
    ]
    cache: list[Panel] = [
        lines(
            "Cache look-ups",
            "How often is the result cache asked, and does it know? None while it is off.",
            (f"sum by (result) (rate(lowfirst_cache_requests_total{{{REPLICA}}}[$__rate_interval]))", "{{result}}"),
            unit=EACH_SECOND,
            stacked=True,
        ),
        lines(
            "Cache hit rate by replica",
            "Which share of the look-ups is answered from it, at no multiply-adds?",
            (
                f'sum by (instance) (rate(lowfirst_cache_requests_total{{result="hit", {REPLICA}}}[$__rate_interval])) '
                f"/ sum by (instance) (rate(lowfirst_cache_requests_total{{{REPLICA}}}[$__rate_interval]))",
                "{{instance}}",
            ),
            unit=SHARE,
        ),
    ]
    machine: list[Panel] = [
        lines(
            "Cores in use by replica",
            "Is the machine the limit?",
            (f'rate(process_cpu_seconds_total{{job="lowfirst", {REPLICA}}}[$__rate_interval])', "{{instance}}"),
            unit="none",
        ),
        lines(
            "Memory by replica",
            "Does one grow?",
            (f'process_resident_memory_bytes{{job="lowfirst", {REPLICA}}}', "{{instance}}"),
            unit=BYTES,
        ),
    ]
    return dashboard(
        "lowfirst-fleet",
        "lowfirst: Fleet",
        "Whether the replicas are alive and alike, and what they share.",
        {"Alive": alive, "Config": config, "Store": store, "Work": work, "Cache": cache, "Machine": machine},
    )


def main(folder: Path) -> None:
    """Write every dashboard into ``folder``."""
    folder.mkdir(exist_ok=True)
    for page in (early_exit(), serving(), fleet()):
        text = json.dumps(page, cls=JSONEncoder, indent=2, sort_keys=True)
        (folder / f"{str(page.uid).removeprefix('lowfirst-')}.json").write_text(text + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else DASHBOARDS)
