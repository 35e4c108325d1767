"""``lowfirst quantise``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from service.cli.console import Data, Workers, next_step, progress, say


def quantise(
    run: Annotated[Path, typer.Argument(help="Run folder of a calibrated network.")],
    data: Data,
    split: Annotated[
        str | None, typer.Option(help="Folder of --data to use. [default: photographs held out of train/]")
    ] = None,
    workers: Workers = None,
) -> None:
    """Make an int8 form for OpenVINO. It is kept only if its answers surely agree with float32's on 99 % of
    photographs, and if it is faster on this machine."""
    from service.evaluation.quantise import quantise as make

    with progress("quantising") as show:
        made = make(run, data, split, workers, lambda images: show(images, 0))
    say(
        f"int8 answers as float32 does on {100 * made.agreement:.2f} % of {made.images} photographs, "
        f"{100 * made.agreement_at_least:.1f} % or more with 95 % confidence, and takes {100 * made.time:.0f} % of the "
        f"time of {made.instead} here, {100 * made.time_at_most:.0f} % or less; default threshold "
        f"{made.spec.start_threshold('openvino', 'int8'):g}. Servers take it with LOWFIRST_RUNTIME=openvino "
        "LOWFIRST_PRECISION=int8"
    )
    next_step("evaluate", run, "--data", data, "--precision", "int8")
