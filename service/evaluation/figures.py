"""The report's pictures, PNG. One colour, one meaning: teal is the low pass, orange the high one."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from service.calibration.exit_rule import end_stages
from service.evaluation.cascade import Cascade, Floats
from service.evaluation.passes import Bools
from service.evaluation.spectrum import LOW, OWN, SINGLE, SUM, Spectrum

TEAL, ORANGE, INK, QUIET, PALE = "#0b7a71", "#ad560c", "#1d1c1a", "#8b867d", "#d8d4cc"
# Of cascades in one picture: told apart in grey too, by their lines.
COLOURS = ("#2f5fb3", "#8d3b8d", "#3f3f3f", "#5b9bd5")
LINES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)), "-.")
TONES = [TEAL, ORANGE, "#6b4fa0"]
CURVES = tuple((COLOURS[i % 4], LINES[(i + i // 4) % 4]) for i in range(16))
NAIVE = ((0, (4, 2)), (0, (1, 1.5)), (0, (8, 2, 1, 2)))
DPI = 130
NOTHING = 1e-6  # of a magnitude: rounding
RANGE = 300  # of magnitudes told apart by colour
BINS = 10
FEW_FREQUENCIES = 2  # cycles per image: all of them are above half of that
FEWEST = 20  # exited images, below which a precision says nothing

STYLE: dict[Any, Any] = {
    "font.size": 10.5,
    "axes.titlesize": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": QUIET,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "text.color": INK,
    "axes.grid": True,
    "grid.color": PALE,
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
}


def draw(path: Path, size: tuple[float, float], paint: Callable[[Any], None]) -> None:
    """Let ``paint`` fill a figure of ``size`` inches, and save it."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with rc_context(STYLE):
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasAgg(figure)
        paint(figure)
        figure.savefig(path, dpi=DPI, facecolor="white")


