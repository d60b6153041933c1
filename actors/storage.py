"""Where checkpoints are written: a folder on a local or mounted disk, or any address that fsspec knows."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

from actors.errors import UserError
from actors.fail_points import NO_FAIL_POINTS, FailPoints


class Storage(Protocol):
    """Named byte strings below one address. A name shows all of what was written, or nothing."""

    address: str

    def write(self, name: str, data: bytes, points: FailPoints = NO_FAIL_POINTS) -> None:
        """Write under a name with `/` between folders; lasting once this returns. `points` may end the process."""
        ...

    def read(self, name: str) -> bytes:
        """Return what a name holds.

        Raises:
            OSError: there is nothing, or it can't be read.
        """
        ...

    def names(self, last: str) -> list[str]:
        """Return all names one folder down whose last part is `last`, sorted.

        Raises:
            OSError: they can't be listed.
        """
        ...

    def folders(self) -> list[str]:
        """Return the names of all folders, sorted.

        Raises:
            OSError: as `names`.
        """
        ...

    def delete(self, folder: str, first: str) -> None:
        """Delete a folder and what it holds, the file `first` before the rest; nothing happens if there is none.

        Raises:
            OSError: something of it can't be deleted.
        """
        ...


def open_storage(address: str) -> Storage:
    """Return the storage at a path or an fsspec address such as memory://runs or s3://bucket/runs.

    Raises:
        UserError: fsspec does not know the protocol, or its package is not installed.
    """
    return LocalStorage(address) if "://" not in address else RemoteStorage(address)


class LocalStorage:
    """A folder of this machine's file system."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._root = Path(address)

    def write(self, name: str, data: bytes, points: FailPoints = NO_FAIL_POINTS) -> None:
        """Write beside the name, make it last, then rename."""
        path = self._root / name
        self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.partial")
        with open(partial, "wb") as file:
            file.write(data[: len(data) // 2])
            points.reach("half written")
            file.write(data[len(data) // 2 :])
            file.flush()
            os.fsync(file.fileno())
        points.reach("before rename")
        partial.rename(path)
        for folder in (path.parent, path.parent.parent):
            _sync(folder)

    def read(self, name: str) -> bytes:
        """Return what a name holds."""
        return (self._root / name).read_bytes()

    def names(self, last: str) -> list[str]:
        """Return all names one folder down whose last part is `last`."""
        return sorted(str(path.relative_to(self._root)) for path in self._root.glob(f"*/{last}"))

    def folders(self) -> list[str]:
        """Return the names of all folders."""
        return sorted(path.name for path in self._root.glob("*") if path.is_dir())

    def delete(self, folder: str, first: str) -> None:
        """Delete a folder and what it holds."""
        (self._root / folder / first).unlink(missing_ok=True)
        with suppress(FileNotFoundError):
            shutil.rmtree(self._root / folder)


class RemoteStorage:
    """An fsspec address. A write is one PUT, which an object store shows whole or not at all."""

    def __init__(self, address: str) -> None:
        import fsspec

        self.address = address
        try:
            files, root = fsspec.core.url_to_fs(address)
        except (ValueError, ImportError) as error:
            raise UserError(
                f"checkpoint.uri: {address} can't be opened ({error}); correct the address or install its extra"
            ) from None
        self._files: Any = files
        self._root: str = root.rstrip("/")

    def write(self, name: str, data: bytes, points: FailPoints = NO_FAIL_POINTS) -> None:
        """Write in one PUT."""
        points.reach("half written")
        with _os_errors():
            self._files.makedirs(f"{self._root}/{name}".rsplit("/", 1)[0], exist_ok=True)
        points.reach("before rename")
        with _os_errors():
            self._files.pipe_file(f"{self._root}/{name}", data)

    def read(self, name: str) -> bytes:
        """Return what a name holds."""
        with _os_errors():
            return self._files.cat_file(f"{self._root}/{name}")

    def names(self, last: str) -> list[str]:
        """Return all names one folder down whose last part is `last`."""
        with _os_errors():
            self._files.invalidate_cache()
            return sorted("/".join(path.split("/")[-2:]) for path in self._files.glob(f"{self._root}/*/{last}"))

    def folders(self) -> list[str]:
        """Return the names of all folders."""
        with _os_errors():
            self._files.invalidate_cache()
            return sorted({path.split("/")[-2] for path in self._files.glob(f"{self._root}/*/*")})

    def delete(self, folder: str, first: str) -> None:
        """Delete a folder and what it holds."""
        with _os_errors():
            for name in (f"{folder}/{first}", folder):
                if self._files.exists(f"{self._root}/{name}"):
                    self._files.rm(f"{self._root}/{name}", recursive=True)


@contextmanager
def _os_errors() -> Iterator[None]:
    """Give the errors of any store's own kind, such as a missing credential, the kind that readers know."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        raise OSError(f"{type(error).__name__}: {error}") from error


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
