"""A stand-in for Modal's control plane on this machine, for the unmodified client and the real container entrypoint.

No account, no network: servers on 127.0.0.1 answer the calls that the pinned client makes, and functions run in
processes of this machine. What a test wants to know or do is on `Loopback`; it lives in a thread of its own. It proves
nothing about GPUs, gVisor, billing or scheduling. The protocol is private: when a new client makes a call more, the
test fails and names it (`modal_control_plane.py`).
"""

import asyncio
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from modal_proto import api_pb2 as pb

from tests.modal_clients import PATIENCE_SECONDS, Client, Finished, start_client
from tests.modal_containers import Container, kill, kill_children
from tests.modal_control_plane import ControlPlane, Watch

__all__ = ["Container", "Finished", "Loopback", "kill", "kill_children"]


class Loopback:
    """`with Loopback(folder) as cloud:` serves until the block ends, then kills what it started.

    What went wrong unseen fails the block at its end: a call nobody answers, an error in a handler, a write to a
    read-only mount, a `when` that never came. Without `background_commits` only an explicit commit is durable; with it
    containers commit at their end, as the entrypoint does. A container that was asked to end has `grace_seconds`; one
    that may serve several calls waits `idle_seconds` for the next.
    """

    def __init__(
        self,
        folder: Path,
        *,
        background_commits: bool = False,
        grace_seconds: float = 30.0,
        idle_seconds: float = 5.0,
    ) -> None:
        self.folder = folder.resolve() / "cloud"
        self.folder.mkdir(parents=True)
        self._plane = ControlPlane(
            self.folder, background_commits=background_commits, grace_seconds=grace_seconds, idle_seconds=idle_seconds
        )
        self._clients: list[Client] = []
        self._ready, self._loop, self._stop = threading.Event(), asyncio.new_event_loop(), asyncio.Event()
        self._thread = threading.Thread(target=self._serve, name="loopback", daemon=True)

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._plane.serve(self._ready.set, self._stop))
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        finally:
            self._loop.close()
            self._ready.set()

    def __enter__(self) -> Self:
        self._thread.start()
        self._ready.wait(PATIENCE_SECONDS)
        assert self.url, "the control plane did not start"
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        for client in self._clients:
            client.close()
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(PATIENCE_SECONDS)
        never = sum(not watch.fired.is_set() for watch in self._plane.watches)
        problems = self.problems + [f"{never} watches saw nothing"] * (never > 0)
        if kind is None:
            assert not problems, "\n".join([*problems, *(container.output for container in self.containers)])

    # Clients.

    @property
    def url(self) -> str:
        return self._plane.url

    @property
    def env(self) -> dict[str, str]:
        """The environment of a program that is to reach this control plane."""
        ours = {name: value for name, value in os.environ.items() if not name.startswith("MODAL_")}
        return ours | {
            "MODAL_SERVER_URL": self.url,
            "MODAL_TOKEN_ID": "ak-loopback",
            "MODAL_TOKEN_SECRET": "as-loopback",
            "MODAL_CONFIG_PATH": str(self.folder / "no-settings.toml"),
            "TERM": "dumb",
            "NO_COLOR": "1",
            "COLUMNS": "160",
            "PYTHONUNBUFFERED": "1",
        }

    def start(
        self,
        command: Sequence[str | Path],
        *,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        terminal: bool = False,
    ) -> Client:
        """Starts a program against this control plane; it is killed when the block ends."""
        environment = self.env | dict(env or {})
        if terminal:
            environment |= {"TERM": "xterm"}
        client = start_client(command, cwd or self.folder, environment, terminal=terminal)
        self._clients.append(client)
        return client

    def run(
        self,
        command: Sequence[str | Path],
        *,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        timeout: float = PATIENCE_SECONDS,
        terminal: bool = False,
    ) -> Finished:
        """Runs a program to its end."""
        return self.start(command, cwd=cwd, env=env, terminal=terminal).wait(timeout)

    # What is there.

    def volume(self, name: str) -> Path:
        """The durable contents of a volume, which is made when there is none."""
        return self._plane.volume_named(name).folder

    @property
    def secrets(self) -> dict[str, dict[str, str]]:
        """Name -> what the secret puts into a container's environment. Others are not found."""
        return self._plane.secrets

    @property
    def containers(self) -> list[Container]:
        """In the order in which they were started, those that ended included."""
        return self._plane.containers

    # What was asked.

    @property
    def problems(self) -> list[str]:
        """What fails the block at its end; a test that means it takes it out."""
        return self._plane.problems

    @property
    def calls(self) -> list[str]:
        """Names of the protocol's calls, in order."""
        return self._plane.calls

    def count(self, name: str) -> int:
        """How often a call of the protocol was made."""
        return self.calls.count(name)

    @property
    def goodbyes(self) -> list[str]:
        """Why each client left, as it told it: ENTRYPOINT_COMPLETED, LOCAL_EXCEPTION and so on."""
        return self._plane.goodbyes

    @property
    def functions(self) -> dict[str, pb.Function]:
        """By name, as the app's file declares them; a container's `function` has the options in it."""
        plain = (function for key, function in self._plane.functions_by_id.items() if key not in self._plane.bound)
        return {function.function_name: function for function in plain}

    @property
    def options(self) -> list[pb.FunctionOptions]:
        """Of every `with_options` that was called, in order."""
        return list(self._plane.bound.values())

    @property
    def images(self) -> dict[str, pb.Image]:
        """Every image by its id, bases included."""
        return self._plane.images

    def image_lines(self, function: pb.Function) -> list[str]:
        """The whole recipe of a function's image."""
        return self._plane.image_lines(function.image_id)

    @property
    def uploaded_bytes(self) -> int:
        """What clients sent to volumes, zeros at the ends of blocks left out."""
        return sum(map(len, self._plane.blocks.uploaded))

    @property
    def downloaded_bytes(self) -> int:
        """What clients fetched from volumes."""
        return self._plane.blocks.downloaded_bytes

    # What is done to containers.

    def when(self, condition: Callable[[Container], bool], action: Callable[[Container], object]) -> threading.Event:
        """Does `action` once, to the first running container for which `condition` holds; the event: it did."""
        watch = Watch(condition, action)
        self._plane.watches.append(watch)
        return watch.fired

    def interrupt(self, container: Container) -> None:
        """Preemption: SIGINT to the main process, SIGKILL to all after the grace period, then another container."""
        self._loop.call_soon_threadsafe(self._plane.preempt, container)
