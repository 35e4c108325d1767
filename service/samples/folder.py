"""The folder of a log: on this machine, or in any store that fsspec supports."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from service.errors import InvalidOption

PROBE = ".lowfirst-can-write"


class Folder(Protocol):
    """A flat folder. Every method may raise the store's exceptions; a local folder raises OSError."""

    def prepare(self) -> None:
        """Create the folder, and check that it can be written."""
        ...

    def sizes(self) -> Mapping[str, int]:
        """The size of each file in bytes, by name."""
        ...

    def write(self, name: str, data: bytes) -> None:
        """Write a file completely, or not at all."""
        ...

    def read(self, name: str) -> bytes:
        """The contents of a file."""
        ...

    def remove(self, name: str) -> None:
        """Delete a file, if it exists."""
        ...


def folder_at(where: str, field: str) -> Folder:
    """The folder at a path or URL. Raises InvalidOption for ``field`` if the store is unknown or cannot be reached."""
    if "://" not in where:
        return LocalFolder(Path(where))
    try:
        import fsspec

        files, root = fsspec.url_to_fs(where)
    except ImportError as error:  # of fsspec, or what it needs for this kind of URL
        raise InvalidOption(field, where, f"a folder, or pip install '.[log]' ({error})") from error
    except Exception as error:
        raise InvalidOption(field, where, f"a folder, or a URL that fsspec knows ({error})") from error
    return RemoteFolder(files, root)


class LocalFolder:
    """See ``Folder``. Its files can also be appended to."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def prepare(self) -> None:
        """See ``Folder``."""
        self._root.mkdir(parents=True, exist_ok=True)
        probe = self._root / f"{PROBE}-{os.getpid()}"
        probe.touch()
        probe.unlink(missing_ok=True)

    def sizes(self) -> Mapping[str, int]:
        """See ``Folder``."""
        found = {}
        with os.scandir(self._root) as entries:
            for entry in entries:
                with suppress(FileNotFoundError):  # another process was faster
                    found[entry.name] = entry.stat().st_size
        return found

    def append(self, name: str, data: bytes) -> None:
        """Append ``data`` to a file, which may be new. If this fails, the file is unchanged."""
        with (self._root / name).open("ab", buffering=0) as file:
            before = file.seek(0, os.SEEK_END)
            try:
                while data:
                    data = data[file.write(data) :]
            except OSError:
                file.truncate(before)  # half a line is none
                raise

    def write(self, name: str, data: bytes) -> None:
        """See ``Folder``."""
        temporary = self._root / f"{name}.part"
        try:
            temporary.write_bytes(data)
            temporary.replace(self._root / name)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise

    def read(self, name: str) -> bytes:
        """See ``Folder``."""
        return (self._root / name).read_bytes()

    def remove(self, name: str) -> None:
        """See ``Folder``."""
        (self._root / name).unlink(missing_ok=True)


class RemoteFolder:
    """See ``Folder``. Objects of a store are written as a whole."""

    def __init__(self, files: Any, root: str) -> None:
        self._files = files
        self._root = root.rstrip("/")

    def prepare(self) -> None:
        """See ``Folder``."""
        self._files.makedirs(self._root, exist_ok=True)
        probe = f"{PROBE}-{os.getpid()}"
        self.write(probe, b"")
        self.remove(probe)

    def sizes(self) -> Mapping[str, int]:
        """See ``Folder``."""
        self._files.invalidate_cache(self._root)
        return {each["name"].rpartition("/")[2]: each["size"] or 0 for each in self._files.ls(self._root, detail=True)}

    def write(self, name: str, data: bytes) -> None:
        """See ``Folder``."""
        self._files.pipe_file(f"{self._root}/{name}", data)

    def read(self, name: str) -> bytes:
        """See ``Folder``."""
        found: bytes = self._files.cat_file(f"{self._root}/{name}")
        return found

    def remove(self, name: str) -> None:
        """See ``Folder``."""
        with suppress(FileNotFoundError):
            self._files.rm_file(f"{self._root}/{name}")
