"""Trains a network into a run folder; can be interrupted and resumed."""

from __future__ import annotations

import copy
import math
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import service
from service.errors import DataError, InvalidOption
from service.inference.device import choose_device, choose_precision, cores
from service.inference.predictor import Predictor
from service.inference.runtimes.base import normalise
from service.model_spec import Architecture, ModelSpec
from service.networks.cascade import Cascade
from service.networks.cost import cost
from service.networks.registry import build, resolutions
from service.stages import StageSpec
from service.training import data
from service.training.classes import check_trainable, labels
from service.training.crops import EpochSampler, RandomCrop
from service.training.initial import initialise_from, preprocessing, warn_of_known
from service.training.losses import loss
from service.training.options import TrainOptions
from service.training.pixels import GIGABYTE, DecodedPhotographs, decoded
from service.training.processes import Processes
from service.training.run_folder import EpochLog, RunFolder
from service.training.schedule import learning_rate, parameter_groups
from service.training.summary import Summary, summarise
from service.training.trained_on import digests, recorded, split

MOMENTUM = 0.9
EVALUATION_BATCH = 64

# Steps between two looks at what an epoch came to so far: a GPU has to finish them all for it.
READ_EVERY = 10


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a run stands; loss and accuracies, by stage, are of this epoch's
    training crops some steps ago; shares of 1."""

    epoch: int
    epochs: int
    step: int
    steps: int
    resolution: int
    loss: float
    accuracy: Mapping[str, float]
    images_per_second: float
    seconds_left: float


@dataclass(frozen=True, slots=True)
class Finished:
    """Result of a run: the model's spec, every epoch's log line, the unreadable files."""

    spec: ModelSpec
    log: tuple[EpochLog, ...]
    unreadable: tuple[str, ...]


def train(
    options: TrainOptions,
    *,
    resume: bool = False,
    store: Path | None = None,
    on_start: Callable[[Summary], None] = lambda summary: None,
    on_step: Callable[[Progress], None] = lambda progress: None,
    on_epoch: Callable[[EpochLog], None] = lambda line: None,
) -> Finished:
    """Train, from the start or from the run folder's last complete epoch.

    Under ``torchrun`` every process calls this; the first one writes. After an interruption at any moment, the same
    call with ``resume`` gives the result of an uninterrupted run.

    Args:
        options: what to train.
        resume: continue in ``options.out``.
        store: where ``options.init`` looks for a model's name.
        on_start: called with the photographs found, before the first step, in the first process.
        on_step, on_epoch: called with the progress, also there.

    Raises:
        DataError, InvalidOption, NotFound, BrokenModel: before any work.
        DataError: almost no photograph can be read any more.
        InvalidOption: the loss is no longer finite; the epochs before are kept.
    """
    with Processes.join(options.device) as processes:  # no run outlives it: one that does keeps the group's threads
        run = _Run(options, processes, resume, store)
        if processes.is_first:
            on_start(run.summary())
        return run.run(on_step, on_epoch)


class _Run:
    def __init__(self, options: TrainOptions, processes: Processes, resume: bool, store: Path | None) -> None:
        self.options = options
        self.processes = processes
        self.device = processes.device or choose_device(options.device)
        self.precision = choose_precision(options.precision, self.device)
        found = data.find(options.data, "train")
        self.folder = RunFolder(options.out)
        is_older = resume and self.folder.is_of_older_version()
        contents = () if is_older else processes.from_first(lambda: digests(found.paths))
        self.photographs, self.held_out, known = split(found, contents, options.calibration_share, options.seed)
        self.labels = labels(found.folders, options.class_names)
        self.batch = processes.share(options.batch_size, len(self.photographs))
        self.steps = len(self.photographs) // processes.world // self.batch
        if self.steps == 0:
            raise DataError(
                f"{options.data} has {len(self.photographs)} training photographs; "
                f"a step needs {self.batch * processes.world}: lower --batch-size",
                field="batch_size",
                value=self.batch * processes.world,
                bound=len(self.photographs),
            )
        if resume:
            self.folder.check_same(options, self.photographs, self.held_out, known)
        else:
            self.folder.check_free()
        check_trainable(options.data, found, self.photographs)
        saved = self.folder.checkpoint(self.device, options.stages) if resume else None
        self.mmacs = cost(options.network, len(self.labels), options.resolution, dict(options.network_options))

        torch.manual_seed(options.seed)
        network = build(options.network, len(self.labels), options.network_options)
        before = initialise_from(network, options, store) if options.init and saved is None else None
        if before is not None and processes.is_first:
            warn_of_known(before, options, found, self.held_out)
        kept = self.folder.preprocessing() if saved is not None else None
        self.preprocessing = kept or preprocessing(options, before)
        self.network = network.to(self.device).to(memory_format=torch.channels_last)
        self.optimiser = torch.optim.SGD(
            parameter_groups(self.network, options.weight_decay), lr=0.1, momentum=MOMENTUM, nesterov=True
        )
        self.average = self._new_average()
        self.unreadable: set[str] = set()
        self.log: list[EpochLog] = []
        if saved is not None:
            self._restore(saved)
        self.parallel = DistributedDataParallel(self.network) if processes.world > 1 else self.network
        if processes.is_first and saved is None and not is_older:  # the last check of every process lies above
            inherited = before.trained_on if before is not None else None
            self.folder.claim(options, known | (inherited or frozenset()))

    def summary(self) -> Summary:
        """What was found to train on."""
        return summarise(self.options, self.photographs, self.held_out)

    def run(self, on_step: Callable[[Progress], None], on_epoch: Callable[[EpochLog], None]) -> Finished:
        spec = None
        if len(self.log) < self.options.epochs:
            self.pixels = self._decode()
        if self.log and self.processes.is_first:  # interrupted while saving, the model may not be the checkpoint's
            spec = self.folder.model_after(len(self.log)) or self._save()
        for epoch in range(len(self.log), self.options.epochs):
            line = self._epoch(epoch, on_step)
            self.log.append(line)
            if self.processes.is_first:
                spec = self._save()
                on_epoch(line)
            self.processes.wait()
        return Finished(spec or self._spec(), tuple(self.log), tuple(sorted(self.unreadable)))

    def _epoch(self, epoch: int, on_step: Callable[[Progress], None]) -> EpochLog:
        options = self.options
        resolution = options.resolution_in(epoch)
        began = time.perf_counter()
        totals = self._none()
        known: list[float] = []
        rate = waited = 0.0
        self.network.train()
        asked = time.perf_counter()
        for step, batch in enumerate(self._batches(epoch, resolution)):
            waited += time.perf_counter() - asked
            rate = learning_rate(options, epoch + step / self.steps)
            totals += self._step(batch, rate)
            if self.processes.is_first:
                if step % READ_EVERY == 0:
                    known = totals.tolist()
                on_step(self._progress(epoch, step, resolution, known, time.perf_counter() - began))
            asked = time.perf_counter()
        totals = self.processes.sum(totals)
        self.unreadable = self.processes.union(self.unreadable)
        seconds = time.perf_counter() - began
        loss_, *right = (totals[:-1] / totals[-1]).tolist()
        if not math.isfinite(loss_):  # nothing of this epoch is kept
            raise InvalidOption(
                "learning_rate", options.learning_rate, f"lower: the loss of epoch {epoch + 1} is not finite"
            )
        held_out = self._held_out_accuracy() if self.processes.is_first else [0.0 for _ in options.stages]
        return EpochLog(
            epoch=epoch + 1,
            resolution=resolution,
            learning_rate=rate,
            loss=loss_,
            accuracy=dict(zip(options.stages, right, strict=True)),
            held_out=dict(zip(options.stages, held_out, strict=True)),
            images_per_second=totals[-1].item() / seconds,
            seconds=seconds,
            waited=waited / seconds,
            unreadable=len(self.unreadable),
        )

    def _batches(self, epoch: int, resolution: int) -> Any:
        options, processes = self.options, self.processes
        sampler = EpochSampler(len(self.photographs), options.seed, epoch, processes.rank, processes.world)
        crop = RandomCrop(self.pixels, resolution, options.min_scale, options.augment, options.seed, epoch)
        workers = 0 if self.pixels.device.type == "cuda" else self._workers()  # no other process has this one's GPU
        return data.loader(self.photographs, crop, self.batch, workers, sampler, full=True)

    def _decode(self) -> DecodedPhotographs:
        side, budget = self.options.shorter_side, self.options.decoded_gb * GIGABYTE
        return decoded(self.photographs, side, budget, self.device, self.processes.here)

    def _step(self, batch: data.Batch, rate: float) -> Tensor:
        """One update; returns (loss summed over images, right answers of each stage, images)."""
        self.unreadable.update(batch.unreadable)
        if len(batch.targets) < 2:  # batch norm takes two, and what replaces unreadable ones was not readable either
            raise DataError("photographs can no longer be read", field="data", value=str(self.options.data))
        images = normalise(batch.images.to(self.device, non_blocking=True), self.preprocessing)
        targets = batch.targets.to(self.device, non_blocking=True)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        amp = torch.autocast(self.device.type, getattr(torch, self.precision), enabled=self.precision != "float32")
        with amp:
            heads = self.parallel(images)
        value = loss(
            heads,
            targets,
            label_smoothing=self.options.label_smoothing,
            distillation=self.options.distillation,
        )
        value.backward()  # type: ignore[no-untyped-call]
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.update_parameters(self.network)
        right = [(head.detach().argmax(1) == targets).sum() for head in heads]
        return torch.stack([value.detach() * len(targets), *right, torch.full_like(right[0], len(targets))]).double()

    def _none(self) -> Tensor:
        """Loss, right answers of each stage, images: so far of none."""
        return torch.zeros(2 + len(self.options.stages), dtype=torch.float64, device=self.device)

    def _progress(self, epoch: int, step: int, resolution: int, known: Sequence[float], seconds: float) -> Progress:
        value, *right, images = known
        done = self._work(0, epoch) + self._work(epoch, epoch + 1) * (step + 1) / self.steps
        spent = sum(line.seconds for line in self.log) + seconds
        return Progress(
            epoch=epoch + 1,
            epochs=self.options.epochs,
            step=step + 1,
            steps=self.steps,
            resolution=resolution,
            loss=value / max(images, 1),
            accuracy={name: count / max(images, 1) for name, count in zip(self.options.stages, right, strict=True)},
            images_per_second=(step + 1) * self.batch * self.processes.world / seconds,
            seconds_left=spent * (self._work(0, self.options.epochs) / done - 1),
        )

    def _work(self, start: int, stop: int) -> float:
        """Work of epochs [start, stop), in pixels per photograph: later epochs may be larger."""
        return float(sum(self.options.resolution_in(epoch) ** 2 for epoch in range(start, stop)))

    def _held_out_accuracy(self) -> list[float]:
        if not len(self.held_out):
            return [math.nan for _ in self.options.stages]
        predictor = Predictor(copy.deepcopy(self._model()), self._spec(), self.device, self.precision)
        crop = data.CentreCrop(predictor.spec.preprocessing)
        right = torch.zeros(predictor.depth)
        count = 0
        for batch in data.loader(self.held_out, crop, EVALUATION_BATCH, self._workers()):
            self.unreadable.update(batch.unreadable)
            if not len(batch.targets):
                continue
            heads = predictor.answers_to(batch.images)
            right += torch.tensor([(head.argmax(1) == batch.targets).sum().item() for head in heads])
            count += len(batch.targets)
        accuracies: list[float] = (right / max(count, 1)).tolist()
        return accuracies

    def _workers(self) -> int:
        asked = self.options.workers
        return cores() // self.processes.here if asked is None else asked

    def _new_average(self) -> AveragedModel | None:
        """A moving average of weights and norm statistics, its time constant at most a tenth of the run."""
        epochs = min(self.options.ema_epochs, self.options.epochs / 10)
        if epochs == 0:
            return None
        decay = 1 - 1 / max(epochs * self.steps, 1)
        average = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
        return AveragedModel(self.network, multi_avg_fn=average, use_buffers=True)

    def _model(self) -> Cascade:
        """The network whose weights are stored."""
        if self.average is None or not self.average.n_averaged:
            return self.network
        averaged = self.average.module
        assert isinstance(averaged, Cascade)
        return averaged

    def _spec(self) -> ModelSpec:
        options = self.options
        return ModelSpec(
            name=options.out.resolve().name,
            version=0,
            architecture=Architecture(options.network, len(self.labels), dict(options.network_options)),
            classes=self.labels,
            class_folders=self.photographs.folders,
            preprocessing=self.preprocessing,
            stages=tuple(map(StageSpec, options.stages, resolutions(options.network, options.resolution), self.mmacs)),
            weights_sha256="",
            files=recorded(options.out),
            dataset=options.dataset or options.data.resolve().name,
            recipe=options.recipe(),
            training={
                "epochs_done": len(self.log),
                "seconds": round(sum(line.seconds for line in self.log), 1),
                "train_images": len(self.photographs),
                "calibration_images": len(self.held_out),
                "device": str(self.device),
                "precision": self.precision,
                "processes": self.processes.world,
                "batch_size": self.batch * self.processes.world,
                "python": platform.python_version(),
                "torch": torch.__version__,
                "torchvision": torchvision.__version__,
            },
            code_version=service.__version__,
        )

    def _save(self) -> ModelSpec:
        checkpoint = {
            "network": self.network.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "average": self.average.state_dict() if self.average is not None else None,
            "log": [line.columns() for line in self.log],
            "unreadable": sorted(self.unreadable),
        }
        return self.folder.save(self.log, self._model().state_dict(), self._spec(), checkpoint)

    def _restore(self, saved: dict[str, Any]) -> None:
        self.network.load_state_dict(saved["network"])
        self.optimiser.load_state_dict(saved["optimiser"])
        if self.average is not None:
            self.average.load_state_dict(saved["average"])
        self.log = list(saved["log"])
        self.unreadable = set(saved["unreadable"])
