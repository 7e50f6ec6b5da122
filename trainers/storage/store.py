"""A folder on any file system that pyarrow knows: a local path, a shared disk, s3://, gs://, hdfs://.

Every write is atomic: a reader sees the old file or the new one, never half of one. Stores that are reached over a
network fail now and then: what may pass is tried again. Credentials come from the environment or the machine, as the
store's own tools take them, never from an address: an address is written down.
"""

from __future__ import annotations

import contextlib
import copy
import errno
import functools
import json
import logging
import os
import re
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import parse_qsl, unquote, urlsplit

Value = TypeVar("Value")
if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

_log = logging.getLogger(__name__)

CACHE = "cache"
"""Name of the folder of prepared pictures, next to the runs."""
PATIENCE = 180.0
"""Seconds for which a request that fails is tried again: a store that is restarted is back by then."""
FIRST_PATIENCE = 10.0
"""The same before a run starts, when a person waits: an address may be wrong."""
CONNECT_SECONDS, SILENT_SECONDS = 5.0, 15.0
"""A request fails where no connection stands after so long, or no byte has come for so long."""
CLAIM_SECONDS = 5.0
"""Between claiming a name and giving it to a file pass milliseconds."""
_SCHEMES = ("s3", "gs", "gcs", "hdfs", "abfs", "abfss")
_S3_OPTIONS = ("endpoint_override", "region", "scheme", "force_virtual_addressing", "allow_bucket_creation")
_LASTING = {  # what a store answers that will come again -> in plain words
    r"HTTP status 507|QuotaExceeded|InsufficientStorage|StorageFull": "the store is full",
    r"NO_SUCH_BUCKET": "there is no such bucket; make it first",
    r"ACCESS_DENIED|INVALID_ACCESS_KEY|SIGNATURE|TOKEN|Token|HTTP status 40[13]": (
        "access is denied; on every host, the environment (AWS_ACCESS_KEY_ID, AWS_PROFILE) or the machine's own role "
        "must allow reading, writing, listing and deleting there"
    ),
    r"INVALID_|HTTP status 4(?!08|29)": "",
}


