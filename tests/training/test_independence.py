"""A GPU machine trains, calibrates and evaluates without the packages that serve."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SERVING = (
    "fastapi starlette uvicorn pydantic pydantic_settings prometheus_client redis typer rich matplotlib multipart "
    "python_multipart"
)

SCRIPT = """
import sys
from importlib.abc import MetaPathFinder
from pathlib import Path

class Refuse(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in REFUSED:
            raise ImportError(f"{name} is not for training")

data, out, REFUSED = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3].split()
sys.meta_path.insert(0, Refuse())

import torch
torch.set_num_threads(1)
from service.evaluation.calibrate import calibrate
from service.evaluation.evaluate import evaluate
from service.inference.predictor import Predictor
from service.training.loop import train
from service.training.options import TrainOptions

train(TrainOptions("ms_mobilenet_v1_025", data, out, resolution=64, epochs=1, batch_size=16, calibration_share=0.3,
                   device="cpu", precision="float32", workers=0))
calibrate(out, data, device="cpu", workers=0)
print(evaluate(Predictor.load(out, "cpu", "float32"), data, workers=0).images)
"""


def test_training_calibration_and_evaluation_need_no_serving_package(shapes: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-W", "error", "-c", SCRIPT, str(shapes), str(tmp_path / "run"), SERVING]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "18"
