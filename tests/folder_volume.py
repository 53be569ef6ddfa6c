"""A folder in the place of a `modal.Volume`: the methods that `core/remote_files.py` calls, with their cost counted.

Stricter than the real one where that finds bugs: a batch is placed file by file and may break off in the middle, and a
download may end in the middle of a file. `fail_at` counts operations on files (sent, read, removed) from 1.
"""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple


class Lost(Exception):
    """The connection, at the operation a test asked for."""


class Entry(NamedTuple):
    """As `modal.types.FileEntry`."""

    path: str
    """Relative to the volume, without a slash in front."""
    type: int
    """1: a file, 2: a folder."""
    mtime: int
    size: int


class FolderVolume:
    """A volume whose content lies in `root`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir(parents=True, exist_ok=True)
        self.sent_bytes = self.read_bytes = self.operations = 0
        self.sent: list[str] = []
        self.read: list[str] = []
        """Names of the files sent and read, in order."""
        self.fail_at: int | None = None

    def listdir(self, path: str, *, recursive: bool = False) -> list[Entry]:
        """Entries below a folder; a missing folder is an error."""
        folder = self._local(path)
        if not folder.exists():
            raise FileNotFoundError(path)
        paths = sorted(folder.rglob("*") if recursive else folder.iterdir())
        return [self._entry(path) for path in paths]

    def read_file(self, path: str) -> Iterator[bytes]:
        """The content in two parts; nothing is looked for before the first is asked for."""
        file = self._local(path)
        if not file.is_file():
            raise FileNotFoundError(path)
        self.read.append(path.lstrip("/"))
        content = file.read_bytes()
        half = len(content) // 2
        self.read_bytes += half
        yield content[:half]
        self._count()
        self.read_bytes += len(content) - half
        yield content[half:]

    def remove_file(self, path: str, recursive: bool = False) -> None:
        """A file, or a folder when `recursive`."""
        target = self._local(path)
        assert target != self.root
        if not target.exists():
            raise FileNotFoundError(path)
        self._count()
        if target.is_dir():
            assert recursive, f"{path} is a folder"
            shutil.rmtree(target)
        else:
            target.unlink()

    @contextlib.contextmanager
    def batch_upload(self, force: bool = False) -> Iterator["Batch"]:
        """Files put into the batch are placed when the block ends, none when it raises."""
        batch = Batch()
        yield batch
        for source, path in batch.files:
            target = self._local(path)
            if target.exists() and not force:
                raise FileExistsError(path)
            self._count()
            content = source.read_bytes() if isinstance(source, Path) else source.read()
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
            self.sent_bytes += len(content)
            self.sent.append(path.lstrip("/"))

    def _local(self, path: str) -> Path:
        return self.root / path.lstrip("/")

    def _entry(self, path: Path) -> Entry:
        stat = path.stat()
        kind = 2 if path.is_dir() else 1
        return Entry(path.relative_to(self.root).as_posix(), kind, int(stat.st_mtime), stat.st_size)

    def _count(self) -> None:
        self.operations += 1
        if self.operations == self.fail_at:
            raise Lost(f"operation {self.operations}")


class Batch:
    """What `batch_upload` gives."""

    def __init__(self) -> None:
        self.files: list[tuple[Path | BinaryIO, str]] = []

    def put_file(self, local_file: Path | str | BinaryIO, remote_path: str) -> None:
        """To be placed as `remote_path`."""
        if remote_path.endswith("/"):
            raise ValueError(remote_path)
        self.files.append((Path(local_file) if isinstance(local_file, str) else local_file, remote_path))
