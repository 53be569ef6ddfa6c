"""What clients and containers ask of volumes in the loopback control plane; volumes of version 2 only.

Containers commit and reload their copies (`modal_mounts.py`); clients list, upload, download and remove, files by
blocks over HTTP (`modal_blocks.py`). The older version's calls are refused, so that a volume made without `version=2`
is noticed. To answer another call, add a method of its name.
"""

import itertools
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from grpclib.const import Status
from grpclib.exceptions import GRPCError
from modal_proto import api_pb2 as pb

from tests.modal_blocks import Blocks, block_lengths
from tests.modal_containers import Container
from tests.modal_mounts import Mount, Volume, write_whole

ENTRY = pb.FileEntry


class VolumeCalls:
    """What clients and containers ask of volumes. A control plane inherits it."""

    blocks: Blocks
    numbers: "itertools.count[int]"
    volumes: dict[str, Volume]
    folder: Path

    def volume_named(self, name: str, version: Any = pb.VOLUME_FS_VERSION_V2) -> Volume:
        """The volume of that name, made when there is none."""
        for volume in self.volumes.values():
            if volume.name == name:
                return volume
        volume = Volume(f"vo-{next(self.numbers)}", name, version, self.folder / "volumes" / name, time.time())
        self.volumes[volume.identity] = volume
        return volume

    def volume(self, identity: str) -> Volume:
        if identity not in self.volumes:
            raise GRPCError(Status.NOT_FOUND, f"Volume '{identity}' not found")
        return self.volumes[identity]

    async def VolumeGetOrCreate(self, request: pb.VolumeGetOrCreateRequest, _: Container | None):
        exists = any(volume.name == request.deployment_name for volume in self.volumes.values())
        how = request.object_creation_type
        if not exists and how == pb.OBJECT_CREATION_TYPE_UNSPECIFIED:
            where = request.environment_name or "main"
            raise GRPCError(Status.NOT_FOUND, f"Volume '{request.deployment_name}' not found in environment '{where}'")
        if exists and how == pb.OBJECT_CREATION_TYPE_CREATE_FAIL_IF_EXISTS:
            raise GRPCError(Status.ALREADY_EXISTS, f"Volume '{request.deployment_name}' already exists")
        name = request.deployment_name or f"ephemeral-{next(self.numbers)}"
        volume = self.volume_named(name, request.version or pb.VOLUME_FS_VERSION_V1)
        return pb.VolumeGetOrCreateResponse(
            volume_id=volume.identity, version=volume.version, metadata=volume.metadata()
        )

    async def VolumeGetById(self, request: pb.VolumeGetByIdRequest, _: Container | None):
        volume = self.volume(request.volume_id)
        return pb.VolumeGetByIdResponse(volume_id=volume.identity, metadata=volume.metadata())

    async def VolumeList(self, request: pb.VolumeListRequest, _: Container | None):
        before = request.pagination.created_before or float("inf")
        newest = sorted(self.volumes.values(), key=lambda volume: -volume.created)
        items = [
            pb.VolumeListItem(
                label=volume.name, volume_id=volume.identity, created_at=volume.created, metadata=volume.metadata()
            )
            for volume in newest
            if volume.created < before
        ]
        return pb.VolumeListResponse(items=items[: request.pagination.max_objects or None])

    async def VolumeDelete(self, request: pb.VolumeDeleteRequest, _: Container | None):
        shutil.rmtree(self.volume(request.volume_id).folder)
        del self.volumes[request.volume_id]

    def free_mounts(self, volume: Volume, container: Container | None) -> list[Mount]:
        """Where the container has the volume; refused when it has not, or holds files there."""
        if container is None:
            raise GRPCError(Status.FAILED_PRECONDITION, "only a container that mounts the volume can do that")
        mounts = [mount for mount in container.volume_mounts if mount.volume is volume]
        if not mounts:
            raise GRPCError(Status.NOT_FOUND, f"Volume {volume.name} is not mounted in this container")
        pids = container.processes()
        for mount in mounts:
            mount.refuse_open_files(pids)
        return mounts

    async def VolumeCommit(self, request: pb.VolumeCommitRequest, container: Container | None):
        for mount in self.free_mounts(self.volume(request.volume_id), container):
            mount.commit()
        return pb.VolumeCommitResponse(skip_reload=False)

    async def VolumeReload(self, request: pb.VolumeReloadRequest, container: Container | None):
        for mount in self.free_mounts(self.volume(request.volume_id), container):
            mount.reload()

    # From outside.

    def path_on(self, volume_id: str, path: str) -> tuple[Volume, Path]:
        volume = self.volume(volume_id)
        inside = os.path.normpath("/" + path).lstrip("/")
        return volume, volume.folder / inside

    async def VolumeListFiles2(self, request: pb.VolumeListFiles2Request, _: Container | None):
        volume, path = self.path_on(request.volume_id, request.path)
        if not os.path.lexists(path):
            raise GRPCError(Status.NOT_FOUND, f"{request.path}: No such file or directory")
        for entry in sorted(listed(path, request.recursive)):
            yield pb.VolumeListFiles2Response(entries=[describe(entry, volume.folder)])

    async def VolumePutFiles2(self, request: pb.VolumePutFiles2Request, _: Container | None):
        missing = []
        for file_index, file in enumerate(request.files):
            _volume, path = self.path_on(request.volume_id, file.path)
            if path.is_dir():
                raise GRPCError(Status.INVALID_ARGUMENT, f"{file.path}: is a directory")
            if request.disallow_overwrite_existing_files and path.exists():
                raise GRPCError(Status.ALREADY_EXISTS, f"{file.path}: already exists")
            for block_index, block in enumerate(file.blocks):
                if not self.blocks.has(block.contents_sha256, block.put_response):
                    url = self.blocks.put_url(block.contents_sha256)
                    missing.append((file_index, block_index, url))
        response = pb.VolumePutFiles2Response()
        for file_index, block_index, url in missing:
            response.missing_blocks.add(file_index=file_index, block_index=block_index, put_url=url)
        if not missing:
            for file in request.files:
                self.put_file(request.volume_id, file)
        return response

    def put_file(self, volume_id: str, file: pb.VolumePutFiles2Request.File) -> None:
        _, path = self.path_on(volume_id, file.path)
        lengths = block_lengths(0, file.size)
        contents = [self.blocks.keep(block.contents_sha256) for block in file.blocks]
        if len(contents) != len(lengths):
            raise GRPCError(Status.INVALID_ARGUMENT, f"{file.path}: {len(contents)} blocks for {file.size} bytes")
        # Zeros at the end of a block are not sent.
        padded = [content.ljust(length, b"\0") for content, length in zip(contents, lengths, strict=True)]
        write_whole(path, b"".join(padded))

    async def VolumeGetFile2(self, request: pb.VolumeGetFile2Request, _: Container | None):
        _volume, path = self.path_on(request.volume_id, request.path)
        if not path.is_file():
            raise GRPCError(Status.NOT_FOUND, f"{request.path}: No such file or directory")
        content = path.read_bytes()
        start = min(request.start, len(content))
        length = min(request.len or len(content), len(content) - start)
        response = pb.VolumeGetFile2Response(size=len(content), start=start, len=length)
        position = start
        for part in block_lengths(start, length):
            response.get_urls.append(self.blocks.get_url(content[position : position + part]))
            position += part
        return response

    async def VolumeRemoveFile2(self, request: pb.VolumeRemoveFile2Request, _: Container | None):
        _volume, path = self.path_on(request.volume_id, request.path)
        if not os.path.lexists(path):
            raise GRPCError(Status.NOT_FOUND, f"{request.path}: No such file or directory")
        if not path.is_dir() or path.is_symlink():
            path.unlink()
        elif request.recursive:
            shutil.rmtree(path)
        else:
            raise GRPCError(Status.INVALID_ARGUMENT, f"{request.path}: is a directory; use recursive")


def listed(path: Path, recursive: bool) -> Iterator[Path]:
    """What listing a path tells: the file itself, or what lies in the folder."""
    if not path.is_dir():
        yield path
        return
    for entry in path.iterdir():
        yield entry
        if recursive and entry.is_dir() and not entry.is_symlink():
            yield from listed(entry, recursive)


def describe(path: Path, root: Path) -> pb.FileEntry:
    """A path as listings show it: relative to the volume, without a slash in front."""
    facts = path.lstat()
    kind = ENTRY.SYMLINK if path.is_symlink() else ENTRY.DIRECTORY if path.is_dir() else ENTRY.FILE
    size = facts.st_size if kind == ENTRY.FILE else 0
    return ENTRY(path=path.relative_to(root).as_posix(), type=kind, mtime=int(facts.st_mtime), size=size)
