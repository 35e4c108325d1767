"""One suite over every runtime: each computes the network's function, for any batch, from any thread."""

from __future__ import annotations

import copy
import dataclasses
import gc
import itertools
import os
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TypeVar

import pytest
import torch
from torch import Tensor, nn

from service.engine.features import FeaturePool
from service.errors import InvalidOption
from service.images.sizes import in_sizes
from service.images.transforms import Preprocessing
from service.inference.device import Precision
from service.inference.runtimes import RUNTIMES, build_runtime, choose_runtime
from service.inference.runtimes.base import Runtime, normalise
from service.inference.runtimes.folding import fold_norms
from service.model_spec import Architecture, ModelSpec
from service.networks.cascade import Carried, Cascade
from service.networks.msnet import MSNet
from service.networks.registry import build, resolutions, stage_names
from service.stages import StageSpec

RESOLUTION = 64
PREPROCESSING = Preprocessing.at(RESOLUTION)
CLASSES = 5
MULTI_SCALE = ("ms_resnet18", "ms_mobilenet_v1_025", "ms_densenet121", "ms3_mobilenet_v1_025")
FAMILIES = ("resnet18", "mobilenet_v1_025", "densenet121")
LARGEST = 9
NEVER_SEEN = itertools.count(1)

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
ROUNDING = {"cpu": 2e-4, "cuda": 2e-2}  # of the largest logit; a GPU's convolutions round their inputs (TF32)

T = TypeVar("T")

every_network = pytest.mark.parametrize("network", [*MULTI_SCALE, *FAMILIES])
every_kind = pytest.mark.parametrize("network", [*MULTI_SCALE, *FAMILIES, "ms_mobilenet_v1_025+gated"])
every_multi_scale = pytest.mark.parametrize("network", MULTI_SCALE)
small = pytest.mark.parametrize("network", ["ms_mobilenet_v1_025", "mobilenet_v1_025"])
small_multi_scale = pytest.mark.parametrize("network", ["ms_mobilenet_v1_025"])


