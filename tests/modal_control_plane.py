"""The loopback control plane put together: its state, its servers, and who is watched.

Every call of Modal's protocol gets a method on the gRPC service; those that nobody wrote are refused and told at the
end, so that a new client's needs are seen at once. To answer one, add a method of its name to `modal_objects.py`,
`modal_volumes.py`, `modal_calls.py` or `modal_tasks.py`, or a word to `EMPTY_IS_ENOUGH`.
"""

import asyncio
import inspect
import itertools
import threading
import traceback
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import grpclib.server
from google.protobuf import message_factory
from grpclib.const import Status
from grpclib.exceptions import GRPCError
from modal_proto import api_grpc
from modal_proto import api_pb2 as pb

from tests.modal_apps import App
from tests.modal_blocks import Blocks
from tests.modal_calls import Call
from tests.modal_containers import Container, kill
from tests.modal_mounts import Volume
from tests.modal_tasks import ContainerCalls

POLL_SECONDS = 0.02
METHODS = pb.DESCRIPTOR.services_by_name["ModalClient"].methods_by_name
EMPTY_IS_ENOUGH = {"AppGetLayout", "AppHeartbeat", "AppPublish", "ClientHello", "ContainerHello", "VolumeHeartbeat"}


def answer(name: str, plane: "ControlPlane") -> Callable[[Any, Any], Coroutine[Any, Any, None]]:
    """The server's method for one call: counts it, finds out which container asks, passes it on."""
    empty = message_factory.GetMessageClass(METHODS[name].output_type)
    handler = getattr(ContainerCalls, name, None)

    async def method(_self: Any, stream: Any) -> None:
        request = await stream.recv_message()
        plane.calls.append(name)
        container = plane.container(stream.metadata.get("x-loopback-container"))
        if handler is None and name not in EMPTY_IS_ENOUGH:
            plane.problems.append(f"nothing here answers {name}")
            raise GRPCError(Status.UNIMPLEMENTED, f"the loopback control plane does not answer {name}")
        try:
            if handler is None:
                await stream.send_message(empty())
            elif inspect.isasyncgenfunction(handler):
                async for message in handler(plane, request, container):
                    await stream.send_message(message)
            else:
                await stream.send_message(await handler(plane, request, container) or empty())
        except (GRPCError, asyncio.CancelledError, OSError):
            raise
        except Exception:
            plane.problems.append(traceback.format_exc())
            raise

    return method


class Watch:
    """Something to do once a container is at a certain point."""

    def __init__(self, condition: Callable[[Container], bool], action: Callable[[Container], object]) -> None:
        self.condition, self.action = condition, action
        self.fired = threading.Event()


class ControlPlane(ContainerCalls):
    """State and servers. Everything here happens in the thread of its event loop."""

    def __init__(self, folder: Path, *, background_commits: bool, grace_seconds: float, idle_seconds: float) -> None:
        self.folder = folder
        self.background_commits = background_commits
        self.grace_seconds, self.idle_seconds = grace_seconds, idle_seconds
        self.closing, self.starts = False, 0
        self.watches: list[Watch] = []
        self.apps: dict[str, App] = {}
        self.app_of: dict[str, str] = {}
        self.blocks = Blocks()
        self.bound: dict[str, pb.FunctionOptions] = {}
        self.calls: list[str] = []
        self.calls_by_id: dict[str, Call] = {}
        self.containers: list[Container] = []
        self.files: dict[str, bytes] = {}
        self.functions_by_id: dict[str, pb.Function] = {}
        self.goodbyes: list[str] = []
        self.images: dict[str, pb.Image] = {}
        self.numbers = itertools.count(1)
        self.problems: list[str] = []
        self.secret_values: dict[str, dict[str, str]] = {}
        self.secrets: dict[str, dict[str, str]] = {}
        self.source_mounts: dict[str, list[pb.MountFile]] = {}
        self.url = ""
        self.volumes: dict[str, Volume] = {}
        self._tasks: set[asyncio.Task[Any]] = set()

    def background(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Runs something beside; what goes wrong in it is told at the end."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._over)
        return task

    def _over(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self.problems.append("".join(traceback.format_exception(task.exception())))

    def container(self, identity: str | None) -> Container | None:
        return next((one for one in self.containers if one.identity == identity), None)

    async def serve(self, ready: Callable[[], None], stop: asyncio.Event) -> None:
        """Answers until told to stop; then nothing of what it started is left."""
        runner = await self.blocks.serve()
        server = grpclib.server.Server([service(self)])
        await server.start("127.0.0.1", 0)
        listening: Any = server._server
        self.url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
        watching = asyncio.ensure_future(self._watch())
        ready()
        await stop.wait()
        watching.cancel()
        self.closing = True
        while self.starts:
            for container in self.containers:
                if container.running:
                    kill(container)
            await asyncio.sleep(POLL_SECONDS)
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(watching, *self._tasks, return_exceptions=True)
        server.close()
        await server.wait_closed()
        await runner.cleanup()

    async def _watch(self) -> None:
        while True:
            for container in [one for one in self.containers if one.running]:
                for watch in self.watches:
                    if not watch.fired.is_set():
                        self._try(watch, container)
            await asyncio.sleep(POLL_SECONDS)

    def _try(self, watch: Watch, container: Container) -> None:
        try:
            if watch.condition(container):
                watch.fired.set()
                watch.action(container)
        except Exception:
            watch.fired.set()
            self.problems.append(traceback.format_exc())


def service(plane: ControlPlane) -> Any:
    """The gRPC service over a control plane, with a method for every call of the protocol."""
    methods = {name: answer(name, plane) for name in METHODS}
    return type("Service", (api_grpc.ModalClientBase,), methods)()
