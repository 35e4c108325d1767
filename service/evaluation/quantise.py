"""A model in eight-bit integers for OpenVINO, if it still answers as in float32 (extra ``int8``)."""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from service.errors import DataError, InvalidOption
from service.evaluation.calibrate import certify, cheapest, photographs_for
from service.evaluation.passes import Passes, run_passes
from service.images.sizes import in_sizes
from service.inference.predictor import Predictor, load_network
from service.model_spec import ModelSpec
from service.networks.cascade import Carried
from service.store import read_spec, write_spec
from service.training.data import CentreCrop, Photographs, loader, split_in_halves

MIN_AGREEMENT = 0.99
MOST_IMAGES = 300


def quantise(
    folder: Path,
    data: Path,
    workers: int | None = None,
    on_batch: Callable[[int], None] = lambda images: None,
) -> tuple[ModelSpec, float]:
    """Quantise a calibrated run after training (NNCF), and keep it only if its answers agree with float32's.

    One half of the photographs held out of training sets the ranges, the other measures the agreement, at the
    model's threshold, and certifies the table. Gives the new spec and the agreement.

    Raises:
        InvalidOption: NNCF or OpenVINO is not installed.
        DataError: not calibrated yet, as in ``calibrate``, or an agreement below ``MIN_AGREEMENT``.
    """
    if not (find_spec("nncf") and find_spec("openvino")):
        raise InvalidOption("precision", "int8", "float32 or bfloat16 without NNCF: pip install '.[int8]'")
    from service.inference.runtimes import INT8_FOLDER

    spec = read_spec(folder)
    if spec.default_threshold is None:
        raise DataError(f"{folder} has no default threshold: run `lowfirst calibrate {folder} --data DIR` first")
    fitting, certifying = split_in_halves(photographs_for(spec, folder, data, None))
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
        agreement = float((_answers(reference, spec) == _answers(passes, spec)).mean())
        if agreement < MIN_AGREEMENT:
            raise DataError(
                f"int8 answers as float32 does on {100 * agreement:.1f} % of {len(passes)} held-out photographs; "
                f"{100 * MIN_AGREEMENT:.0f} % are needed: not kept",
                field="precision",
                value=agreement,
                bound=MIN_AGREEMENT,
            )
        own = run_passes(predictor, fitting, workers, on_batch)
        table = dataclasses.replace(certify(passes, quantising, predictor), default_threshold=cheapest(own, spec))
        done = dataclasses.replace(quantising, calibration=(*spec.calibration, table))
        write_spec(folder, done)
    except BaseException:
        shutil.rmtree(folder / INT8_FOLDER, ignore_errors=True)
        write_spec(folder, spec)
        raise
    return done, agreement


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