def spectrum(path: Path, spectra: dict[str, Spectrum]) -> None:
    """Figure 1: magnitude by frequency of each last map, and the radial profiles."""
    colours = {SINGLE: INK, LOW: TEAL, OWN: ORANGE, SUM: CURVES[0][0]}
    marks = {SINGLE: "s", LOW: "o", OWN: "^", SUM: "D"}
    titles = {
        SINGLE: "single-scale network",
        LOW: "L, upsampled as H receives it",
        OWN: "H's own, before L is added",
        SUM: "H + u(L), as classified",
    }

    def paint(figure: Any) -> None:
        from matplotlib.colors import LogNorm
        from matplotlib.ticker import MaxNLocator

        shown = [name for name in titles if name in spectra]
        above, below = figure.subfigures(2, 1, height_ratios=(1, 1.0))
        axes = above.subplots(1, len(shown), squeeze=False)[0]
        values = [spectra[name].magnitude for name in shown]
        most = max(v.max() for v in values)  # doubling leaves nothing at Nyquist's frequency: no logarithm of that
        norm = LogNorm(max(min(v.min() for v in values), most / RANGE), most, clip=True)
        image = None
        for each, name in zip(axes, shown, strict=True):
            height, width = spectra[name].magnitude.shape
            extent = (-(width // 2) - 0.5, (width - 1) // 2 + 0.5, (height - 1) // 2 + 0.5, -(height // 2) - 0.5)
            image = each.imshow(spectra[name].magnitude, norm=norm, extent=extent, cmap="viridis")
            each.set_title(titles[name])
            each.set_xlabel("cycles per image, across")
            for axis, side in ((each.xaxis, width), (each.yaxis, height)):
                axis.set_major_locator(MaxNLocator(min(side, 8), integer=True))
            each.grid(visible=False)
            for side in each.spines.values():
                side.set_visible(False)
        axes[0].set_ylabel("cycles per image, down")
        above.colorbar(image, ax=axes, label="share of the magnitude", fraction=0.03, pad=0.02)
        plot = below.subplots()
        for name in shown:
            radii, means = spectra[name].profile()
            means = np.where(means > means[0] * NOTHING, means, np.nan)
            label = titles[name]
            if spectra[name].reach > FEW_FREQUENCIES:
                label += f" ({100 * spectra[name].above_half():.0f} % above half of Nyquist)"
            plot.semilogy(radii, means / means[0], marker=marks[name], color=colours[name], lw=1.8, label=label)
        plot.xaxis.set_major_locator(MaxNLocator(integer=True))
        plot.set_xlabel("radius, cycles per image")
        plot.set_ylabel("magnitude (the mean value: 1)")
        plot.legend(fontsize=9.5)

    draw(path, (3.0 * len(spectra) + 1.2, 6.6), paint)


@dataclass(frozen=True, slots=True)
class Regions:
    """Which of two stages is right on each image; shares of 1. A both, B the first, C the last, D neither."""

    both: float
    first: float
    last: float
    neither: float

    @classmethod
    def of(cls, first: Bools, last: Bools) -> Regions:
        """From whether the two are right, each (n,)."""
        shares = (first & last, first & ~last, ~first & last, ~first & ~last)
        return cls(*(float(share.mean()) for share in shares))


def regions(path: Path, cascades: dict[str, Cascade]) -> None:
    """Figure 2: regions A to D of each pair of passes, and the precision of what exits against the threshold."""
    parts = [
        ("both", "A  both right", PALE, INK),
        ("first", "B  only the first", TEAL, "white"),
        ("last", "C  only the last", ORANGE, "white"),
        ("neither", "D  neither", "#57534d", "white"),
    ]

    def paint(figure: Any) -> None:
        above, below = figure.subfigures(2, 1, height_ratios=(0.9 + 0.45 * len(cascades), 3.4))
        bars = above.subplots()
        for place, cascade in enumerate(cascades.values()):
            of = Regions.of(cascade.right[:, 0], cascade.right[:, -1])
            left = 0.0
            for name, label, colour, ink in parts:
                width = 100 * getattr(of, name)
                bars.barh(place, width, left=left, height=0.62, color=colour, label=None if place else label)
                if width > 3:
                    bars.text(left + width / 2, place, f"{width:.1f}", ha="center", va="center", color=ink, size=8.5)
                left += width
        bars.set_yticks(range(len(cascades)), list(cascades))
        bars.set_xlim(0, 100)
        bars.set_xlabel("share of the images, %")
        bars.invert_yaxis()
        bars.grid(visible=False)
        above.legend(loc="outside upper right", ncols=4, fontsize=9.5, handlelength=1.2)
        left_plot, right_plot = below.subplots(1, 2)
        for (name, cascade), (colour, line) in zip(cascades.items(), CURVES * len(cascades), strict=False):
            thresholds = np.linspace(0, 0.999, 400)
            ends = np.stack([end_stages(cascade.confidence, threshold) for threshold in thresholds])
            exited = ends < cascade.confidence.shape[1]
            counts = exited.sum(1)
            right = cascade.right[np.arange(len(cascade.right)), ends]
            with np.errstate(invalid="ignore"):
                precision = np.where(counts >= FEWEST, (exited & right).sum(1) / counts, np.nan)
            left_plot.plot(thresholds, 100 * precision, color=colour, ls=line, lw=1.8, label=name)
            right_plot.plot(thresholds, 100 * counts / len(cascade.right), color=colour, ls=line, lw=1.8)
        for plot, label in ((left_plot, "precision of the exited images, %"), (right_plot, "images that exit, %")):
            plot.set_xlabel("threshold")
            plot.set_ylabel(label)
            plot.set_xlim(0, 1)
        left_plot.set_ylim(top=101)
        right_plot.set_ylim(0, 101)
        below.legend(loc="outside lower left", ncols=1 if len(cascades) < 3 else 2, fontsize=9.5)

    draw(path, (9.6, 5.1 + 0.5 * len(cascades)), paint)


@dataclass(frozen=True, slots=True)
class Dot:
    """A network without an exit: its cost, accuracy (share of 1), and what to write beside it.

    ``is_half``: trained at half the size of the high network.
    """

    cost: float
    accuracy: float
    label: str
    is_half: bool = False


@dataclass(frozen=True, slots=True)
class Curve:
    """A cascade, its name, and its default threshold where it has one."""

    name: str
    cascade: Cascade
    default: float | None = None
    is_naive: bool = False


def tradeoff(
    path: Path, curves: Sequence[Curve], single: Sequence[Dot], averaged: Sequence[Dot], unit: str, title: str
) -> None:
    """Figure 5: top-1 against mean cost while the threshold moves; networks without an exit as dots."""

    def paint(figure: Any) -> None:
        axes = figure.subplots()
        colours = iter(CURVES * len(curves))
        naive = iter([(QUIET, line) for line in NAIVE] * len(curves))
        for curve in curves:
            costs, accuracy = curve.cascade.curve()
            colour, line = next(naive if curve.is_naive else colours)
            label = curve.name
            if curve.default is not None:
                exit_rate, cost, right = curve.cascade.at(curve.default)
                axes.plot(cost, 100 * right, "o", ms=9, mfc="white", mec=colour, mew=2.2, zorder=5)
                label += f"\nring: threshold {curve.default:g}, {100 * exit_rate:.0f} % exit, {100 * right:.1f} %"
            axes.plot(costs, 100 * accuracy, color=colour, ls=line, lw=1.6 if curve.is_naive else 2.2, label=label)
        sizes = set()
        for dots, mark, name in ((single, "s", ""), (averaged, "D", "logits at two sizes averaged")):
            named = set()
            for dot in dots:
                label = name or (
                    "trained at half the size" if dot.is_half else "single-scale, tested at the size named"
                )
                colour = TEAL if dot.is_half else ORANGE
                axes.plot(
                    dot.cost, 100 * dot.accuracy, mark, ms=7.5, mfc=colour if mark == "s" else "white", mec=colour,
                    mew=1.6, ls="", label=None if label in named else label, zorder=4,
                )  # fmt: skip
                named.add(label)
                if (dot.label, colour) in sizes:  # another seed's
                    continue
                sizes.add((dot.label, colour))
                where = (-8, 0, "right", "center") if dot.is_half else (0, -9, "center", "top")
                axes.annotate(
                    dot.label, (dot.cost, 100 * dot.accuracy), xytext=where[:2], textcoords="offset points", size=8.5,
                    color=colour, ha=where[2], va=where[3],
                )  # fmt: skip
        for high in {curve.cascade.full_cost for curve in curves if not curve.is_naive}:
            axes.axvline(high, color=QUIET, lw=1, ls=":")
            axes.annotate(
                "last stage alone", (high, 1), xycoords=("data", "axes fraction"), xytext=(0, 3),
                textcoords="offset points", ha="center", va="bottom", size=8.5, color="#625e57",
            )  # fmt: skip
        axes.set_xlabel(unit)
        axes.set_ylabel("top-1, %")
        axes.set_title(title, loc="left", pad=16)
        axes.set_xlim(left=0)
        axes.margins(y=0.12)
        figure.legend(loc="outside lower left", ncols=2, fontsize=9.5)

    draw(path, (8.4, 6.0), paint)


@dataclass(frozen=True, slots=True)
class Reliability:
    """How right a head is where it claims to be so sure: bins of equally many images, by rising confidence."""

    claimed: Floats
    right: Floats
    error: float

    @classmethod
    def of(cls, confidence: Floats, is_right: Bools, bins: int = BINS) -> Reliability:
        """``error``: the mean over images of the bins' distances (expected calibration error)."""
        order = np.array_split(np.argsort(confidence, kind="stable"), bins)
        order = [one for one in order if len(one)]
        claimed = np.array([confidence[one].mean() for one in order])
        right = np.array([is_right[one].mean() for one in order])
        sizes = np.array([len(one) for one in order])
        return cls(claimed, right, float((np.abs(claimed - right) * sizes).sum() / sizes.sum()))


def reliability(path: Path, heads: dict[str, tuple[Reliability, Reliability, float]]) -> None:
    """Each head before and after its temperature; ``heads`` by name: before, after, temperature."""
    tones = dict(zip(heads, TONES * len(heads), strict=False))

    def paint(figure: Any) -> None:
        for axes, (head, (before, after, temperature)) in zip(
            figure.subplots(1, len(heads), squeeze=False)[0], heads.items(), strict=True
        ):
            lowest = 100 * min(*before.claimed, *before.right, *after.claimed, *after.right)
            start = max(0, 10 * math.floor(lowest / 10))
            axes.plot([start, 100], [start, 100], color=QUIET, lw=1, ls=":")
            for one, colour, mark, label in (
                (before, QUIET, "o--", "before: temperature 1"),
                (after, tones[head], "s-", f"after: temperature {temperature:.2f}"),
            ):
                axes.plot(
                    100 * one.claimed, 100 * one.right, mark, color=colour, ms=5.5, lw=1.6,
                    label=f"{label}, error {100 * one.error:.1f} points",
                )  # fmt: skip
            axes.set_title(f"{head} head", loc="left", color=tones[head])
            axes.set_xlabel("confidence, %")
            axes.set_ylabel("right, %")
            axes.set_xlim(start, 102)
            axes.set_ylim(start, 102)
            axes.set_aspect("equal")
            axes.legend(loc="upper left", bbox_to_anchor=(0, -0.11), fontsize=9.5)

    draw(path, (4.9 * len(heads), 5.5), paint)


@dataclass(frozen=True, slots=True)
class Picture:
    """A photograph, uint8 (R, R, 3), with what to write under it; ``tone`` colours the second line."""

    pixels: npt.NDArray[np.uint8]
    truth: str
    answer: str
    tone: str


def contact_sheet(path: Path, rows: Mapping[str, Sequence[Picture]]) -> None:
    """Rows of photographs, each under its name."""
    columns = max(len(pictures) for pictures in rows.values())

    def paint(figure: Any) -> None:
        for part, (name, pictures) in zip(
            figure.subfigures(len(rows), 1, squeeze=False)[:, 0], rows.items(), strict=True
        ):
            part.suptitle(name, x=0.005, y=0.97, va="top", ha="left", size=11)
            for axes in part.subplots(1, columns, squeeze=False)[0]:
                axes.axis("off")
            for axes, picture in zip(part.axes, pictures, strict=False):
                axes.imshow(picture.pixels)
                axes.text(0, 1.0, picture.truth, transform=axes.transAxes, va="bottom", size=8)
                axes.text(0, -0.03, picture.answer, transform=axes.transAxes, va="top", size=8, color=picture.tone)

    draw(path, (1.75 * columns, 2.75 * len(rows)), paint)
