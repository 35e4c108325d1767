"""What stands in Redis: read again exactly, and anything else refused with the reason."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import struct
from typing import Any

import pytest

from service.state.base import CachedOutputs, EndedTrial, Goal, RuntimeConfig, ThresholdConfig, Trial, place
from service.state.encoding import (
    Notice,
    Unreadable,
    decode_config,
    decode_notice,
    decode_outputs,
    encode_config,
    encode_notice,
    encode_outputs,
)

CONFIG = RuntimeConfig(
    7,
    {"tiny": ThresholdConfig("max_mean_mmacs", 1 / 3, 0.1 + 0.2, 0.1), "other": ThresholdConfig("threshold", 0, 1)},
    {"tiny": 2, "other": 1},
)
TRIED = dataclasses.replace(
    CONFIG,
    trial=Trial("tiny", 3, "tiny", 1 / 3, False, 0.02, ThresholdConfig("min_agreement", 0.9, 0.7), 1.8e9),
    ended=EndedTrial("tiny", 4, "tiny", "disagreement", "3 of 3 differ", 1.7e9),
)


def changed(path: tuple[str, ...], value: Any, of: RuntimeConfig = CONFIG) -> bytes:
    """``of`` with another ``value`` at ``path``; None there takes the field away."""
    told = json.loads(encode_config(of))
    *parents, last = path
    where = told
    for parent in parents:
        where = where[parent]
    if value is None:
        del where[last]
    else:
        where[last] = value
    return json.dumps(told).encode()


def test_config_comes_back_as_it_was() -> None:
    assert decode_config(encode_config(CONFIG)) == CONFIG
    assert list(decode_config(encode_config(CONFIG)).models) == ["tiny", "other"]


def test_a_trial_comes_back_as_it_was_and_stands_only_where_there_is_one() -> None:
    assert decode_config(encode_config(TRIED)) == TRIED
    assert set(json.loads(encode_config(CONFIG))) == {"format", "version", "thresholds", "models"}  # as before trials


@pytest.mark.parametrize(
    ("path", "value", "why"),
    [
        (("trial", "share"), 1.5, "trial.share is 1.5; it must be between 0 and 1"),
        (("trial", "share"), None, "share"),
        (("trial", "version"), 0, "trial.version is 0"),
        (("trial", "version"), 2, "trial.name is 'tiny'; it must be that of a model that is not served"),
        (("trial", "name"), "other", "trial.name is 'other'"),
        (("trial", "name"), 7, "trial.name is 7"),
        (("trial", "beside"), "gone", "trial.beside is 'gone'; it must be one of tiny, other"),
        (("trial", "is_shadow"), 1, "trial.is_shadow is 1"),
        (("trial", "max_disagreement"), -1, "trial.max_disagreement is -1"),
        (("trial", "threshold", "threshold"), 2, "trial.threshold.threshold is 2"),
        (("trial", "began"), "now", "trial.began is 'now'"),
        (("trial", "more"), 1, "more"),
        (("ended", "outcome"), "lost", "ended.outcome is 'lost'"),
        (("ended", "at"), True, "ended.at is True"),
        (("ended", "why"), 5, "ended.why is 5"),
    ],
)
def test_a_trial_out_of_bounds_is_refused_with_the_reason(path: tuple[str, ...], value: Any, why: str) -> None:
    with pytest.raises(Unreadable) as refused:
        decode_config(changed(path, value, TRIED))
    assert why in str(refused.value)


def test_the_place_of_an_image_is_what_the_document_says_and_evenly_spread() -> None:
    assert place(b"") == int.from_bytes(hashlib.blake2b(b"", digest_size=4).digest(), "big") / 2**32
    places = [place(str(number).encode()) for number in range(10_000)]
    assert abs(sum(each < 0.05 for each in places) - 500) < 100  # 4.6 standard deviations
    trial = TRIED.trial
    assert trial is not None
    images = [str(number).encode() for number in range(1000)]
    small, large = (
        {image for image in images if dataclasses.replace(trial, share=share).picks(image)} for share in (0.1, 0.3)
    )
    assert small < large
    picked = [dataclasses.replace(trial, share=share).picks(b"any") for share in (0.0, 1.0)]
    assert picked == [False, True]


TINY = ("thresholds", "tiny")


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (b"threshold 0.5", "Expecting value"),
        (b"\xff", "codec"),
        (b"[]", "list"),
        (b"null", "NoneType"),
        (b"[" * 100_000, "recursion"),
        (changed(("format",), None), "format is missing"),
        (changed(("format",), 0), "format 0"),
        (changed(("format",), "1"), "format '1'"),
        (changed(("version",), None), "version is missing"),
        (changed(("version",), 0), "version is 0; it must be a whole number from 1"),
        (changed(("version",), 2.5), "version is 2.5"),
        (changed(("version",), True), "version is True"),
        (changed(("version",), 2**53), "to 9007199254740991"),
        (changed(("models",), {}), "models is empty"),
        (changed(("models",), ["tiny"]), "list"),
        (changed(("models", "tiny"), "two"), "models.tiny is 'two'"),
        (changed(TINY, 0.5), "mapping"),
        (changed((*TINY, "goal"), "speed"), "goal is 'speed'; it must be one of threshold, max_mean_mmacs"),
        (changed((*TINY, "value"), "much"), "value is 'much'"),
        (changed((*TINY, "value"), 10**400), "too large"),
        (changed((*TINY, "threshold"), None), "threshold"),
        (changed((*TINY, "threshold"), 1.5), "threshold is 1.5; it must be between 0 and 1"),
        (changed((*TINY, "threshold"), float("nan")), "threshold is nan"),
        (changed((*TINY, "threshold"), True), "threshold is True"),
        (changed((*TINY, "floor"), 0.31), "floor is 0.31; it must be between 0 and the threshold"),
        (changed((*TINY, "table"), "yesterday"), "table is 'yesterday'; it must be one of stored, live"),
        (changed((*TINY, "ceiling"), 1), "ceiling"),
    ],
)
def test_config_out_of_bounds_is_refused_with_the_reason(raw: bytes, why: str) -> None:
    with pytest.raises(Unreadable) as refused:
        decode_config(raw)
    assert why in str(refused.value)
    assert not refused.value.is_newer


@pytest.mark.parametrize("goal", ["max_mean_mmacs", "max_mean_ms"])
def test_value_of_a_budget_may_exceed_one(goal: Goal) -> None:
    asked = ThresholdConfig(goal, 12.5, 0.6)
    assert decode_config(encode_config(RuntimeConfig(1, {"tiny": asked}, {"tiny": 1}))).thresholds["tiny"] == asked


@pytest.mark.parametrize("goal", ["threshold", "min_agreement", "max_accuracy_drop"])
def test_value_of_a_share_may_not(goal: str) -> None:
    config = json.loads(changed((*TINY, "goal"), goal))
    config["thresholds"]["tiny"]["value"] = 1.5
    with pytest.raises(Unreadable, match=r"value is 1\.5; it must be between 0 and 1"):
        decode_config(json.dumps(config).encode())


def test_table_that_a_goal_is_held_by_comes_back_and_earlier_releases_read_configs_without() -> None:
    live = RuntimeConfig(1, {"tiny": ThresholdConfig("min_agreement", 0.97, 0.6, table="live")}, {"tiny": 1})
    assert decode_config(encode_config(live)) == live
    assert b"table" not in encode_config(CONFIG)


def test_newer_format_is_known_to_be_one() -> None:
    with pytest.raises(Unreadable, match="format 2; this release knows 1") as refused:
        decode_config(changed(("format",), 2))
    assert refused.value.is_newer


@pytest.mark.parametrize("outputs", [((1 / 3, 2 / 3),), ((0.0, 1.0), (1e-300, 0.5)), ((0.1,), (0.2,), (0.3,), (0.4,))])
def test_outputs_come_back_as_they_were(outputs: tuple[tuple[float, ...], ...]) -> None:
    assert decode_outputs(encode_outputs(CachedOutputs(outputs))) == CachedOutputs(outputs)


@pytest.mark.parametrize(("low", "high"), [((0.6, 0.4), None), ((0.6, 0.4), (0.1, 0.9))])
def test_entries_of_earlier_releases_are_read(low: tuple[float, ...], high: tuple[float, ...] | None) -> None:
    known = (*low, *(high or ()))
    written = struct.pack(f"<B{len(known)}d", 1 if high is None else 2, *known)  # as release 0.3 does
    assert decode_outputs(written) == CachedOutputs((low,) if high is None else (low, high))


COMPLETE = encode_outputs(CachedOutputs(((0.5, 0.5), (0.25, 0.75))))


@pytest.mark.parametrize(
    "raw",
    [
        b"", b"\0", b"\1", b"\0" + COMPLETE[1:], b"\3" + COMPLETE[1:], COMPLETE[:-1], COMPLETE[:-8], b"high",
        encode_outputs(CachedOutputs(((float("nan"), 1.0),))), encode_outputs(CachedOutputs(((2.0, -1.0),))),
    ],
)  # fmt: skip
def test_other_bytes_are_no_outputs(raw: bytes) -> None:
    assert decode_outputs(raw) is None


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"3",
        b"{}",
        b'{"sender": "a"}',
        b'{"sender": "a", "models": {"tiny": 0}, "prepared": false}',
        b'{"sender": "a", "models": {"tiny": 1}}',
        b"\xff",
    ],
)
def test_what_is_no_word(raw: bytes) -> None:
    assert decode_notice(raw) is None


@pytest.mark.parametrize("is_prepared", [False, True])
def test_word_is_read_as_it_was_written(is_prepared: bool) -> None:
    for why_not in (None, "no room"):
        notice = Notice("me", {"tiny": 2, "bees": 1}, is_prepared, why_not)
        assert decode_notice(encode_notice(notice)) == notice


def test_word_of_what_is_served_is_of_no_model_to_earlier_releases() -> None:
    notice = Notice("me", {}, is_prepared=True, serving=7)
    assert decode_notice(encode_notice(notice)) == notice
