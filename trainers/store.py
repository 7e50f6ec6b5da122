"""A folder on any file system that pyarrow knows: a local path, a shared disk, s3://, gs://, hdfs://.

Every write is atomic: a reader sees the old file or the new one, never half of one.
"""

from __future__ import annotations

import errno
import json
import os
import uuid
from pathlib import Path
from typing import Any

CACHE = "cache"
"""Name of the folder of prepared pictures, next to the runs."""


class Store:
    """A folder. `Store("~/trainyard") / "my-run"` is a folder below it. Nothing is created before the first write."""

    def __init__(self, address: str | os.PathLike[str]) -> None:
        """Parameters: `address`, a path or a URI. Raises ValueError for a URI that pyarrow cannot open."""
        self.address = os.fspath(address)
        self.local: Path | None = None
        if "://" in self.address:
            self._fs, self._path = _open(self.address)
        else:
            self.local = Path(self.address).expanduser().absolute()
            self.address = str(self.local)

    def __truediv__(self, name: str) -> Store:
        folder, mark, query = self.address.partition("?")  # s3://bucket/folder?endpoint_override=...
        return Store(f"{folder.rstrip('/')}/{name}{mark}{query}")

    def __repr__(self) -> str:
        return f"Store({self.address!r})"

    @property
    def name(self) -> str:
        return self.address.partition("?")[0].rstrip("/").rsplit("/", 1)[-1]

    def write(self, name: str, data: bytes) -> None:
        """Put `data` at `name`, atomically. Raises OSError where the storage does not take it."""
        if self.local is None:
            with self._fs.open_output_stream(f"{self._path}/{name}") as stream:
                stream.write(data)
            return
        target = self.local / name
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.part")
        try:
            with open(part, "wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(part, target)
        except BaseException as error:
            part.unlink(missing_ok=True)
            if isinstance(error, OSError):
                error.filename = error.filename or str(target)  # a full disk names no file
            raise

    def write_json(self, name: str, value: Any) -> None:
        self.write(name, (json.dumps(value, indent=1, allow_nan=False) + "\n").encode())

    def read(self, name: str) -> bytes:
        """Raises FileNotFoundError."""
        if self.local is not None:
            return (self.local / name).read_bytes()
        with self._fs.open_input_file(f"{self._path}/{name}") as stream:
            return bytes(stream.read())

    def read_json(self, name: str) -> Any:
        """The value at `name`, or None where there is no such file. Raises ValueError where it is no JSON."""
        try:
            return json.loads(self.read(name))
        except FileNotFoundError:
            return None
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"{self.address}/{name} is not valid JSON ({error})") from None

    def names(self) -> list[str]:
        """What lies directly in the folder, sorted; empty where there is none."""
        if self.local is not None:
            return sorted(os.listdir(self.local)) if self.local.is_dir() else []
        from pyarrow.fs import FileSelector

        found = self._fs.get_file_info(FileSelector(self._path, allow_not_found=True))
        return sorted(info.base_name for info in found)

    def delete(self, name: str) -> None:
        """Remove the file or the folder `name`; nothing happens where there is none."""
        if self.local is not None:
            import shutil

            target = self.local / name
            shutil.rmtree(target, ignore_errors=True) if target.is_dir() else target.unlink(missing_ok=True)
            return
        from pyarrow.fs import FileType

        path = f"{self._path}/{name}"
        kind = self._fs.get_file_info(path).type
        if kind == FileType.Directory:
            self._fs.delete_dir(path)
        elif kind == FileType.File:
            self._fs.delete_file(path)

    def check_writable(self) -> None:
        """Write, read back and remove a small file. Raises ValueError with the cause and what to do."""
        probe = f".probe-{uuid.uuid4().hex[:8]}"
        try:
            self.write(probe, b"probe")
            assert self.read(probe) == b"probe"
            self.delete(probe)
        except OSError as error:
            raise ValueError(
                f"the storage {self.address} cannot be written: {explain(error)}; "
                "give --storage another folder, or set TRAINYARD_STORAGE"
            ) from None


def explain(error: OSError) -> str:
    """What went wrong, in plain words: not "[Errno 28]"."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "the disk is full"
    return error.strerror or str(error)


def read_run(folder: Store) -> dict[str, Any] | None:
    """What run.json holds, or None where there is none. Raises ValueError where it is not that of a run."""
    try:
        found: dict[str, Any] | None = folder.read_json("run.json")
    except ValueError as error:
        raise ValueError(f"{error}; mend it, or remove the run's folder") from None
    if found is not None and not (isinstance(found, dict) and {"status", "recipe", "scale"} <= found.keys()):
        raise ValueError(f"{folder.address}/run.json is not that of a run; mend it, or remove the run's folder")
    return found


def run_names(storage: Store) -> list[str]:
    """The names of the runs, and folders of runs, in a storage."""
    return [name for name in storage.names() if name != CACHE and not name.startswith(".")]


def default_storage() -> str:
    """`$TRAINYARD_STORAGE`, else `~/trainyard`."""
    return os.environ.get("TRAINYARD_STORAGE") or str(Path.home() / "trainyard")


def _open(address: str) -> tuple[Any, str]:
    from pyarrow import ArrowException, fs

    try:
        opened = fs.FileSystem.from_uri(address)
    except (ArrowException, OSError, ValueError) as error:
        raise ValueError(f"the address {address!r} cannot be opened: {error}") from None
    return opened[0], opened[1]
