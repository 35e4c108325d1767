"""Makes an int8 model for OpenVINO, and keeps it only if it agrees with float32 and is faster (extra ``int8``)."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from statistics import median

import numpy as np
import numpy.typing as npt
import torch

from service.calibration.certify import RISK, upper_bound
from service.errors import DataError, InvalidOption
from service.evaluation.calibrate import certify, cheapest, photographs_for
from service.evaluation.passes import Bools, Passes, run_passes
from service.images.sizes import in_sizes
from service.inference.predictor import Predictor, load_network
from service.model_spec import ModelSpec
from service.networks.cascade import Carried
from service.store import read_spec, write_spec
from service.training.data import CentreCrop, Photographs, loader, split_in_halves

MIN_AGREEMENT = 0.99  # with 95 % confidence
MAX_TIME = 1.0  # of the time that the server would take otherwise
MOST_IMAGES = 300
BATCH = 8
ROUNDS = 15
AT_MOST = 11  # of 15 sorted times, from 0: the median lies below it with 98 % confidence, P(Binomial(15, 1/2) <= 11)


@dataclass(frozen=True, slots=True)
class Quantised:
    """Result of the quantisation.

    Attributes:
        spec: of the model, now with int8.
        images: photographs used to measure the agreement.
        agreement: share with the same answer as float32, at the default threshold.
        agreement_at_least: its 95 % bound (one-sided Clopper-Pearson).
        instead: the precision used otherwise.
        time: per image, relative to that precision: median of several rounds.
        time_at_most: its 98 % bound, from the order of the rounds.
    """

    spec: ModelSpec
    images: int
    agreement: float
    agreement_at_least: float
    instead: str
    time: float
    time_at_most: float


def quantise(
    folder: Path,
    data: Path,
    split: str | None = None,
    workers: int | None = None,
    on_batch: Callable[[int], None] = lambda images: None,
) -> Quantised:
    """Quantise a calibrated run after training (NNCF), and keep it only if it agrees with float32 and is faster.

    One half of the held-out photographs sets the ranges, the other measures the agreement, at the model's threshold,
    and certifies the table. The time is measured on this machine.

    Args:
        split: use this folder of ``data`` instead of the held-out photographs, without training photographs.

    Raises:
        InvalidOption: NNCF or OpenVINO is not installed.
        DataError: not calibrated yet, as in ``calibrate``; too few photographs to certify ``MIN_AGREEMENT``, an
            agreement that may be below it, or no time saved.
    """
    if not (find_spec("nncf") and find_spec("openvino")):
        raise InvalidOption("precision", "int8", "float32 or bfloat16 without NNCF: pip install '.[int8]'")
    from service.inference.runtimes import INT8_FOLDER

    spec = read_spec(folder)
    threshold = spec.default_threshold
    if threshold is None:
        raise DataError(f"{folder} has no default threshold: run `lowfirst calibrate {folder} --data DIR` first")
    fitting, certifying = split_in_halves(photographs_for(spec, folder, data, split))
    _check_enough(len(certifying))
    shutil.rmtree(folder / INT8_FOLDER, ignore_errors=True)
    spec = dataclasses.replace(
        spec,
        files=_others(spec.files),
        calibration=tuple(table for table in spec.calibration if table.precision != "int8"),
    )
    try:
        digests = _write(folder, spec, fitting, workers)
        quantising = dataclasses.replace(spec, files={**spec.files, **digests})
        write_spec(folder, quantising)
        reference = run_passes(Predictor.load(folder, "cpu", "float32"), certifying, workers, on_batch)
        predictor = Predictor.load(folder, "cpu", "int8", "openvino")
        passes = run_passes(predictor, certifying, workers, on_batch)
        agrees = _answers(reference, spec) == _answers(passes, spec)
        at_least = surely_agrees(agrees)
        other = Predictor.load(folder, "cpu", "auto", "openvino")
        ratios = _times(predictor, other, passes.answers(spec.temperatures).ends(threshold))
        time, time_at_most = surely_faster(ratios, other.precision)
        own = run_passes(predictor, fitting, workers, on_batch)
        table = dataclasses.replace(certify(passes, quantising, predictor), default_threshold=cheapest(own, spec))
        done = dataclasses.replace(quantising, calibration=(*spec.calibration, table))
        write_spec(folder, done)
    except BaseException:
        shutil.rmtree(folder / INT8_FOLDER, ignore_errors=True)
        write_spec(folder, spec)
        raise
    return Quantised(done, len(agrees), float(agrees.mean()), at_least, other.precision, time, time_at_most)


def surely_agrees(agrees: Bools) -> float:
    """The least share of photographs answered alike, with 95 % confidence, where ``agrees`` (n,) says which were.

    Raises DataError: it is below ``MIN_AGREEMENT``.
    """
    at_least = 1 - upper_bound(int((~agrees).sum()), len(agrees))
    if at_least < MIN_AGREEMENT:
        raise DataError(
            f"int8 answers as float32 does on {100 * agrees.mean():.2f} % of {len(agrees)} photographs, which is "
            f"{100 * at_least:.1f} % or more with 95 % confidence; {100 * MIN_AGREEMENT:.0f} % are needed: not kept",
            field="precision",
            value=at_least,
            bound=MIN_AGREEMENT,
        )
    return at_least


def surely_faster(ratios: Sequence[float], instead: str) -> tuple[float, float]:
    """Median of ``ratios``, int8's time in shares of that of precision ``instead`` in each of ``ROUNDS`` rounds, and
    its upper bound.

    Raises DataError: the bound is not below ``MAX_TIME``.
    """
    middle, at_most = median(ratios), sorted(ratios)[AT_MOST]
    if at_most >= MAX_TIME:
        raise DataError(
            f"int8 takes {100 * middle:.0f} % of the time of {instead} on this machine, {100 * at_most:.0f} % or less; "
            f"less than {100 * MAX_TIME:.0f} % is needed: not kept",
            field="precision",
            value=at_most,
            bound=MAX_TIME,
        )
    return middle, at_most


def _check_enough(images: int) -> None:
    """Raises DataError: so few photographs do not certify the agreement, even if all agree."""
    if 1 - upper_bound(0, images) < MIN_AGREEMENT:
        needed = math.ceil(math.log(RISK) / math.log(MIN_AGREEMENT))
        certified = 100 * (1 - upper_bound(0, images))
        raise DataError(
            f"{images} photographs are left to count the agreement on (the other half sets the ranges), and certify "
            f"{certified:.1f} % even if all agree: {100 * MIN_AGREEMENT:.0f} % takes {needed}; name a folder "
            "with more, --split NAME",
            field="data",
            value=images,
            bound=needed,
        )


def _times(one: Predictor, other: Predictor, ends: Sequence[float]) -> list[float]:
    """Time of ``one``, in shares of what ``other`` takes, of images of which such shares end at each stage: of each
    round. Both take turns, so that what else the machine does disturbs both."""
    images = one.noise(BATCH)
    reaching = [sum(ends[stage:]) for stage in range(len(ends))]

    def seconds(predictor: Predictor) -> float:
        return sum(share * each for share, each in zip(reaching, predictor.timed(images), strict=True))

    seconds(one), seconds(other)  # choose their kernels
    return [seconds(one) / seconds(other) for _ in range(ROUNDS)]


def _others(files: Mapping[str, str]) -> dict[str, str]:
    """All but the int8 stages."""
    from service.inference.runtimes import INT8_FOLDER

    return {name: digest for name, digest in files.items() if not name.startswith(f"{INT8_FOLDER}/")}


def _write(folder: Path, spec: ModelSpec, photographs: Photographs, workers: int | None) -> dict[str, str]:
    """Quantise every stage into ``folder``; gives the digest of each file."""
    import nncf
    import openvino as ov

    from service.inference.runtimes import INT8_FOLDER
    from service.inference.runtimes.openvino import OpenVINORuntime, convert

    models = convert(load_network(folder, spec), spec)
    runtime = OpenVINORuntime(models, "float32", threads=1)
    images = list(_images(photographs, spec, workers))
    inputs: list[list[list[npt.NDArray[np.generic]]]] = [[] for _ in spec.stages]
    for image in images:
        carried: Carried = ()
        for stage, pixels in enumerate(in_sizes(image, spec.resolutions)):
            given = [pixels.permute(0, 2, 3, 1).contiguous().numpy(), *(each.numpy().copy() for each in carried)]
            inputs[stage].append(given)
            _, carried = runtime.run(stage, pixels, carried)
    target = folder / INT8_FOLDER
    target.mkdir()
    digests = {}
    for model, examples, each in zip(models, inputs, spec.stages, strict=True):
        quantised = nncf.quantize(
            model,
            nncf.Dataset(examples),
            subset_size=len(images),
            preset=nncf.QuantizationPreset.MIXED,
            fast_bias_correction=False,
        )
        ov.save_model(quantised, target / f"{each.name}.xml", compress_to_fp16=False)
        for path in (target / f"{each.name}.xml", target / f"{each.name}.bin"):
            digests[f"{INT8_FOLDER}/{path.name}"] = hashlib.sha256(path.read_bytes()).hexdigest()
    return digests


def _images(photographs: Photographs, spec: ModelSpec, workers: int | None) -> Iterator[torch.Tensor]:
    """Up to ``MOST_IMAGES`` crops of every class alike, uint8 (1, 3, R, R) each."""
    step = max(1, len(photographs) // MOST_IMAGES)
    chosen = photographs.subset(range(0, len(photographs), step)[:MOST_IMAGES])
    for batch in loader(chosen, CentreCrop(spec.preprocessing), 1, workers or 0):
        if len(batch.targets):
            yield batch.images


def _answers(passes: Passes, spec: ModelSpec) -> npt.NDArray[np.int64]:
    assert spec.default_threshold is not None
    return passes.answers(spec.temperatures).at(spec.default_threshold)
