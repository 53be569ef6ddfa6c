"""Containers of the loopback control plane: the real `modal._container_entrypoint` in a process of this machine.

A container gets a folder of its own with the source files that were mounted, its own copy of every volume and an
environment that has nothing of this machine's but where programs lie; packages installed in editable form are hidden,
so that a file which nobody mounted is missing as it would be. Paths cannot be mounted: `PIPPIN_MOUNTS` names a folder
below which the mount paths lie. Not imitated: files copied into the image, CPUs, memory, GPUs. To change what a
container sees, edit `environment`.
"""

import asyncio
import codecs
import contextlib
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from modal_proto import api_pb2 as pb

from tests.modal_mounts import Mount

MARK = "LOOPBACK_CONTAINER"
"""Environment variable by which all processes of a container are known, whoever adopted them: its folder."""

ONLY_OURS = """import sys

kept = (sys.prefix, sys.base_prefix, {root!r})
sys.path[:] = [path for path in sys.path if path.startswith(kept)]
sys.meta_path[:] = [finder for finder in sys.meta_path if not getattr(finder, "__module__", "").startswith("__edit")]
"""


class Container:
    """One container: what it was given, and what became of it."""

    def __init__(self, identity: str, folder: Path, app_id: str, function_id: str, function: pb.Function) -> None:
        self.identity, self.folder, self.app_id = identity, folder, app_id
        self.function_id, self.function = function_id, function
        """`function` has the options of `with_options` in it."""
        self.attempt = 0
        """Which container of its call this is, from 1; it counts those that were interrupted."""
        self.retries = 0
        """How many retries of the call were counted before it."""
        self.call_id: str | None = None
        """The call that it works on."""
        self.mounts: dict[str, Path] = {}
        """Mount path -> the folder in which this container sees that volume."""
        self.volume_mounts: list[Mount] = []
        self.files: list[str] = []
        """Source files that were mounted, as paths in the container."""
        self.pid = 0
        self.returncode: int | None = None
        self.interrupted = self.timed_out = False
        self.dismissed = False
        """Whether it gets no more work."""
        self.news, self.cancellation = asyncio.Event(), asyncio.Event()
        self.timer: asyncio.TimerHandle | None = None
        self._output: list[str] = []
        self._process: asyncio.subprocess.Process | None = None

    @property
    def output(self) -> str:
        """What it printed so far, both streams as they came."""
        return "".join(self._output)

    @property
    def running(self) -> bool:
        return self._process is not None and self.returncode is None

    @property
    def free(self) -> bool:
        """Whether it can take another call."""
        single = self.function.single_use_containers
        return self.running and self.call_id is None and not self.dismissed and not single

    def processes(self) -> list[int]:
        """Ids of its processes, main one included."""
        return marked(MARK, str(self.folder)) if os.path.isdir("/proc/self") else family(self.pid)

    def descendants(self) -> list[int]:
        """Ids of the processes that its main one started."""
        return [pid for pid in self.processes() if pid != self.pid]

    def environment(self, image: dict[str, str], secrets: dict[str, str], url: str) -> dict[str, str]:
        """All that a process of this container finds in its environment."""
        root, home, temporary, site = (self.folder / name for name in ("root", "home", "tmp", "site"))
        for folder in (root, home, temporary, site):
            folder.mkdir(parents=True, exist_ok=True)
        (site / "sitecustomize.py").write_text(ONLY_OURS.format(root=str(self.folder)))
        ours = {name: os.environ[name] for name in ("PATH", "LANG", "LD_LIBRARY_PATH") if name in os.environ}
        return {
            **ours,
            "HOME": str(home),
            "TMPDIR": str(temporary),
            "PYTHONPATH": f"{root}{os.pathsep}{site}",
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONUNBUFFERED": "1",
            "OPENBLAS_NUM_THREADS": "1",
            "OMP_NUM_THREADS": "1",
            **image,
            **secrets,
            MARK: str(self.folder),
            "PIPPIN_MOUNTS": str(self.folder / "volumes"),
            "MODAL_IS_REMOTE": "1",
            "MODAL_TASK_ID": self.identity,
            "MODAL_IMAGE_ID": self.function.image_id,
            "MODAL_ENVIRONMENT": "main",
            "MODAL_REGION": "loopback",
            "MODAL_SERVER_URL": url,
            "MODAL_CONFIG_PATH": os.devnull,
            "MODAL_CONTAINER_ARGUMENTS_PATH": str(self.folder / "arguments.bin"),
            # By these the server knows who asks, and tells of a cancellation at once rather than after 15 s.
            "MODAL_OVERRIDE_HEADERS": f"x-loopback-container:{self.identity}",
            "MODAL_HEARTBEAT_INTERVAL": "100000",
        }

    async def run(self, environment: dict[str, str], log: Callable[[str, int], None]) -> int:
        """Starts the entrypoint and returns its exit code once nothing of the container is left."""
        self._process = process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "modal._container_entrypoint",
            cwd=self.folder / "root",
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        self.pid = process.pid
        assert process.stdout is not None
        assert process.stderr is not None
        pumps = asyncio.gather(
            self._pump(process.stdout, pb.FILE_DESCRIPTOR_STDOUT, log),
            self._pump(process.stderr, pb.FILE_DESCRIPTOR_STDERR, log),
        )
        # `process.wait()` also waits for the pipes, which a process that was left behind holds open.
        while process.returncode is None:
            await asyncio.sleep(0.01)
        code = process.returncode
        while self.descendants():  # A machine goes with all that runs on it.
            kill_children(self)
            await asyncio.sleep(0.01)
        await pumps
        self.returncode = code
        return code

    async def _pump(self, stream: asyncio.StreamReader, descriptor: int, log: Callable[[str, int], None]) -> None:
        """In pieces, not lines: a bar that is redrawn sends no newline."""
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        while piece := await stream.read(65536):
            text = decoder.decode(piece)
            if text:
                self._output.append(text)
                log(text, descriptor)


def send(pids: list[int], number: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def interrupt(container: Container) -> None:
    """Preemption: the main process is asked to end, and the work goes to another container."""
    container.interrupted = True
    send([container.pid], signal.SIGINT)


def kill(container: Container) -> None:
    """The machine is lost with everything on it."""
    send([container.pid, *container.descendants()], signal.SIGKILL)


def kill_children(container: Container) -> None:
    """What the main process started dies, as for want of memory."""
    send(container.descendants(), signal.SIGKILL)


def marked(name: str, value: str) -> list[int]:
    """Processes that were started with this in their environment. Linux only."""
    wanted, found = f"{name}={value}".encode(), []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                if wanted in Path("/proc", entry, "environ").read_bytes().split(b"\0"):
                    found.append(int(entry))
    return found


def family(pid: int) -> list[int]:
    """A process and those that came from it and still have it above them."""
    table = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    parents = {int(child): int(parent) for child, parent in (line.split() for line in table.splitlines())}
    found = [pid] if pid in parents else []
    for member in found:
        found += [child for child, parent in parents.items() if parent == member]
    return found


def image_environment(commands: list[str]) -> dict[str, str]:
    """What `ENV` lines of an image set."""
    pairs = [shlex.split(command[4:])[0].partition("=") for command in commands if command.startswith("ENV ")]
    return {name: value for name, _, value in pairs if "$" not in value}
