"""The classes of a data set: their labels, and whether each can be learnt."""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from service.errors import DataError, InvalidImage
from service.images.decode import photograph
from service.inference.device import cores
from service.training.data import Photographs
from service.training.folders import check_text, counted, shown


def labels(folders: Sequence[str], class_names: Path | None) -> tuple[str, ...]:
    """A readable label for each class folder, from a JSON file of folder -> label, or the folder's name.

    Raises:
        DataError: the file cannot be read, lacks a folder, or has an invalid, empty or duplicate label.
    """
    if class_names is None:
        return tuple(folders)
    try:
        names = json.loads(class_names.read_text())
        found = {folder: names[folder] for folder in folders}
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"class names {class_names} cannot be read: {error}", field="class_names") from error
    except KeyError as error:
        raise DataError(f"class names {class_names} lack folder {error}", field="class_names") from error
    owners: dict[str, str] = {}
    for folder, label in found.items():
        if not isinstance(label, str) or not label.strip():
            raise _unfit(class_names, f"the label {label!r} for folder {folder!r}; it must be text that is not empty")
        check_text("class_names", f"folder {folder!r} in class names {class_names}", label)
        other = owners.setdefault(label.strip(), folder)
        if other != folder:
            raise _unfit(class_names, f"the label {label!r} for folders {other!r} and {folder!r}; each needs its own")
    return tuple(found.values())


def _unfit(class_names: Path, what: str) -> DataError:
    return DataError(f"class names {class_names} have {what}", field="class_names")


def check_trainable(data: Path, found: Photographs, train: Photographs) -> None:
    """Check that ``train``, the training part of the photographs ``found`` in ``data``, can be learnt.

    It needs at least two classes, each with a readable photograph.

    Raises:
        DataError: naming the class that has none.
    """
    if len(found.folders) < 2:
        raise DataError(
            f"{data} holds 1 class, {found.folders[0]}/; it needs at least 2: if the class folders are inside it, "
            "pass it as --data",
            field="data",
            value=1,
            bound=2,
        )
    if train.empty:
        raise DataError(
            f"{data} has no photograph of class {train.empty[0]!r} to train on; skipped in all classes: "
            f"{counted(found.skipped)}",
            field="data",
            value=train.empty[0],
        )
    files: dict[int, list[Path]] = {}
    for path, target in zip(train.paths, train.targets, strict=True):
        files.setdefault(target, []).append(path)
    with ThreadPoolExecutor(cores()) as threads:
        for target, readable in enumerate(threads.map(_any_readable, (files[t] for t in sorted(files)))):
            if not readable:
                raise DataError(
                    f"none of the {len(files[target])} photographs of class {train.folders[target]!r} can be read, "
                    f"{shown(files[target][0])} first",
                    field="data",
                    value=train.folders[target],
                )


def _any_readable(paths: Sequence[Path]) -> bool:
    for path in paths:
        with suppress(InvalidImage, OSError):
            photograph(path.read_bytes())
            return True
    return False