def randomised(network: Cascade) -> Cascade:
    """Norms far from their initial state, with statistics that fit what they see: nothing agrees by chance."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
            module.momentum = None  # the mean of all batches
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.5)
    with torch.no_grad():
        for _ in range(3):
            network.train()(normalise(pixels(16), PREPROCESSING))
    return network.eval()


def pixels(count: int) -> Tensor:
    """Images of coloured tiles, uint8 (count, 3, R, R), each different."""
    tiles = torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(count))
    return nn.functional.interpolate(tiles, size=RESOLUTION).mul(255).to(torch.uint8)


@cache
def network_of(name: str) -> Cascade:
    """Seeded, unfolded, float32; shared between tests, none of which changes it."""
    torch.manual_seed(0)
    of, options = parts(name)
    network = build(of, CLASSES, options)
    for gate in network.gates.parameters() if isinstance(network, MSNet) else ():
        nn.init.uniform_(gate, -1, 1)
    return randomised(network)


def parts(name: str) -> tuple[str, dict[str, bool]]:
    """``ms_resnet18+gated`` -> the network and its options."""
    of, _, option = name.partition("+")
    return of, {option: True} if option else {}


def spec_of(name: str) -> ModelSpec:
    labels = tuple(str(i) for i in range(CLASSES))
    of, options = parts(name)
    architecture = Architecture(of, CLASSES, options)
    sides = resolutions(of, RESOLUTION)
    stages = tuple(StageSpec(each, side, float(side)) for each, side in zip(stage_names(of), sides, strict=True))
    return ModelSpec(name, 1, architecture, labels, labels, PREPROCESSING, stages, weights_sha256="")


def in_all_sizes(name: str, images: Tensor) -> tuple[Tensor, ...]:
    return in_sizes(images, resolutions(parts(name)[0], RESOLUTION))


def build_for(name: str, network: str, precision: Precision) -> Runtime:
    device = CUDA if name == "cuda" else CPU
    return build_runtime(name, copy.deepcopy(network_of(network)), spec_of(network), device, precision, 1)


@dataclass(frozen=True)
class Subject:
    """A runtime with a network of its own, and what that network gives without it."""

    runtime: Runtime
    name: str
    device: torch.device

    @property
    def network(self) -> Cascade:
        return network_of(self.name)

    def sizes(self, images: Tensor) -> tuple[Tensor, ...]:
        """The images in the size of each stage."""
        return in_all_sizes(self.name, images)

    def first(self, images: Tensor) -> tuple[Tensor, Carried]:
        """What the first stage says of the images, and hands on."""
        return self.runtime.run(0, self.sizes(images)[0], ())

    def second(self, images: Tensor, carried: Carried) -> Tensor:
        """What the second stage says."""
        return self.runtime.run(1, self.sizes(images)[1], carried)[0].cpu().clone()

    def heads(self, images: Tensor) -> list[Tensor]:
        """Logits of every stage of the runtime."""
        found = []
        carried: Carried = ()
        for stage, each in enumerate(self.sizes(images)):
            logits, carried = self.runtime.run(stage, each, carried)
            found.append(logits.cpu().clone())
        return found

    def expected(self, images: Tensor, preprocessing: Preprocessing = PREPROCESSING) -> list[Tensor]:
        """The same, by the network itself: PyTorch, float32, nothing folded."""
        with torch.inference_mode():
            return list(self.network.run_all([normalise(each, preprocessing) for each in self.sizes(images)]))

    def assert_same(self, given: list[Tensor], expected: list[Tensor], slack: float = 1.0) -> None:
        for ours, theirs in zip(given, expected, strict=True):
            assert ours.shape == theirs.shape
            assert (ours.float() - theirs).abs().max() <= slack * ROUNDING[self.device.type] * theirs.abs().max()


@pytest.fixture(scope="module", params=RUNTIMES)
def runtime_name(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    if name == "openvino":
        request.getfixturevalue("openvino")
    if name == "cuda" and not torch.cuda.is_available():
        pytest.skip("this machine has no GPU")
    return name


@pytest.fixture(scope="module")
def subjects(runtime_name: str) -> Callable[[str], Subject]:
    """``subjects(network)``: the runtime of this test with that network, built once."""
    device = CUDA if runtime_name == "cuda" else CPU
    return cache(lambda network: Subject(build_for(runtime_name, network, "float32"), network, device))


@pytest.fixture
def subject(subjects: Callable[[str], Subject], network: str) -> Subject:
    return subjects(network)


def in_threads(*works: Callable[[], T]) -> list[T]:
    """What each gives, all run at once in threads of their own."""
    results: dict[int, T] = {}
    ready = threading.Barrier(len(works), timeout=60)

    def run(index: int) -> None:
        torch.set_num_threads(1)
        ready.wait()
        results[index] = works[index]()

    threads = [threading.Thread(target=run, args=(index,)) for index in range(len(works))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [results[index] for index in range(len(works))]


# the function


@every_kind
def test_runtime_computes_the_networks_function(subject: Subject) -> None:
    images = pixels(4)
    expected = subject.expected(images)
    assert all((logits[0] - logits[1]).abs().max() > 0.01 * logits.abs().max() for logits in expected)
    subject.assert_same(subject.heads(images), expected)


@every_network
def test_every_batch_size_gives_each_image_its_own_answer(subject: Subject) -> None:
    images = pixels(LARGEST)
    expected = subject.expected(images)
    for size in (*range(1, LARGEST + 1), 1):
        subject.assert_same(subject.heads(images[:size]), [logits[:size] for logits in expected])


@small
def test_pixels_are_normalised_as_the_model_says(runtime_name: str, network: str) -> None:
    device = CUDA if runtime_name == "cuda" else CPU
    mean = (0.1, 0.2, next(NEVER_SEEN) / 100)  # what is kept of the last must not be what makes it work
    other = Preprocessing(75, RESOLUTION, mean, std=(0.5, 0.4, 0.3))
    spec = dataclasses.replace(spec_of(network), preprocessing=other)
    runtime = build_runtime(runtime_name, copy.deepcopy(network_of(network)), spec, device, "float32", 1)
    subject = Subject(runtime, network, device)
    subject.assert_same(subject.heads(pixels(3)), subject.expected(pixels(3), other))


@small
def test_batch_larger_than_any_that_is_recorded_is_run_too(subject: Subject) -> None:
    images = pixels(70)
    subject.assert_same(subject.heads(images), subject.expected(images))


@every_multi_scale
def test_some_images_of_a_batch_escalate_like_all(subject: Subject) -> None:
    images, chosen = pixels(6), torch.tensor([4, 0, 3])
    _, carried = subject.first(images)
    rows = tuple(each[chosen.to(each.device)] for each in carried)
    subject.assert_same([subject.second(images[chosen], rows)], [subject.expected(images)[1][chosen]])


@every_multi_scale
def test_high_pass_reads_the_low_features_it_is_given(subject: Subject) -> None:
    images = pixels(2)
    _, carried = subject.first(images)
    swapped = tuple(each[torch.tensor([1, 0], device=each.device)] for each in carried)
    difference = subject.second(images, swapped) - subject.expected(images)[1]
    assert difference.abs().max() > 0.01


@small
@pytest.mark.parametrize("layout", ["planes", "pixels", "strided", "repeated"])
def test_images_may_lie_in_memory_in_any_way(subject: Subject, layout: str) -> None:
    images = pixels(8)[::2]
    laid = {
        "planes": images.contiguous(),
        "pixels": images.contiguous(memory_format=torch.channels_last),
        "strided": images,
        "repeated": images[:1].expand(4, -1, -1, -1),
    }[layout]
    before = laid.clone()
    subject.assert_same(subject.heads(laid), subject.expected(before))
    assert torch.equal(laid, before)  # and are as they were


@every_kind
def test_bfloat16_is_close(runtime_name: str, network: str) -> None:
    device = CUDA if runtime_name == "cuda" else CPU
    subject = Subject(build_for(runtime_name, network, "bfloat16"), network, device)
    images = pixels(8)
    for ours, theirs in zip(subject.heads(images), subject.expected(images), strict=True):
        assert ours.dtype == torch.float32  # in bfloat16 the two highest may be equal
        assert (ours - theirs).abs().mean() < 0.35 * theirs.abs().mean()


# memory and threads


@small_multi_scale
def test_low_state_lives_until_the_threads_next_pass(subject: Subject) -> None:
    images, others = pixels(3), pixels(5)[1:4]
    expected = subject.expected(images)
    logits, carried = subject.first(images)
    in_threads(lambda: subject.heads(others))  # another thread's passes are no matter
    subject.assert_same([logits.cpu().clone(), subject.second(images, carried)], expected[:2])


@small_multi_scale
def test_what_the_pool_copied_outlives_every_other_pass(subject: Subject) -> None:
    images, others, pool = pixels(4), pixels(6)[:4], FeaturePool(4)
    pool.put(0, subject.first(images)[1], [3, 1], [0, 2])
    for _ in range(2):
        subject.heads(others)
    high = subject.second(images[[1, 3]], pool.take(0, [2, 0]))
    subject.assert_same([high], [subject.expected(images)[1][[1, 3]]])


@small_multi_scale
def test_low_state_of_one_thread_escalates_in_another(subject: Subject) -> None:
    images, pool = pixels(4), FeaturePool(4)
    in_threads(lambda: pool.put(0, subject.first(images)[1], range(4), range(4)))
    high = in_threads(lambda: subject.second(images, pool.take(0, range(4))))
    subject.assert_same(high, [subject.expected(images)[1]])


@small
def test_threads_at_once_give_what_one_gives(subject: Subject) -> None:
    batches = [pixels(size) for size in (1, 4, 3)]

    def work(images: Tensor) -> Callable[[], list[list[Tensor]]]:
        return lambda: [subject.heads(images[: 1 + turn % len(images)]) for turn in range(6)]

    for images, turns in zip(batches, in_threads(*map(work, batches)), strict=True):
        expected = subject.expected(images)
        for given in turns:
            subject.assert_same(given, [logits[: len(given[0])] for logits in expected])


@pytest.mark.usefixtures("openvino")
def test_runtime_asks_no_other_host_and_starts_nothing() -> None:
    """OpenVINO's converter has a telemetry that does, in processes forked from a thread."""
    code = """
import sys, threading, service.inference.runtimes.openvino as runtime
from service.images.transforms import Preprocessing
from service.model_spec import Architecture, ModelSpec
from service.networks.registry import build
from service.stages import StageSpec
stages = StageSpec("low", 32, 1), StageSpec("high", 64, 2)
spec = ModelSpec("n", 1, Architecture("ms_mobilenet_v1_025", 4), (), (), Preprocessing.at(64), stages, "")
runtime.convert(build("ms_mobilenet_v1_025", 4), spec)
print([thread.name for thread in threading.enumerate()], flush=True)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code], env={}, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout is not None
    with process.stdout:
        told = process.stdout.readline()
    os.killpg(process.pid, signal.SIGKILL)  # and whatever it started
    process.wait()
    assert told == "['MainThread']\n"


@pytest.mark.usefixtures("openvino")
def test_signals_are_handled_when_runtimes_are_gone() -> None:
    """OpenVINO's plug-in takes a thread's signal stack away with itself, in whatever order plug-ins go."""
    code = """
