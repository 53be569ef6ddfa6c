"""A volume's durable folder, and the copy of it that one container works on.

What a container writes is durable only after a commit, and what others wrote is seen only after a reload. Both compare
contents with what the container last saw: of two writers of one file the last commit wins, and files that a container
did not touch stay as others left them, like Modal's. Both fail while a process of the container has a file of the mount
open, mapped into memory or as its working folder. To be stricter or more lenient, edit `Mount`.
"""

import contextlib
import hashlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from grpclib.const import Status
from grpclib.exceptions import GRPCError
from modal_proto import api_pb2 as pb

Contents = dict[str, str]
"""Relative path -> what is there, as text that differs when the contents do."""


def scan(folder: Path) -> Contents:
    """What lies in a folder, by content: times of change are too coarse to tell two quick writes apart."""
    found: Contents = {}
    for parent, folders, files in os.walk(folder):
        for name in folders + files:
            path = Path(parent, name)
            with contextlib.suppress(FileNotFoundError):
                found[path.relative_to(folder).as_posix()] = fingerprint(path)
    return found


def fingerprint(path: Path) -> str:
    if path.is_symlink():
        return f"link to {os.readlink(path)}"
    if path.is_dir():
        return "folder"
    return hashlib.sha256(path.read_bytes()).hexdigest()


def changed(before: Contents, after: Contents) -> set[str]:
    """Paths that were added, removed or have other contents."""
    return {path for path in before.keys() | after.keys() if before.get(path) != after.get(path)}


def carry(paths: Iterable[str], source: Path, target: Path) -> None:
    """Makes these paths of `target` what they are in `source`; folders before their files, removals the other way."""
    gone = [path for path in paths if not os.path.lexists(source / path)]
    for path in sorted(gone, reverse=True):
        place = target / path
        if place.is_dir() and not place.is_symlink():
            with contextlib.suppress(OSError):  # Another container put something there.
                place.rmdir()
        else:
            place.unlink(missing_ok=True)
    for path in sorted(set(paths) - set(gone)):
        origin, place = source / path, target / path
        if origin.is_symlink():
            place.unlink(missing_ok=True)
            place.symlink_to(os.readlink(origin))
        elif origin.is_dir():
            place.mkdir(parents=True, exist_ok=True)
        else:
            write_whole(place, origin.read_bytes())


def write_whole(path: Path, content: bytes) -> None:
    """So that no reader, of this machine or another, sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.arriving")
    temporary.write_bytes(content)
    temporary.replace(path)


class Volume:
    """A named volume: what is durable lies in `folder`."""

    def __init__(self, identity: str, name: str, version: Any, folder: Path, created: float) -> None:
        self.identity, self.name, self.version, self.folder, self.created = identity, name, version, folder, created
        folder.mkdir(parents=True)

    def metadata(self) -> pb.VolumeMetadata:
        creation = pb.CreationInfo(created_at=self.created)
        return pb.VolumeMetadata(version=self.version, name=self.name, creation_info=creation)


class Mount:
    """One container's copy of a volume."""

    def __init__(self, volume: Volume, path: str, local: Path, *, read_only: bool = False, sub_path: str = "") -> None:
        self.volume, self.path, self.local, self.read_only = volume, path, local, read_only
        self.durable = volume.folder / sub_path.strip("/")
        self.durable.mkdir(parents=True, exist_ok=True)
        local.mkdir(parents=True)
        self.seen = scan(self.durable)
        """What both sides held when they last met."""
        carry(self.seen, self.durable, local)
        if read_only:
            self._set_writable(False)

    def commit(self) -> None:
        """What this container changed becomes durable."""
        if self.read_only:
            return
        now = scan(self.local)
        own = changed(self.seen, now)
        carry(own, self.local, self.durable)
        self._learn(own, now)

    def reload(self) -> None:
        """What others committed is seen; what this container changed and did not commit stays as it is."""
        if self.read_only:
            self._set_writable(True)
        now, durable = scan(self.local), scan(self.durable)
        others = changed(self.seen, durable) - changed(self.seen, now)
        carry(others, self.durable, self.local)
        self._learn(others, durable)
        if self.read_only:
            self._set_writable(False)

    def _learn(self, paths: set[str], contents: Contents) -> None:
        for path in paths:
            self.seen.pop(path, None)
            if path in contents:
                self.seen[path] = contents[path]

    def written(self) -> set[str]:
        """Paths that were changed although the mount is read-only; nothing stops the superuser from doing that."""
        return changed(self.seen, scan(self.local)) if self.read_only else set()

    def release(self) -> None:
        """The container is gone: its copy may be deleted."""
        if self.read_only:
            self._set_writable(True)

    def _set_writable(self, writable: bool) -> None:
        for parent, _, files in os.walk(self.local):
            os.chmod(parent, 0o755 if writable else 0o555)
            for name in files:
                if not os.path.islink(os.path.join(parent, name)):
                    os.chmod(os.path.join(parent, name), 0o644 if writable else 0o444)

    def refuse_open_files(self, pids: Iterable[int]) -> None:
        """The error that Modal gives when it cannot replace what a process holds."""
        for pid in pids:
            held = held_below(pid, str(self.local.resolve()))
            if held:
                message = "there are open files preventing the operation"
                raise GRPCError(Status.FAILED_PRECONDITION, f"{message}: {held} of process {pid}")


def held_below(pid: int, folder: str) -> str | None:
    """A file below `folder` that a process has open, mapped or as its working folder. Needs Linux; elsewhere: None."""
    process = Path("/proc", str(pid))
    held: list[str] = []
    with contextlib.suppress(OSError):  # The process ends while it is looked at.
        held.append(os.readlink(process / "cwd"))
        for descriptor in os.listdir(process / "fd"):
            with contextlib.suppress(FileNotFoundError):
                held.append(os.readlink(process / "fd" / descriptor))
        maps = (process / "maps").read_text().splitlines()
        held += [parts[5] for parts in (line.split(maxsplit=5) for line in maps) if len(parts) == 6]
    return next((path for path in held if path == folder or path.startswith(folder + "/")), None)
