"""Run by torchrun with the file of pickled options: trains, and each process notes the weights that it ends with."""

from __future__ import annotations

import json
import pickle
import sys
from pathlib import Path

from service.training.loop import _Run
from service.training.processes import Processes

options = pickle.loads(Path(sys.argv[1]).read_bytes())
with Processes.join("cpu") as processes:
    run = _Run(options, processes, resume=False, store=None)
    run.run(lambda step: None, lambda line: None)
    weights = [parameter.double().sum().item() for parameter in run.network.parameters()]
    (options.out / f"rank-{processes.rank}.json").write_text(json.dumps(weights))