class Store:
    """A folder. `Store("~/trainyard") / "my-run"` is a folder below it. Nothing is created before the first write."""

    def __init__(self, address: str | os.PathLike[str]) -> None:
        """
        Args:
            address: A path or a URI.

        Raises:
            ValueError: A URI cannot be opened, or carries credentials, or lacks a slash; or ~ has no home folder.
        """
        self.address = _plain(os.fspath(address))
        self.local: Path | None = None
        if "://" in self.address:
            self._fs, self._path = _open(self.address)
        else:
            self.local = absolute(self.address)
            self.address = str(self.local)

    def __truediv__(self, name: str) -> Store:
        if "://" in name or name.startswith("/"):  # as pathlib does it
            return Store(name)
        if self.local is not None:
            return Store(self.local / name)
        below = copy.copy(self)  # with the same connection
        folder, mark, query = self.address.partition("?")  # s3://bucket/folder?endpoint_override=...
        below.address = f"{folder.rstrip('/')}/{name}{mark}{query}"
        below._path = f"{self._path.rstrip('/')}/{name}"
        return below

    @property
    def parent(self) -> Store:
        """The folder that this one lies in."""
        if self.local is not None:
            return Store(self.local.parent)
        above = copy.copy(self)
        folder, mark, query = self.address.partition("?")
        above.address = f"{folder.rstrip('/').rpartition('/')[0]}{mark}{query}"
        above._path = self._path.rpartition("/")[0]
        return above

    def __repr__(self) -> str:
        return f"Store({self.address!r})"

    @property
    def name(self) -> str:
        if self.local is not None:
            return self.local.name
        return self.address.partition("?")[0].rstrip("/").rsplit("/", 1)[-1]

    def write(self, name: str, data: bytes, patience: float = PATIENCE) -> None:
        """Put `data` at `name`, atomically.

        Args:
            name: Below this folder.
            data: The whole content.
            patience: Seconds for which a request that fails is tried again, where that may pass.

        Raises:
            OSError: The storage does not take it.
        """
        if self.local is None:

            def put() -> None:
                with self._fs.open_output_stream(f"{self._path}/{name}") as stream:
                    stream.write(data)

            return _persist(put, patience)
        target = self.local / name
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.part")
        try:
            with open(part, "wb") as stream:
                stream.write(data)
                stream.flush()
                _sync(stream.fileno())
            os.replace(part, target)
        except BaseException as error:
            part.unlink(missing_ok=True)
            if isinstance(error, OSError):
                error.filename = error.filename or str(target)  # a full disk names no file
            raise
        return None

    def write_json(self, name: str, value: object, patience: float = PATIENCE) -> None:
        """Put `value` at `name` as JSON. Raises OSError as `write` does, ValueError for what JSON cannot hold."""
        self.write(name, (json.dumps(value, indent=1, allow_nan=False) + "\n").encode(), patience)

    def read(self, name: str, patience: float = PATIENCE) -> bytes:
        """Raises FileNotFoundError; OSError as `write` does."""
        if self.local is not None:
            return (self.local / name).read_bytes()

        def get() -> bytes:
            with self._fs.open_input_file(f"{self._path}/{name}") as stream:
                return bytes(stream.read())

        return _persist(get, patience)

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

        selector = FileSelector(self._path, allow_not_found=True)
        return sorted(info.base_name for info in _persist(lambda: self._fs.get_file_info(selector)))

    def delete(self, name: str, patience: float = PATIENCE) -> None:
        """Remove the file or the folder `name`; nothing happens where there is none. Raises OSError as `write` does."""
        if self.local is not None:
            import shutil

            target = self.local / name
            shutil.rmtree(target, ignore_errors=True) if target.is_dir() else target.unlink(missing_ok=True)
            return
        from pyarrow.fs import FileType

        path = f"{self._path}/{name}"

        def delete() -> None:
            kind = self._fs.get_file_info(path).type
            if kind == FileType.Directory:
                self._fs.delete_dir(path)
            elif kind == FileType.File:
                self._fs.delete_file(path)

        _persist(delete, patience)

    def check_writable(self, instead: str = "give --storage another folder, or set TRAINYARD_STORAGE") -> None:
        """Write, replace, read and remove a small file. Raises ValueError with the cause and what to do instead."""
        probe = f".probe-{uuid.uuid4().hex[:8]}"
        try:
            for content in (b"first", b"probe"):
                self.write(probe, content, FIRST_PATIENCE)
            if self.read(probe, FIRST_PATIENCE) != b"probe":
                raise OSError("what was written there is not what is read back")
            self.delete(probe)
        except OSError as error:
            with contextlib.suppress(OSError):
                self.delete(probe, 0.0)
            raise ValueError(f"the storage {self.address} cannot be written: {explain(error)}; {instead}") from None


def _plain(address: str) -> str:
    """An address, or the path that a file:// address means. Raises ValueError for s3:/bucket, which pathlib makes of
    s3://bucket: it would be a folder here."""
    scheme, colon, rest = address.partition(":")
    if colon and scheme.lower() in _SCHEMES and not rest.startswith("//"):
        raise ValueError(f"{address!r} is no address of a store; give {scheme}://{rest.lstrip('/')}")
    place = urlsplit(address) if address.startswith("file://") else None
    return unquote(place.path) if place is not None and place.netloc in ("", "localhost") else address


def _sync(descriptor: int) -> None:
    """To the disk, where the file system can say when it is there."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP):
            raise


def rename_once(part: Path, target: Path) -> bool:
    """Give a file a name that no file has, atomically: of several processes one succeeds.

    Args:
        part: In the folder of `target`; may be left there too.
        target: The new name.

    Returns:
        Whether this process was the first.

    Raises:
        OSError: The storage does not take it.
    """
    try:
        os.link(part, target)
        return True
    except FileExistsError:
        return False
    except OSError:  # no hard links: exFAT, many FUSE mounts
        pass
    claim, begun = target.with_name(f".{target.name}.claim"), time.monotonic()
    while True:
        try:
            os.close(os.open(claim, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
            break
        except FileExistsError:
            if target.exists() or time.monotonic() - begun > CLAIM_SECONDS:  # its owner was killed
                break
            time.sleep(0.05)
    try:
        if target.exists():
            return False
        os.rename(part, target)
        return True
    finally:
        claim.unlink(missing_ok=True)


def explain(error: OSError) -> str:
    """What went wrong, in plain words: not "[Errno 28]"."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "the disk is full"
    return error.strerror or str(error)


def explain_with_file(error: OSError) -> str:
    """What went wrong, and with which file."""
    return f"{error.filename}: {explain(error)}" if error.filename else explain(error)


