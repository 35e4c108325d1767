"""Errors as objects."""

from __future__ import annotations

from service.errors import Busy, InvalidOption, LowfirstError


def test_error_told_of_something_is_another_object_that_says_the_same() -> None:
    errors: tuple[LowfirstError, ...] = (
        InvalidOption("top_k", 9, "at most 4"),
        Busy("busy", retry_after_seconds=7, field="images", value=3, bound=2),
    )
    for error in errors:
        before = dict(vars(error))
        told = error.about("image 2")
        assert type(told) is type(error)
        assert vars(told) == {**before, "message": f"image 2: {error.message}"}
        assert str(told) == told.message
        assert vars(error) == before
