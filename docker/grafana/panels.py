"""Kinds of panels, and a dashboard around them, by Grafana's own SDK: a field unknown to the schema is an error.

What the SDK leaves out Grafana fills in by its own defaults (no legend, red from 80 on): each kind says all of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from string import ascii_uppercase

from grafana_foundation_sdk.builders import common, heatmap, prometheus, stat, timeseries
from grafana_foundation_sdk.builders import dashboard as build
from grafana_foundation_sdk.models import dashboard as schema
from grafana_foundation_sdk.models.common import (
    BigValueColorMode,
    BigValueGraphMode,
    BigValueTextMode,
    GraphThresholdsStyleMode,
    LegendDisplayMode,
    LegendPlacement,
    LineInterpolation,
    SortOrder,
    StackingMode,
    TooltipDisplayMode,
    VisibilityMode,
)
from grafana_foundation_sdk.models.heatmap import HeatmapColorMode
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

DATASOURCE_NAME, DATASOURCE_UID = "Prometheus", "lowfirst-prometheus"  # as provisioned
DATASOURCE = schema.DataSourceRef("prometheus", DATASOURCE_UID)

WIDTH = 24  # of Grafana's grid
MOST_WITH_A_FULL_LEGEND = 3  # panels in a row; names would be cut in narrower ones

CLASSIFIES = 'route=~"/classify.*|/v2/.+/infer"'
# Errors, but not the sender's own.
OURS = 'code!~"bad_request|deadline_passed|image_too_large|invalid_image|unsupported_image"'
REPLICA = 'instance=~"$replica"'
MODEL = 'model=~"$model"'

# A mark is looked for at each step, in as much time and one scrape more: a change lies between two scrapes.
MARK_STEP_SECONDS, SCRAPE_SECONDS = 60, 5

GOOD, BAD, NEUTRAL = "green", "red", "blue"
DASHED = "/(predicted|single-scale|asked|allowed|limit)$/"  # names of lines that others are compared with

Panel = timeseries.Panel | heatmap.Panel | stat.Panel | build.Panel
Query = tuple[str, str]  # PromQL, and what its series are called
Steps = Sequence[tuple[float | None, str]]  # from which value on which colour; the first from None


@dataclass(frozen=True, slots=True)
class Unit:
    """One of Grafana's units, and how many decimals its values have."""

    name: str
    decimals: int


SHARE = Unit("percentunit", 1)
SECONDS = Unit("s", 2)
COUNT = Unit("none", 0)
MEAN_COUNT = Unit("none", 1)
MULTIPLY_ADDS = Unit("sishort", 1)
CONFIDENCE = Unit("none", 2)
CORES = Unit("none", 2)
MONEY = Unit("none", 2)
IMAGES_PER_SECOND = Unit("suffix:images/s", 1)
BATCHES_PER_SECOND = Unit("suffix:batches/s", 1)
LOOK_UPS_PER_SECOND = Unit("suffix:look-ups/s", 1)
KEYS_PER_SECOND = Unit("suffix:keys/s", 1)
REQUESTS_PER_SECOND = Unit("reqps", 1)
FAILURES_PER_SECOND = Unit("suffix:failures/s", 2)
BYTES = Unit("bytes", 1)

# Colours that say whether a value is good; a value that is neither has one neutral colour.
ALWAYS_NEUTRAL: Steps = [(None, NEUTRAL)]
SAVING: Steps = [(None, BAD), (0, GOOD)]
NONE_IS_GOOD: Steps = [(None, GOOD), (1, BAD)]
SOME_IS_GOOD: Steps = [(None, BAD), (1, GOOD)]


def share_is_bad_from(limit: float) -> Steps:
    """Good below ``limit``."""
    return [(None, GOOD), (limit, BAD)]


def lines(
    title: str,
    answers: str,
    *queries: Query,
    unit: Unit,
    stacked: bool = False,
    steps: bool = False,
    most: float | None = None,
    least: float | None = 0,
    limit: Steps = (),
    words: Mapping[int, str] | None = None,
) -> timeseries.Panel:
    """Values over time. ``answers`` is the question that the panel answers, and how to read it.

    Args:
        steps: values hold until the next one.
        least, most: ends of the axis; None follows the values.
        limit: drawn as a line, with the colour of what lies beyond.
        words: for values that are no numbers.
    """
    panel = timeseries.Panel().title(title).description(answers).datasource(DATASOURCE).height(9)
    panel.unit(unit.name).decimals(unit.decimals).no_value("no data").mappings(_words(words or {}))
    if least is not None:
        panel.min(least)
    if most is not None:
        panel.max(most)
    panel.targets([_target(index, *query).range() for index, query in enumerate(queries)])
    panel.fill_opacity(30 if stacked else 5).line_width(1 if stacked else 2).show_points(VisibilityMode.NEVER)
    panel.line_interpolation(LineInterpolation.STEP_AFTER if steps else LineInterpolation.LINEAR)
    panel.color_scheme(build.FieldColor().mode(schema.FieldColorModeId.PALETTE_CLASSIC))
    panel.tooltip(common.VizTooltipOptions().mode(TooltipDisplayMode.MULTI).sort(SortOrder.DESCENDING))
    panel.legend(_legend(["lastNotNull"] if words else ["lastNotNull", "mean", "max"]))
    panel.thresholds(_steps(limit or ALWAYS_NEUTRAL))
    style = GraphThresholdsStyleMode.DASHED if limit else GraphThresholdsStyleMode.OFF
    panel.thresholds_style(common.GraphThresholdsStyleConfig().mode(style))
    if stacked:
        panel.stacking(common.StackingConfig().mode(StackingMode.NORMAL).group("all"))
    else:
        dashes = schema.DynamicConfigValue("custom.lineStyle", {"fill": "dash", "dash": [8, 6]})
        panel.override_by_regexp(DASHED, [dashes, schema.DynamicConfigValue("custom.fillOpacity", 0)])
    return panel


