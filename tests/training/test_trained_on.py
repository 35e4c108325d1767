"""What was trained on is known by its contents, whatever it is called now."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from service.errors import BrokenModel, DataError
from service.store import read_spec, write_spec
from service.training.data import Photographs, find, find_unlabelled, hold_out
from service.training.loop import train
from service.training.options import TrainOptions
from service.training.run_folder import CHECKPOINT
from service.training.trained_on import (
    TRAINED_ON,
    digests,
    knows_trained_on,
    merge_trained_on,
    not_trained_on,
    split,
    trained_on,
    write_trained_on,
)

MakeOptions = Callable[..., TrainOptions]


@pytest.fixture(scope="module")
def whole(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one epoch on the shapes; tests that write copy it."""
    out = tmp_path_factory.mktemp("split") / "run"
    train(
        TrainOptions(
            "ms_mobilenet_v1_025", shapes, out, 64, epochs=1, batch_size=16, calibration_share=0.3, device="cpu",
            precision="float32", workers=0,
        )
    )  # fmt: skip
    return out


@pytest.fixture
def data(shapes: Path, tmp_path: Path) -> Path:
    """A copy of the photographs, to be changed."""
    return Path(shutil.copytree(shapes, tmp_path / "data"))


def _contents(photographs: Photographs) -> set[bytes]:
    return set(digests(photographs.paths))


@pytest.fixture
def held_out(shapes: Path) -> set[bytes]:
    """Contents of what the run held out."""
    return _contents(hold_out(find(shapes, "train"), 0.3, seed=0)[1])


def test_run_keeps_what_it_trained_on(whole: Path, shapes: Path, held_out: set[bytes]) -> None:
    known = trained_on(whole)
    assert len(known) == 51
    assert known | held_out == _contents(find(shapes, "train"))
    assert not known & held_out


def test_what_was_not_trained_on_is_what_was_held_out(whole: Path, shapes: Path, held_out: set[bytes]) -> None:
    kept, seen = not_trained_on(find(shapes, "train"), whole)
    assert _contents(kept) == held_out
    assert (len(kept), seen) == (21, 51)


def test_renamed_photographs_are_known_again(whole: Path, data: Path, held_out: set[bytes]) -> None:
    for number, path in enumerate(find(data, "train").paths):
        path.rename(path.with_name(f"{(number * 31) % 72:02}-renamed.jpg"))
    assert _contents(not_trained_on(find(data, "train"), whole)[0]) == held_out


def test_photographs_replaced_at_equal_counts_do_not_let_known_ones_certify(
    whole: Path, data: Path, held_out: set[bytes]
) -> None:
    known = [path for path, digest in _by_contents(data).items() if digest not in held_out]
    for path in find(data, "train").paths[::2]:
        shutil.copy(known[-1], path)
    found = find(data, "train")
    assert len(found) == 72
    assert _contents(not_trained_on(found, whole)[0]) == held_out & _contents(found)


def _by_contents(data: Path) -> dict[Path, bytes]:
    paths = find(data, "train").paths
    return dict(zip(paths, digests(paths), strict=True))


def test_added_photographs_were_not_trained_on(whole: Path, data: Path, held_out: set[bytes]) -> None:
    new = data / "val" / "circle" / "00.jpg"
    shutil.copy(new, data / "train" / "circle" / "new.jpg")
    assert _contents(not_trained_on(find(data, "train"), whole)[0]) == held_out | set(digests([new]))


def test_any_photographs_will_do_and_each_counts_once(whole: Path, data: Path) -> None:
    shutil.copy(data / "val" / "circle" / "00.jpg", data / "val" / "square" / "copy.jpg")
    shutil.copy(find(data, "train").paths[3], data / "val" / "square" / "trained-on.jpg")
    kept, seen = not_trained_on(find(data, "val"), whole)
    assert (len(kept), seen) == (18, 1)
    assert dict(kept.skipped) == {"copy of another": 1}
    assert len(not_trained_on(find_unlabelled(data / "val"), whole)[0]) == 18


