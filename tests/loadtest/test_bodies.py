from __future__ import annotations

from email import message_from_bytes
from pathlib import Path

from loadtest import bodies


def test_every_class_gives_as_many_photographs(shapes: Path) -> None:
    chosen = bodies.choose(shapes, 9)
    assert sorted(path.parent.name for path in chosen) == ["circle"] * 3 + ["square"] * 3 + ["triangle"] * 3
    assert len(set(chosen)) == 9


def test_the_choice_is_always_the_same(shapes: Path) -> None:
    assert bodies.choose(shapes, 7) == bodies.choose(shapes, 7)


def test_no_more_are_chosen_than_there_are(shapes: Path) -> None:
    assert len(bodies.choose(shapes, 1000)) == len(list((shapes / "val").rglob("*.jpg")))


def test_without_data_the_examples_are_taken() -> None:
    assert {path.name for path in bodies.choose(None, 300)} >= {"church.jpg", "golf-ball.jpg"}


def test_both_generators_find_the_same_bodies(tmp_path: Path) -> None:
    photographs = bodies.choose(None, 300)
    made = bodies.raw(photographs, tmp_path)
    blob = made.blob.read_bytes()
    assert made.read() == [path.read_bytes() for path in photographs]
    assert made.read() == [blob[start : start + size] for start, size in made.offsets]


def test_a_multipart_body_holds_the_photograph_as_its_part(tmp_path: Path) -> None:
    photographs = bodies.choose(None, 300)
    made = bodies.multipart(photographs, tmp_path)
    message = message_from_bytes(f"Content-Type: {made.content_type}\r\n\r\n".encode() + made.read()[0])
    _, part = message.walk()
    assert part.get_param("name", header="content-disposition") == "images"
    assert photographs[0].read_bytes() in made.read()[0]
