"""A folder written here, and uploaded to an object store by a thread."""

from __future__ import annotations

import tempfile
import threading
import time
from pathlib import Path

from trainers.storage.store import Store

UPLOAD_SECONDS = 10.0
"""A file that has changed is uploaded after so long; later where uploading takes more than a tenth of that."""


class Mirror:
    """A folder on this machine whose files a thread uploads, whole, some seconds after they have changed.

    Files that grow (metrics, TensorBoard's) cannot be appended to in an object store, and whoever writes them does not
    wait for a network. Names that begin with a dot stay here.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self._scratch = tempfile.TemporaryDirectory(prefix="trainyard-")
        self.folder = Store(self._scratch.name)
        self._seen: dict[Path, tuple[int, int]] = {}
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._error: OSError | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raises OSError where the store did not take a file."""
        if self._error is not None:
            raise self._error

    def flush(self) -> None:
        """Until everything is uploaded. Raises OSError."""
        root = Path(self._scratch.name)
        with self._lock:
            for path in sorted(root.rglob("[!.]*")):
                stat = path.stat()
                stamp = stat.st_mtime_ns, stat.st_size
                if path.is_file() and self._seen.get(path) != stamp:
                    self.store.write(path.relative_to(root).as_posix(), path.read_bytes())
                    self._seen[path] = stamp

    def close(self) -> None:
        """End the thread and remove the folder, uploaded or not."""
        self._over.set()
        self._thread.join()
        self._scratch.cleanup()

    def _run(self) -> None:
        pause = UPLOAD_SECONDS
        while not self._over.wait(pause):
            begun = time.monotonic()
            try:
                self.flush()
            except OSError as error:
                self._error = error
                return
            pause = max(UPLOAD_SECONDS, 10 * (time.monotonic() - begun))
