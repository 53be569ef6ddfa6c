"""Flushing files to the disk, for whoever publishes by renaming: a name must not outlive a power cut that its content
does not. macOS answers `fsync` once the bytes are in the drive's cache, so there F_FULLFSYNC is asked for instead.
To make writes cheaper and less safe, edit `sync`.
"""

import fcntl
import os
from pathlib import Path


def sync(path: Path) -> None:
    """Flush a file or a folder to the disk; on macOS, past the drive's cache too. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        full_sync = getattr(fcntl, "F_FULLFSYNC", None)
        if full_sync is not None and path.is_file():
            fcntl.fcntl(descriptor, full_sync)
        else:
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
