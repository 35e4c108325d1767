"""``GET /models``: the store."""

from __future__ import annotations

from fastapi import APIRouter

from service.api.dependencies import Injected
from service.api.schemas import CurvePoint, ModelAnswer, ModelsAnswer, StageAnswer
from service.inference.calibration import Calibration
from service.log import logger
from service.model_spec import ModelSpec

router = APIRouter(tags=["models"])


@router.get("/models")
def models(parts: Injected) -> ModelsAnswer:  # in a thread: it reads files and computes bounds by the hundred
    """Every version of every model in the store, with its costs and its calibration table."""
    served = {engine.spec.key: engine.predictor for engine in parts.models}
    default = parts.models.find(None).predictor
    found: list[ModelAnswer] = []
    broken: list[str] = []

    def leave_out(reference: str, error: Exception) -> None:
        logger.warning("model %s is left out of the list: %s", reference, error)
        broken.append(reference)

    for spec in parts.models.store.specs(leave_out):
        predictor = served.get(spec.key, default)
        try:
            calibration = Calibration.of(spec, predictor.runtime, predictor.precision)
            found.append(_answer(spec, calibration, serving=spec.key in served))
        except (ArithmeticError, LookupError, TypeError, ValueError) as error:  # values of other types than a spec's
            leave_out(spec.reference, error)
    return ModelsAnswer(models=found, broken=broken)


def _answer(spec: ModelSpec, calibration: Calibration | None, serving: bool) -> ModelAnswer:
    rows = () if calibration is None else calibration.table.rows
    return ModelAnswer(
        name=spec.name,
        version=spec.version,
        serving=serving,
        network=spec.architecture.network,
        classes=list(spec.classes),
        resolution=spec.preprocessing.crop,
        stages=[StageAnswer(name=each.name, resolution=each.resolution, mmacs=each.mmacs) for each in spec.stages],
        low_mmacs=spec.mmacs[0],
        high_mmacs=spec.mmacs[-1],
        default_threshold=spec.default_threshold,
        dataset=spec.dataset,
        calibration_images=0 if calibration is None else calibration.table.n,
        curve=[
            CurvePoint.at(row.threshold, calibration.predict(row.threshold)) for row in rows if calibration is not None
        ],
    )
