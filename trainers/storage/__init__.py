"""Files on a disk or in an object store, and the lock of a run."""
