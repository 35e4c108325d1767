"""Finds photographs in folders, and the splits of a data set.

Skipped, and counted by kind: hidden names, leftovers of archives and file systems, link cycles, special files (a FIFO
would never end), and files with other extensions.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from service.errors import DataError, InvalidOption

EXTENSIONS = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp")

# Left behind by archives and file systems, beside names that begin with a dot.
LEFT_BEHIND = ("__MACOSX", "@eaDir", "lost+found", "$RECYCLE.BIN", "Thumbs.db", "desktop.ini")

TRAIN = ("train", "training")
OTHERS = ("val", "valid", "validation", "test", "testing")


class Walk:
    """A walk through ``root`` and everything below it, each folder once; ``skipped`` counts skipped entries by kind."""

    def __init__(self, root: Path) -> None:
        self.skipped: Counter[str] = Counter()
        self._root = root.resolve()
        self._seen: set[Path] = set()

    @property
    def kinds(self) -> tuple[tuple[str, int], ...]:
        """Skipped kinds, the most frequent first."""
        return by_frequency(self.skipped)

    def look_in(self, folder: Path) -> tuple[list[Path], list[Path]]:
        """The folders and the photographs directly in ``folder``, each by name."""
        folders, photographs = [], []
        for entry in self._entries(folder):
            if _is_folder(entry):
                folders += [Path(entry.path)] if self._is_new(entry) else []
            elif self._is_photograph(entry):
                photographs.append(Path(entry.path))
        return sorted(folders), sorted(photographs)

    def photographs(self, folder: Path) -> list[Path]:
        """All photographs in ``folder`` and below, by folder and name."""
        found, folders = [], [folder]
        while folders:
            below, here = self.look_in(folders.pop())
            folders += below
            found += here
        return sorted(found, key=lambda path: (str(path.parent), path.name))

    def _entries(self, folder: Path) -> Iterator[os.DirEntry[str]]:
        try:
            with os.scandir(folder) as entries:
                listed = list(entries)
        except OSError:
            self.skipped["folder that cannot be read"] += 1
            return
        for entry in listed:
            if is_hidden(entry.name):
                self.skipped["hidden"] += 1
            else:
                yield entry

    def _is_new(self, entry: os.DirEntry[str]) -> bool:
        """Whether this walk reads the folder nowhere else."""
        real = Path(entry.path).resolve()
        leads_back = entry.is_symlink() and (
            Path(entry.path).parent.resolve().is_relative_to(real)
            or real.is_relative_to(self._root)
            or self._root.is_relative_to(real)
        )
        if leads_back or real in self._seen:
            self.skipped["link to what is read anyway"] += 1
            return False
        self._seen.add(real)
        return True

    def _is_photograph(self, entry: os.DirEntry[str]) -> bool:
        extension = os.path.splitext(entry.name)[1].lower()
        if not os.path.isfile(entry.path):
            self.skipped["link to nothing" if entry.is_symlink() else "no regular file"] += 1
        elif extension not in EXTENSIONS:
            self.skipped[extension or "without extension"] += 1
        else:
            return True
        return False


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def by_frequency(kinds: Mapping[str, int]) -> tuple[tuple[str, int], ...]:
    """The kinds that occur, the most frequent first."""
    there = [(kind, count) for kind, count in kinds.items() if count]
    return tuple(sorted(there, key=lambda each: (-each[1], each[0])))


def counted(kinds: Iterable[tuple[str, int]]) -> str:
    """ "3 .heic, 1 hidden", or "nothing else"."""
    return ", ".join(f"{count} {kind}" for kind, count in kinds) or "nothing else"


def is_hidden(name: str) -> bool:
    """Whether a name cannot be a class or photograph."""
    return name.startswith(".") or name in LEFT_BEHIND


def split_folder(root: Path, split: str) -> Path:
    """The folder of ``split`` in ``root``, ignoring case; for ``train`` also ``root`` itself if it contains classes.

    Raises:
        DataError: there is none, or more than one, or the data set is one level further down.
        InvalidOption: ``split`` is not a plain name.
    """
    if not root.is_dir():
        raise DataError(f"data is {str(root)!r}, which is not a folder", field="data", value=str(root))
    if split in ("", "..") or Path(split).name != split:
        raise InvalidOption("split", split, f"the name of a folder in {root}")
    names = _names(root)
    alike = [split] if split in names else [name for name in names if name.lower() == split.lower()]
    if len(alike) == 1:
        return root / alike[0]
    if alike:
        raise _wrong(root, f"has {_listed(alike)}: which of them is {split}/ is unclear; rename all but one")
    named_otherwise = [name for name in names if name.lower() in (*TRAIN, *OTHERS)]
    if split != "train" or "val" in map(str.lower, names) or named_otherwise == names != []:
        there = f"it has {_listed(names)}: rename the right one" if names else "it has no folder at all"
        raise _wrong(root, f"has no folder {split}/, which must hold a folder of photographs for each class; {there}")
    for name in names:
        if _is_data_set(below := root / name):
            raise _wrong(root, f"holds no classes: the data set is its folder {name}/; pass --data {below}")
    return root


def _is_data_set(folder: Path) -> bool:
    """Whether its folders are splits: one for training and another, or only that one."""
    names = [name.lower() for name in _names(folder)]
    train = [name for name in names if name in TRAIN]
    return bool(train) and (names == train or any(name in OTHERS for name in names))


def _names(folder: Path) -> list[str]:
    try:
        return sorted(path.name for path in folder.iterdir() if path.is_dir() and not is_hidden(path.name))
    except OSError:
        return []


def _listed(names: list[str], most: int = 5) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(f"{name}/" for name in names[:most]) + more


def _wrong(root: Path, what: str) -> DataError:
    return DataError(f"{root} {what}", field="data", value=str(root))


def shown(path: Path) -> str:
    """A path as printable text, whatever bytes it has."""
    return os.fsencode(path).decode(errors="replace")


def check_text(field: str, what: str, name: str) -> None:
    """Raise DataError if ``name``, the name of ``what``, is not UTF-8: no file of a model could store it."""
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{what} has the name {name!a}, which is not UTF-8", field=field, value=ascii(name)) from error