def test_copies_of_a_photograph_are_all_trained_on_or_all_held_out(data: Path) -> None:
    for path in find(data, "train").paths:
        shutil.copy(path, path.with_name(f"copy-of-{path.name}"))
    found = find(data, "train")
    rest, held, known = split(found, digests(found.paths), 0.3, seed=0)
    assert len(rest) + len(held) == len(found) == 144
    assert not _contents(rest) & _contents(held)
    assert set(known) == _contents(rest)
    assert len(held) > 0


def test_what_the_first_model_saw_is_kept_by_what_starts_from_it(
    whole: Path, make_options: MakeOptions, shapes: Path, caplog: pytest.LogCaptureFixture
) -> None:
    options = make_options(epochs=1, init=str(whole), seed=1)
    train(options)
    assert "of the 21 photographs held out now, so " in caplog.text
    before = trained_on(whole)
    assert before < trained_on(options.out)
    kept, _ = not_trained_on(find(shapes, "train"), options.out)
    assert 0 < len(kept) < 21
    assert not _contents(kept) & before


def test_what_several_models_saw_is_kept_together(whole: Path, shapes: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(whole, tmp_path / "other"))
    digest = digests([shapes / "val" / "circle" / "00.jpg"])
    write_spec(other, dataclasses.replace(read_spec(other), files=write_trained_on(other, digest)))
    both = tmp_path / "both"
    both.mkdir()
    assert set(merge_trained_on(both, [whole, other])) == {TRAINED_ON}
    assert trained_on(both) == trained_on(whole) | set(digest)


def _older(run: Path, tmp_path: Path) -> Path:
    older = Path(shutil.copytree(run, tmp_path / "older"))
    (older / TRAINED_ON).unlink()
    write_spec(older, dataclasses.replace(read_spec(older), files={}))
    assert not knows_trained_on(older)
    return older


def test_run_of_an_older_version_is_resumed_as_before(whole: Path, shapes: Path, data: Path, tmp_path: Path) -> None:
    older = _older(whole, tmp_path)
    options = TrainOptions(
        "ms_mobilenet_v1_025", shapes, older, 64, epochs=1, batch_size=16, calibration_share=0.3, device="cpu",
        precision="float32", workers=0,
    )  # fmt: skip
    train(options, resume=True)
    assert not (older / TRAINED_ON).exists()
    (data / "train" / "circle" / "00.jpg").unlink()
    with pytest.raises(DataError, match=r"has 50 training photographs, 21 held out and 3 classes; .* had 51, 21"):
        train(dataclasses.replace(options, data=data), resume=True)


@pytest.mark.parametrize("change", [Path.unlink, lambda path: path.write_bytes(b"0" * 8)])
def test_list_that_was_changed_is_not_believed(
    whole: Path, shapes: Path, tmp_path: Path, change: Callable[[Path], object]
) -> None:
    run = Path(shutil.copytree(whole, tmp_path / "run"))
    change(run / TRAINED_ON)
    with pytest.raises(BrokenModel, match=r"trained_on\.bin"):
        not_trained_on(find(shapes, "train"), run)


@pytest.mark.parametrize("whole_epochs", [0, 1])
def test_resuming_with_other_contents_is_an_error(make_options: MakeOptions, data: Path, whole_epochs: int) -> None:
    options = make_options()

    def interrupt(now: object) -> None:
        if now.epoch > whole_epochs:  # type: ignore[attr-defined]
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(options, on_step=interrupt)
    assert (options.out / CHECKPOINT).exists() == bool(whole_epochs)
    known = trained_on(options.out)
    path = next(path for path, digest in _by_contents(data).items() if digest in known)
    shutil.copy(data / "val" / "circle" / "00.jpg", path)
    with pytest.raises(DataError, match="has 1 training photographs that were not used before"):
        train(dataclasses.replace(options, data=data), resume=True)


def test_file_that_cannot_be_read_has_no_digest(tmp_path: Path) -> None:
    assert digests([tmp_path / "nowhere.jpg"]) == (b"",)
