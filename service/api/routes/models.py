"""``GET /models``: the store."""

from __future__ import annotations

from fastapi import APIRouter

from service.api.config_schemas import UNKNOWN_TIME, CurvePoint, ModelAnswer, ModelsAnswer, StageAnswer
from service.api.dependencies import Injected
from service.api.error_responses import responses
from service.calibration.certify import Calibration
from service.engine.engine import Engine
from service.log import logger
from service.model_spec import ModelSpec

router = APIRouter(tags=["models"], responses=responses(401))


@router.get("/models", operation_id="list_models")
def models(parts: Injected) -> ModelsAnswer:  # in a thread: it reads files and computes hundreds of bounds
    """All versions of all models in the store, with their costs and calibration tables."""
    served = {engine.spec.key: engine for engine in parts.models}
    default = parts.models.find(None)
    found: list[ModelAnswer] = []
    broken: list[str] = []

    def leave_out(reference: str, error: Exception) -> None:
        logger.warning("model %s is missing from the list: %s", reference, error)
        broken.append(reference)

    for spec in parts.models.store.specs(leave_out):
        engine = served.get(spec.key)
        predictor = (engine or default).predictor
        try:
            calibration = Calibration.of(spec, predictor.runtime, predictor.precision)
            start = spec.start_threshold(predictor.runtime, predictor.precision)
            found.append(_answer(spec, start, calibration, engine))
        except (
            ArithmeticError,
            LookupError,
            TypeError,
            ValueError,
        ) as error:  # fields with a type different from the spec's
            leave_out(spec.reference, error)
    return ModelsAnswer(models=found, broken=broken)


def _answer(spec: ModelSpec, start: float, calibration: Calibration | None, engine: Engine | None) -> ModelAnswer:
    return ModelAnswer(
        name=spec.name,
        version=spec.version,
        serving=engine is not None,
        network=spec.architecture.network,
        classes=list(spec.classes),
        resolution=spec.preprocessing.crop,
        resize=spec.preprocessing.resize,
        stages=[StageAnswer(name=each.name, resolution=each.resolution, mmacs=each.mmacs) for each in spec.stages],
        low_mmacs=spec.mmacs[0],
        high_mmacs=spec.single_scale_mmacs,
        default_threshold=start,
        dataset=spec.dataset,
        calibration_images=0 if calibration is None else calibration.table.n,
        curve=[] if calibration is None else _curve(calibration, engine),
    )


def _curve(calibration: Calibration, engine: Engine | None) -> list[CurvePoint]:
    """Points of the calibration table, with times if an engine has measured them."""
    return [
        CurvePoint.at(
            row.threshold,
            calibration.predict(row.threshold),
            UNKNOWN_TIME if engine is None else engine.predict(row.threshold).time,
        )
        for row in calibration.table.rows
    ]
