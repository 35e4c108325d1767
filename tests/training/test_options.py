"""Options are checked when they are made, and say what they are."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from service.errors import DataError, InvalidOption
from service.networks.registry import names
from service.training.options import MIN_RESOLUTION, TrainOptions, adapt_recipe, described, paper_recipe

MakeOptions = Callable[..., TrainOptions]


@pytest.mark.parametrize(
    ("field", "value", "bound"),
    [
        ("network", "ms_resnet1", "one of ms_resnet18, "),
        ("schedule", "linear", "one of cosine, step"),
        ("precision", "int8", "one of auto, float32, bfloat16"),
        ("precision", "float16", "one of auto, float32, bfloat16"),
        ("resolution", 97, "divisible by 2: ms_mobilenet_v1_025 has 2 scales"),
        ("resolution", 62, "between 64 and 1024"),
        ("resolution", 1026, "between 64 and 1024"),
        ("epochs", 0, "between 1 and 10000"),
        ("batch_size", 1, "between 2 and 65536"),
        ("learning_rate", 0.0, "between 1e-06 and 10"),
        ("learning_rate", float("nan"), "between 1e-06 and 10"),
        ("warmup", 1.5, "between 0 and 1"),
        ("weight_decay", -1.0, "between 0 and 1"),
        ("min_scale", 0.0, "between 0.01 and 1"),
        ("label_smoothing", 1.0, "between 0 and 0.9"),
        ("distillation", -1.0, "between 0 and 100"),
        ("ema_epochs", -1.0, "between 0 and 1000"),
        ("calibration_share", 0.6, "between 0 and 0.5"),
        ("seed", -1, "between 0 and 4294967295"),
        ("workers", -1, "between 0 and 1024"),
        ("decoded_gb", -1, "between 0 and 10000"),
    ],
)
def test_option_out_of_bounds_is_named_with_its_value_and_bound(
    make_options: MakeOptions, field: str, value: object, bound: str
) -> None:
    with pytest.raises(InvalidOption) as caught:
        make_options(**{field: value})
    assert caught.value.field == field
    assert f"{field} is {value!r}; it must be {bound}" in caught.value.message


@pytest.mark.parametrize("field", ["dataset", "out", "data"])
def test_name_that_is_no_utf_8_is_an_error(make_options: MakeOptions, field: str) -> None:
    with pytest.raises(DataError, match=rf"{field} has the name 'caf\\udce9', which is not UTF-8"):
        make_options(**{field: "caf\udce9"})


@pytest.mark.parametrize("name", TrainOptions.__dataclass_fields__)
def test_every_option_says_what_it_is_for(name: str) -> None:
    assert described()[name].help.endswith(".")


@pytest.mark.parametrize(
    ("network", "resolution", "bound"),
    [
        ("mobilenet_v1_025", 97, "even"),
        ("ms_mobilenet_v1_025", 97, "divisible by 2"),
        ("ms3_mobilenet_v1_025", 98, "divisible by 4"),
    ],
)
def test_resolution_that_a_stage_cannot_have_is_named(
    make_options: MakeOptions, network: str, resolution: int, bound: str
) -> None:
    with pytest.raises(InvalidOption, match=f"resolution is {resolution}; it must be {bound}"):
        make_options(network=network, resolution=resolution)


@pytest.mark.parametrize("resolution", [64, 66, 96, 98, 192, 224, 256, 1024])
@pytest.mark.parametrize("epochs", [1, 2, 5, 40])
def test_progressive_resolutions_are_even_never_fall_and_end_at_the_full_one(
    make_options: MakeOptions, resolution: int, epochs: int
) -> None:
    options = make_options(resolution=resolution, epochs=epochs)
    sizes = [options.resolution_in(epoch) for epoch in range(epochs)]
    assert all(size % 2 == 0 and MIN_RESOLUTION <= size <= resolution for size in sizes)
    assert sizes == sorted(sizes)
    assert epochs < 3 or sizes[-1] == resolution


def test_progressive_resolutions_at_192_pixels(make_options: MakeOptions) -> None:
    options = make_options(resolution=192, epochs=10)
    assert [options.resolution_in(epoch) for epoch in range(10)] == [128] * 6 + [160] * 2 + [192] * 2


def test_without_progressive_every_epoch_has_the_full_resolution(make_options: MakeOptions) -> None:
    options = make_options(resolution=192, epochs=10, progressive=False)
    assert {options.resolution_in(epoch) for epoch in range(10)} == {192}


def test_json_holds_every_option_as_a_plain_value(make_options: MakeOptions) -> None:
    options = make_options(network_options={"fusion": "after_relu"}, class_names=Path("names.json"))
    raw = options.to_json()
    assert json.loads(json.dumps(raw)) == raw
    assert set(raw) == set(TrainOptions.__dataclass_fields__)
    assert raw["class_names"] == "names.json"
    assert raw["network_options"] == {"fusion": "after_relu"}


def test_recipe_leaves_out_places_and_machines(make_options: MakeOptions) -> None:
    recipe = make_options().recipe()
    assert not {"data", "out", "class_names", "device", "workers"} & set(recipe)
    assert {"network", "resolution", "epochs", "seed", "calibration_share", "init"} <= set(recipe)


@pytest.mark.parametrize(
    ("init", "kept"), [("/home/me/runs/first", "runs/first"), ("tiny/1", "tiny/1"), ("torchvision", "torchvision")]
)
def test_recipe_names_what_a_run_started_from_and_not_where_that_lies(
    make_options: MakeOptions, init: str, kept: str
) -> None:
    assert make_options(init=init).recipe()["init"] == kept


@pytest.mark.parametrize("network", names())
def test_paper_recipe_is_the_papers(make_options: MakeOptions, network: str) -> None:
    options = make_options(**{"network": network, **paper_recipe(network)})
    assert (options.epochs, options.batch_size, options.learning_rate, options.schedule) == (120, 256, 0.1, "step")
    assert options.weight_decay == (4e-5 if "mobilenet" in network else 1e-4)
    assert (options.min_scale, options.progressive, options.ema_epochs, options.distillation) == (0.08, False, 0, 0)


@pytest.mark.parametrize(("network", "gates"), [("ms_resnet18", {"gated": True}), ("resnet18", {})])
def test_adapting_goes_slowly_and_shuts_the_gates_that_there_are(
    make_options: MakeOptions, network: str, gates: dict[str, bool]
) -> None:
    options = make_options(**{"network": network, **adapt_recipe(network)})
    assert (options.network_options, options.learning_rate) == (gates, 0.03)
