"""``lowfirst quantise``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from service.cli.console import Data, Workers, next_step, progress, say


def quantise(
    run: Annotated[Path, typer.Argument(help="Run folder of a calibrated network.")],
    data: Data,
    workers: Workers = None,
) -> None:
    """Make an int8 form for OpenVINO; it is kept only if its answers agree with float32's on 99 % of photographs."""
    from service.evaluation.quantise import quantise as make

    with progress("quantising") as show:
        spec, agreement = make(run, data, workers, lambda images: show(images, 0))
    say(
        f"int8 answers as float32 does on {100 * agreement:.2f} % of the held-out photographs; default threshold "
        f"{spec.start_threshold('openvino', 'int8'):g}. Servers take it with LOWFIRST_RUNTIME=openvino "
        "LOWFIRST_PRECISION=int8"
    )
    next_step("evaluate", run, "--data", data, "--precision", "int8")