import gc, os, signal, torch
from service.images.transforms import Preprocessing
from service.inference.runtimes.openvino import OpenVINORuntime, convert
from service.model_spec import Architecture, ModelSpec
from service.networks.registry import build
from service.stages import StageSpec
stages = StageSpec("low", 32, 1), StageSpec("high", 64, 2)
spec = ModelSpec("n", 1, Architecture("ms_mobilenet_v1_025", 4), (), (), Preprocessing.at(64), stages, "")
images = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
runtimes = []
for _ in range(3):
    runtimes.append(OpenVINORuntime(convert(build("ms_mobilenet_v1_025", 4), spec), "float32", 1))
    runtimes[-1].run(0, images, ())
while runtimes:
    del runtimes[0]
    gc.collect()
signal.signal(signal.SIGUSR1, lambda *_: print("handled"))
os.kill(os.getpid(), signal.SIGUSR1)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout) == (0, "handled\n")


@pytest.mark.usefixtures("openvino")
def test_converted_network_is_let_go() -> None:
    """PyTorch would keep what was traced: each model that is exchanged for another would stay in memory."""
    from service.inference.runtimes.openvino import convert

    network = build("ms_mobilenet_v1_025", 4)
    weights = [weakref.ref(parameter) for parameter in network.parameters()]
    models = convert(network, spec_of("ms_mobilenet_v1_025"))
    del network
    gc.collect()
    assert models
    assert [weight for weight in weights if weight() is not None] == []