def default_storage() -> str:
    """`$TRAINYARD_STORAGE`, else `~/trainyard`. Raises ValueError where there is no home folder."""
    given = os.environ.get("TRAINYARD_STORAGE")
    return given or str(home_folder("give --storage a folder for runs, or set TRAINYARD_STORAGE") / "trainyard")


def home_folder(instead: str) -> Path:
    """The user's. Raises ValueError where a user without account has none, which says what to do instead."""
    try:
        return Path.home()
    except RuntimeError:
        raise ValueError(f"this user has no home folder, and HOME is not set: {instead}") from None


def absolute(path: str | os.PathLike[str]) -> Path:
    """A path that the user gave. Raises ValueError for ~ where there is no such home folder."""
    try:
        return Path(path).expanduser().absolute()
    except RuntimeError:
        raise ValueError(f"there is no home folder for ~ in {os.fspath(path)}; give the whole path") from None


def _persist(action: Callable[[], Value], patience: float = PATIENCE) -> Value:
    """What `action` returns; it is tried again, ever more seldom, while it fails with what may pass.

    Raises OSError in plain words: of what will come again, at once; of the rest, after `patience` seconds.
    """
    begun, pause, warned = time.monotonic(), 0.1, False
    while True:
        try:
            return action()
        except OSError as error:
            if error.errno is not None:  # of this machine: no such file, a full disk
                raise
            for pattern, words in _LASTING.items():
                if re.search(pattern, str(error)):
                    raise OSError(words or str(error)) from None
            spent = time.monotonic() - begun
            if spent + pause > patience:
                raise OSError(f"the store has failed for {patience:.0f} s: {error}") from None
            if spent > FIRST_PATIENCE and not warned:
                warned = True
                _log.warning("the store has failed for %.0f s and is tried for %.0f s: %s", spent, patience, error)
        time.sleep(pause)
        pause = min(2 * pause, 5.0)


def _open(address: str) -> tuple[FileSystem, str]:
    """The file system of a URI, and the path there. Raises ValueError."""
    from pyarrow import ArrowException, fs

    _refuse_credentials(address)
    try:
        if address.startswith("s3://"):
            place = urlsplit(address)
            path = f"{place.netloc}{unquote(place.path)}".rstrip("/")
            return _open_s3(place.netloc, place.query), path
        opened = fs.FileSystem.from_uri(address)
    except (ArrowException, OSError, ValueError) as error:
        raise ValueError(f"the address {address!r} cannot be opened: {error}") from None
    return opened[0], opened[1]


@functools.cache
def _open_s3(bucket: str, query: str) -> FileSystem:
    """pyarrow's own way from a URI leaves time-outs and repetitions to the library, which are too short and few."""
    from pyarrow import fs

    options = dict(parse_qsl(query))
    if unknown := sorted(options.keys() - set(_S3_OPTIONS)):
        raise ValueError(f"there is no option {unknown[0]}; allowed are {', '.join(_S3_OPTIONS)}")
    environment = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
    scheme, _, endpoint = options.get("endpoint_override", environment).rpartition("://")
    region = options.get("region") or os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    return fs.S3FileSystem(
        endpoint_override=endpoint or None,
        scheme=options.get("scheme") or scheme or "https",
        region=region or ("us-east-1" if endpoint else fs.resolve_s3_region(bucket)),
        force_virtual_addressing=options.get("force_virtual_addressing", "").lower() == "true",
        allow_bucket_creation=options.get("allow_bucket_creation", "").lower() == "true",
        connect_timeout=CONNECT_SECONDS,
        request_timeout=SILENT_SECONDS,
        retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=1),  # _persist tries again
        allow_delayed_open=True,  # small files in one request
        background_writes=False,
    )


def _refuse_credentials(address: str) -> None:
    """Addresses stand in run.json and in messages; neither the secret nor the address is repeated here."""
    place = urlsplit(address)
    secret = re.search(r"key|secret|token|password|credential|signature", place.query, re.IGNORECASE)
    user = place.username if place.scheme != "hdfs" else None
    if secret or "@" in unquote(place.query) or user not in (None, "anonymous") or place.password:
        raise ValueError(
            f"a {place.scheme}:// address must not carry credentials, since it is written into run folders; put them "
            "into the environment (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY) or ~/.aws/credentials, on every host"
        )
