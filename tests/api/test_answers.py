"""Answers are written as pydantic would write them, to the byte."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from service.api.answers import fields_of, json_response, one
from service.api.schemas import BatchAnswer, BatchError, ClassifyAnswer, ErrorDetail
from service.engine.answer import Answer, Ranked, Ranking, Timing

shares = st.floats(0, 1) | st.floats(allow_nan=True, allow_infinity=True)
seconds = st.floats(0, 1e4)
rankings: st.SearchStrategy[Ranking] = st.lists(
    st.builds(Ranked, st.text(), st.integers(0, 999), shares), min_size=1, max_size=5
).map(tuple)


@st.composite
def answers(draw: st.DrawFn) -> Answer:
    """Of models with one to three stages."""
    names = ("low", "middle", "high")[: draw(st.integers(1, 3))]
    stage = draw(st.integers(0, len(names) - 1))
    spent = draw(st.lists(seconds, max_size=len(names)))
    said = st.fixed_dictionaries(dict.fromkeys(names, st.none() | rankings))
    return Answer(
        top_k=draw(rankings),
        stages=names,
        stage=stage,
        reason=draw(st.sampled_from(["confident", "escalated", "deadline", "brownout", "cached", "only"])),
        confidences=tuple(draw(st.lists(shares, min_size=1, max_size=3))),
        threshold=draw(st.sampled_from([0, 1]) | shares),
        mmacs=draw(st.sampled_from([0, 45]) | st.floats(0, 1e9)),
        degraded=draw(st.booleans()),
        model=draw(st.text()),
        version=draw(st.integers(1, 10**9)),
        config_version=draw(st.integers(1, 2**53)),
        timing=Timing(draw(seconds), draw(seconds), spent),
        seconds=draw(seconds),
        passes=draw(st.none() | said),
    )


@given(answers())
def test_one_answer_is_what_its_schema_says(answer: Answer) -> None:
    fields = fields_of(answer, "id")
    assert one(fields).body == ClassifyAnswer.model_validate(fields).model_dump_json().encode()


@given(st.lists(answers(), max_size=3))
def test_answers_of_a_batch_are_what_their_schema_says(several: list[Answer]) -> None:
    failed = BatchError(error=ErrorDetail(code="busy", message="é", request_id="id"), status=429).model_dump()
    content = {"results": [failed, *(fields_of(answer, "id") for answer in several)]}
    assert json_response(content).body == BatchAnswer.model_validate(content).model_dump_json().encode()
