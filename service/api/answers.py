"""Answers as JSON, built without pydantic models, which took a fifth of a request's time.

Fields and their order are those of ``ClassifyAnswer`` and ``BatchAnswer``; a test compares the bytes.
"""

from __future__ import annotations

from typing import Any

from pydantic_core import to_json
from starlette.responses import Response

from service.engine.answer import Answer, Ranking

Fields = dict[str, Any]


def fields_of(answer: Answer, request_id: str) -> Fields:
    """The engine's answer as ``ClassifyAnswer``."""
    best, passes = answer.top_k[0], answer.passes
    return {
        "label": best.label,
        "score": best.score,
        "top_k": _labels(answer.top_k),
        "exit": answer.exit,
        "reason": answer.reason,
        "confidence": answer.confidence,
        "threshold": float(answer.threshold),
        "mmacs": float(answer.mmacs),
        "degraded": answer.degraded,
        "cached": answer.cached,
        "model": {"name": answer.model, "version": answer.version},
        "config_version": answer.config_version,
        "request_id": request_id,
        "timing_ms": _timing_ms(answer),
        "passes": None if passes is None else {name: said and _labels(said) for name, said in passes.items()},
    }


def one(fields: Fields) -> Response:
    """The response for one image. Its timing is also a ``Server-Timing`` header (W3C), for browsers and proxies."""
    timing = ", ".join([f"{name};dur={spent:.2f}" for name, spent in fields["timing_ms"].items()])
    return json_response(fields, {"Server-Timing": timing})


def json_response(content: Fields, headers: dict[str, str] | None = None) -> Response:
    """A response with plain values, serialised as pydantic does."""
    return Response(to_json(content, inf_nan_mode="null"), media_type="application/json", headers=headers)


def _labels(ranking: Ranking) -> list[Fields]:
    return [{"label": each.label, "index": each.index, "score": each.score} for each in ranking]


def _timing_ms(answer: Answer) -> dict[str, float]:
    timing = answer.timing
    stages = dict.fromkeys(answer.stages, 0.0)
    stages.update((name, 1e3 * seconds) for name, seconds in zip(answer.stages, timing.stages, strict=False))
    return {"decode": 1e3 * timing.decode, "queue": 1e3 * timing.queue, **stages, "total": 1e3 * answer.seconds}