def number(
    title: str,
    answers: str,
    *queries: Query,
    unit: Unit,
    colours: Steps = ALWAYS_NEUTRAL,
    missing: str = "no images",
    words: Mapping[int, str] | None = None,
) -> stat.Panel:
    """The newest value in one of ``colours``, and behind it how it came there; ``missing`` where there is none."""
    panel = stat.Panel().title(title).description(answers).datasource(DATASOURCE).height(4)
    panel.unit(unit.name).decimals(unit.decimals).no_value(missing).mappings(_words(words or {}))
    panel.targets([_target(index, *query).range() for index, query in enumerate(queries)])
    panel.thresholds(_steps(colours)).color_scheme(build.FieldColor().mode(schema.FieldColorModeId.THRESHOLDS))
    panel.graph_mode(BigValueGraphMode.NONE if words else BigValueGraphMode.AREA)
    panel.color_mode(BigValueColorMode.VALUE)
    panel.text_mode(
        BigValueTextMode.VALUE_AND_NAME if len(queries) > 1 or "{{" in queries[0][1] else BigValueTextMode.VALUE
    )
    return panel.reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))


def heat(title: str, answers: str, histogram: str, matching: str, unit: Unit) -> heatmap.Panel:
    """Of a Prometheus histogram: how many fell into each bucket, over time."""
    counts = f"sum by (le) (increase({histogram}_bucket{{{matching}}}[$__rate_interval]))"
    panel = heatmap.Panel().title(title).description(answers).datasource(DATASOURCE).height(9)
    panel.with_target(_target(0, counts, "{{le}}").range().format(PromQueryFormat.HEATMAP))
    panel.color(heatmap.HeatmapColorOptions().mode(HeatmapColorMode.SCHEME).scheme("Blues").steps(64))
    panel.calculate(False).y_axis(heatmap.YAxisConfig().unit(unit.name).decimals(unit.decimals))
    return panel.cell_values(heatmap.CellValues().unit("suffix:images").decimals(0)).show_legend().show_y_histogram()


def alerts(title: str, answers: str) -> build.Panel:
    """Alerts of Prometheus that fire or soon will. The SDK has no words for this kind: they are Grafana's options."""
    options = {
        "alertInstanceLabelFilter": "",
        "alertName": "",
        "dashboardAlerts": False,
        "datasource": DATASOURCE_NAME,
        "groupBy": [],
        "groupMode": "default",
        "maxItems": 20,
        "showInactiveAlerts": False,
        "sortOrder": 3,  # by importance
        "stateFilter": {"error": True, "firing": True, "noData": False, "normal": False, "pending": True},
        "viewMode": "list",
    }
    return build.Panel().type("alertlist").title(title).description(answers).height(5).options(options)


def percentiles(rule: str, name: str = "") -> list[Query]:
    """p50, p95 and p99 of a recording rule."""
    return [(f"{rule}:p{percent}", f"{name} p{percent}".strip()) for percent in (50, 95, 99)]


def _legend(calculations: list[str]) -> common.VizLegendOptions:
    legend = common.VizLegendOptions().show_legend(True).display_mode(LegendDisplayMode.TABLE)
    return legend.placement(LegendPlacement.BOTTOM).calcs(calculations)


def _target(index: int, expression: str, legend: str) -> prometheus.Dataquery:
    query = prometheus.Dataquery().expr(expression).legend_format(legend or "__auto")
    return query.ref_id(ascii_uppercase[index]).datasource(DATASOURCE)


def _steps(colours: Steps) -> build.ThresholdsConfig:
    steps = [schema.Threshold(value, colour) for value, colour in colours]
    return build.ThresholdsConfig().mode(schema.ThresholdsMode.ABSOLUTE).steps(steps)


def _words(words: Mapping[int, str]) -> list[schema.ValueMapping]:
    if not words:
        return []
    return [
        schema.ValueMap({str(value): schema.ValueMappingResult(text, index=value) for value, text in words.items()})
    ]


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
    uid: str, title: str, answers: str, rows: Mapping[str, Sequence[Panel]], by_model: bool = False
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
            if len(panels) > MOST_WITH_A_FULL_LEGEND and isinstance(panel, timeseries.Panel):
                panel.legend(_legend(["lastNotNull", "max"]))
            page.with_panel(panel.id(number_of).span(WIDTH // len(panels)))
    result = page.build()
    result.annotations.list_val = [threshold_changes(MODEL if by_model else "")]
    return result