# folding


@every_network
def test_folded_network_computes_the_same(network: str) -> None:
    images = normalise(pixels(4), PREPROCESSING)
    folded = fold_norms(copy.deepcopy(network_of(network)))
    with torch.inference_mode():
        before, after = network_of(network)(images), folded(images)
    torch.testing.assert_close(after, before, rtol=1e-3, atol=1e-4)


def norms(network: nn.Module) -> list[str]:
    return [name for name, module in network.named_modules() if isinstance(module, nn.BatchNorm2d)]


@pytest.mark.parametrize("network", ["resnet18", "mobilenet_v1_025", "ms_resnet18", "ms_mobilenet_v1_025"])
def test_no_norm_is_left_where_each_follows_a_convolution(network: str) -> None:
    folded = fold_norms(copy.deepcopy(network_of(network)))
    assert norms(network_of(network))
    assert norms(folded) == []


def test_norms_that_follow_a_sum_or_a_concatenation_stay() -> None:
    original = network_of("densenet121")
    folded = fold_norms(copy.deepcopy(original))
    gone = set(norms(original)) - set(norms(folded))
    # the stem's, and the second of each layer's: the first reads what was concatenated, a transition's too
    assert len(gone) == 1 + 6 + 12 + 24 + 16
    assert sum(name.endswith("norm2") for name in gone) == len(gone) - 1
    assert len(norms(folded)) == (6 + 12 + 24 + 16) + 3 + 1


def test_folding_leaves_the_network_in_evaluation_mode() -> None:
    folded = fold_norms(build("mobilenet_v1_025", CLASSES).train())
    assert not any(module.training for module in folded.modules() if list(module.parameters()))


# which one


@pytest.mark.parametrize("name", ["abacus", "", "Eager", "tensorrt"])
def test_unknown_runtime_is_told_those_that_exist(name: str) -> None:
    with pytest.raises(InvalidOption, match="it must be auto, eager, openvino or cuda") as caught:
        choose_runtime(name, CPU)
    assert (caught.value.field, caught.value.value) == ("runtime", name)


@pytest.mark.parametrize(
    ("name", "device", "bound"),
    [
        ("cuda", CPU, "auto, eager or openvino: the device is cpu"),
        ("openvino", CUDA, "auto, eager or cuda: the device is cuda"),
    ],
)
def test_runtime_of_another_device_is_told_those_of_this_one(name: str, device: torch.device, bound: str) -> None:
    with pytest.raises(InvalidOption) as caught:
        choose_runtime(name, device)
    assert (caught.value.field, caught.value.value, caught.value.bound) == ("runtime", name, bound)


def test_runtime_that_is_not_installed_is_told_how_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(InvalidOption, match=r"pip install '.\[openvino\]'"):
        choose_runtime("openvino", CPU)


def test_automatic_runtime_is_the_fastest_that_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_runtime("auto", CUDA) == "eager"  # CUDA graphs are for who asks, until they were tried on a GPU
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert choose_runtime("auto", CPU) == "eager"


@pytest.mark.usefixtures("openvino")
def test_openvino_is_chosen_where_it_is_installed() -> None:
    assert choose_runtime("auto", CPU) == choose_runtime("openvino", CPU) == "openvino"


@pytest.mark.parametrize("device", [CPU, CUDA])
def test_eager_is_for_every_device(device: torch.device) -> None:
    assert choose_runtime("eager", device) == "eager"


@small_multi_scale
def test_runtime_tells_its_name(subject: Subject, runtime_name: str) -> None:
    assert subject.runtime.name == runtime_name
