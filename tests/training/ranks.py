"""Run by torchrun with the file of pickled options: trains, and each process notes what it ends with."""

from __future__ import annotations

import json
import pickle
import sys
from pathlib import Path
from typing import Any

import torch.distributed as dist

from service.training.loop import _Run
from service.training.options import TrainOptions
from service.training.processes import Processes

all_reduce, calls = dist.all_reduce, 0


def counted(*arguments: Any, **named: Any) -> Any:
    """``all_reduce`` as this project calls it; gradients are averaged below Python, while they are computed."""
    global calls
    calls += 1
    return all_reduce(*arguments, **named)


def trained_weights(options: TrainOptions, processes: Processes) -> list[float]:
    """Sums of this process's parameters. Its run ends here, before the group does: a group that anything still holds
    keeps its threads, and a thread that frees a tensor while Python exits aborts the process."""
    run = _Run(options, processes, resume=False, store=None)
    run.run(lambda step: None, lambda line: None)
    return [parameter.double().sum().item() for parameter in run.network.parameters()]


asked: TrainOptions = pickle.loads(Path(sys.argv[1]).read_bytes())
dist.all_reduce = counted
with Processes.join("cpu") as joined:
    weights = trained_weights(asked, joined)
(asked.out / f"rank-{joined.rank}.json").write_text(json.dumps({"weights": weights, "waited": calls}))
