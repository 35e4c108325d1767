"""A cascade's single-scale network has the options of its base network, and none of several scales."""

from __future__ import annotations

import pytest
import torch

from service.images.transforms import Preprocessing
from service.inference.predictor import Predictor
from service.inference.single_scale import single_scale
from service.model_spec import Architecture, ModelSpec
from service.networks.registry import build
from service.stages import StageSpec


@pytest.mark.parametrize("of_scales", [{}, {"gated": True}, {"fusion": "after_relu", "gated": False}])
def test_options_of_several_scales_are_left_out(of_scales: dict[str, object]) -> None:
    options = {"projection": False, **of_scales}
    labels = ("a", "b", "c")
    spec = ModelSpec(
        name="m",
        version=0,
        architecture=Architecture("ms_resnet18", 3, options),
        classes=labels,
        class_folders=labels,
        preprocessing=Preprocessing.at(64),
        stages=(StageSpec("low", 32, 1.0), StageSpec("high", 64, 4.0)),
        weights_sha256="",
    )
    predictor = Predictor(build("ms_resnet18", 3, options), spec, torch.device("cpu"), "float32")
    single = single_scale(predictor)
    assert single.spec.architecture == Architecture("resnet18", 3, {"projection": False})
    assert single.spec.resolutions == (64,)
