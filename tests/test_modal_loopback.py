"""The loopback control plane against toy apps: how it runs, repeats and ends calls, as the real client sees it."""

import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.modal_containers import Container
from tests.modal_loopback import Loopback, kill, kill_children
from tests.modal_toys import SLEEPER, write_app

# Slow: what it tests helps the tests of remote runs, which notice most of what would break.
pytestmark = [pytest.mark.modal_loopback, pytest.mark.slow]

READ_LATER = """
import sys, modal
call = modal.FunctionCall.from_id(sys.argv[1])
try:
    print("later:", call.get(timeout=float(sys.argv[2])))
except Exception as trouble:
    print("later:", type(trouble).__name__, trouble)
"""


def ready(attempt: int = 1) -> Callable[[Container], bool]:
    return lambda container: container.attempt == attempt and "ready" in container.output


def call_id(output: str) -> str:
    return next(line.split()[1] for line in output.splitlines() if line.startswith("call "))


def test_a_call_runs_in_a_container_with_what_was_declared_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Among what is hidden: this checkout, which its editable install would put on every path."""
    app = write_app(
        tmp_path,
        """
        token = modal.Secret.from_name("hub", required_keys=["TOKEN"])

        @app.function(secrets=[token], timeout=60, retries=2, gpu="T4", cpu=2)
        def work(number):
            print("working on", number, os.environ["GREETING"], os.environ["TOKEN"], "SHELL_SECRET" in os.environ)
            try:
                import core
            except ModuleNotFoundError as missing:
                print("no module", missing.name)
            return len(number)

        @app.local_entrypoint()
        def main(size: int):
            here = work.with_options(gpu="A100-80GB", timeout=7, region="eu", memory=99)
            print("result", here.spawn("x" * size).get())
        """,
    )
    monkeypatch.setenv("SHELL_SECRET", "1")
    with Loopback(tmp_path) as cloud:
        cloud.secrets["hub"] = {"TOKEN": "t0ken"}
        done = cloud.run(["modal", "run", app, "--size", "20000"])
        assert done.code == 0, done.output
        # More than 8 KiB travel as a blob.
        assert "result 20000" in done.output
        assert cloud.count("BlobCreate") == 1
        (container,) = cloud.containers
        assert container.output.split("x" * 20000)[1] == " good day t0ken False\nno module core\n"
        assert container.output in done.output
        assert [Path(file).name for file in container.files] == ["toy_app.py"]
        declared, run = cloud.functions["work"], container.function
        assert (declared.resources.gpu_config.gpu_type, declared.timeout_secs) == ("T4", 60)
        assert (run.resources.gpu_config.gpu_type, run.timeout_secs) == ("A100-80GB", 7)
        assert (run.resources.milli_cpu, run.resources.memory_mb) == (2000, 99)
        assert (run.retry_policy.retries, list(run.scheduler_placement.regions)) == (2, ["eu"])
        assert cloud.options[0].timeout_secs == 7
        assert any("uv pip install" in line and "numpy" in line for line in cloud.image_lines(run))


def test_an_unknown_secret_or_an_unanswered_call_is_an_error(tmp_path: Path):
    app = write_app(
        tmp_path,
        """
        @app.function(secrets=[modal.Secret.from_name("nowhere")])
        def work(): pass

        @app.local_entrypoint()
        def main(): work.remote()
        """,
    )
    with Loopback(tmp_path) as cloud:
        done = cloud.run(["modal", "run", app])
        assert done.code == 1
        assert "Secret 'nowhere' not found" in done.output
        assert cloud.containers == []
        assert cloud.problems == []
        assert cloud.run(["python", "-c", "import modal; modal.Queue.from_name('q').hydrate()"]).code == 1
        assert cloud.problems == ["nothing here answers QueueGetOrCreate"]
        cloud.problems.clear()


@pytest.mark.parametrize("how", ["remote()", "spawn().get()"])
def test_a_failure_is_tried_again_by_whoever_has_to_and_counted(tmp_path: Path, how: str):
    app = write_app(
        tmp_path,
        f"""
        @app.function(volumes={{"/runs": volume}}, retries=AT_ONCE, single_use_containers=True)
        def work():
            seen = len(list(RUNS.iterdir()))
            (RUNS / str(seen)).write_text("here")
            volume.commit()
            raise RuntimeError(f"trouble {{seen}}")

        @app.local_entrypoint()
        def main():
            work.{how}
        """,
    )
    with Loopback(tmp_path) as cloud:
        done = cloud.run(["modal", "run", app])
        assert done.code == 1
        assert "RuntimeError: trouble 1" in done.output
        assert [container.retries for container in cloud.containers] == [0, 1]
        assert cloud.count("FunctionRetryInputs") == (how == "remote()")


def test_a_container_for_single_use_takes_one_call_others_take_the_next(tmp_path: Path):
    app = write_app(
        tmp_path,
        """
        @app.function(single_use_containers=True)
        def once(): return os.getpid()

        @app.function()
        def often(): return os.getpid()

        @app.local_entrypoint()
        def main():
            print("once", once.remote() == once.remote(), "often", often.remote() == often.remote())
        """,
    )
    with Loopback(tmp_path, idle_seconds=100) as cloud:
        done = cloud.run(["modal", "run", app])
        assert "once False often True" in done.output
        assert [container.function.single_use_containers for container in cloud.containers] == [True, True, False]


def test_an_interrupted_container_hands_its_call_on_and_nothing_is_counted(tmp_path: Path):
    app = write_app(tmp_path, SLEEPER)
    with Loopback(tmp_path) as cloud:
        cloud.when(ready(), cloud.interrupt)
        done = cloud.run(["modal", "run", app])
        assert "result half done" in done.output
        first, second = cloud.containers
        assert (first.returncode, first.attempt, first.retries) == (0, 1, 0)
        assert (second.attempt, second.retries) == (2, 0)
        # The interrupt may come before the end of a line does.
        assert "".join(first.output.split()) == "readytoldbyKeyboardInterrupt"


def test_an_interrupted_container_that_does_not_end_is_made_to(tmp_path: Path):
    app = write_app(
        tmp_path,
        """
        @app.function(volumes={"/runs": volume}, single_use_containers=True)
        def work():
            if (RUNS / "started.txt").exists():
                return "second"
            (RUNS / "started.txt").touch()
            volume.commit()
            import signal
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            print("ready", flush=True)
            time.sleep(600)

        @app.local_entrypoint()
        def main(): print("result", work.remote())
        """,
    )
    with Loopback(tmp_path, grace_seconds=0.3) as cloud:
        cloud.when(ready(), cloud.interrupt)
        assert "result second" in cloud.run(["modal", "run", app]).output
        assert [container.returncode for container in cloud.containers] == [-signal.SIGKILL, 0]


@pytest.mark.parametrize("lost", [True, False])
def test_a_lost_machine_or_a_child_that_dies_counts_as_a_failure(tmp_path: Path, lost: bool):
    app = write_app(
        tmp_path,
        """
        @app.function(retries=AT_ONCE, single_use_containers=True)
        def work():
            child = subprocess.Popen([sys.executable, "-c", "print('ready', flush=True); import time; time.sleep(600)"])
            raise RuntimeError(f"the child ended with {child.wait()}")

        @app.local_entrypoint()
        def main(): work.spawn().get()
        """,
    )
    seen: list[int] = []
    with Loopback(tmp_path) as cloud:
        for attempt in (1, 2):
            cloud.when(ready(attempt), lambda container: seen.extend(container.descendants()))
            cloud.when(ready(attempt), kill if lost else kill_children)
        done = cloud.run(["modal", "run", app])
        assert done.code == 1
        assert ("ended with exit code -9" if lost else "the child ended with -9") in done.output
        assert [container.retries for container in cloud.containers] == [0, 1]
    assert len(seen) == 2
    assert not any(alive(pid) for pid in seen)


def alive(pid: int) -> bool:
    """Whether it runs; one that nobody took leave of does not."""
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True).stdout
    return bool(state.strip()) and not state.startswith("Z")


def test_a_timeout_kills_and_counts(tmp_path: Path):
    app = write_app(tmp_path, SLEEPER.replace("retries=AT_ONCE", "retries=AT_ONCE, timeout=1"))
    with Loopback(tmp_path) as cloud:
        done = cloud.run(["modal", "run", app])
        assert done.code == 1
        assert "FunctionTimeoutError" in done.output
        assert "hit its timeout of 1s" in done.output
        # Killed, not asked: nothing could be saved.
        assert [container.output for container in cloud.containers] == ["ready\n", "ready\n"]
        assert not (cloud.volume("toy-runs") / "saved.txt").exists()


def test_a_cancelled_call_is_told_so_and_not_tried_again(tmp_path: Path):
    app = write_app(tmp_path, SLEEPER)
    with Loopback(tmp_path) as cloud:
        client = cloud.start(["modal", "run", app])
        client.wait_for("ready")
        cancel = f"import modal; modal.FunctionCall.from_id({call_id(client.output)!r}).cancel()"
        assert cloud.run(["python", "-c", cancel]).code == 0
        done = client.wait()
        assert done.code == 1
        assert "RemoteError: the call was cancelled" in done.output
        (container,) = cloud.containers
        assert "told by InputCancellation" in container.output
        assert (cloud.volume("toy-runs") / "saved.txt").read_text() == "half done"


def test_a_client_that_leaves_ends_its_app(tmp_path: Path):
    app = write_app(tmp_path, SLEEPER)
    with Loopback(tmp_path) as cloud:
        client = cloud.start(["modal", "run", app], terminal=True)
        client.wait_for("ready")
        client.interrupt()
        done = client.wait()
        assert "This will terminate your Modal app" in done.output
        (container,) = cloud.containers
        assert container.returncode == 0
        assert "told by KeyboardInterrupt" in container.output
        assert (cloud.volume("toy-runs") / "saved.txt").exists()


@pytest.mark.parametrize("dies", [True, False])
def test_a_detached_app_goes_on_and_its_result_can_be_fetched_later(tmp_path: Path, dies: bool):
    app = write_app(tmp_path, SLEEPER)
    (tmp_path / "later.py").write_text(READ_LATER)
    with Loopback(tmp_path) as cloud:
        client = cloud.start(["modal", "run", "--detach", app])
        client.wait_for("ready")
        (client.kill if dies else client.interrupt)()
        call = call_id(client.wait().output)
        assert cloud.count("AppClientDisconnect") == (not dies)
        (container,) = cloud.containers
        assert "later: TimeoutError" in cloud.run(["python", tmp_path / "later.py", call, "0"]).output
        assert container.running
        cloud.interrupt(container)
        assert "later: half done" in cloud.run(["python", tmp_path / "later.py", call, "60"]).output
        assert len(cloud.containers) == 2


def test_the_command_line_lists_shows_and_stops_a_detached_app(tmp_path: Path):
    app = write_app(tmp_path, SLEEPER)
    with Loopback(tmp_path) as cloud:
        client = cloud.start(["modal", "run", "--detach", app])
        client.wait_for("ready")
        client.interrupt()
        client.wait()
        (container,) = cloud.containers
        assert "ephemeral (detached)" in cloud.run(["modal", "app", "list"]).output
        assert "ready" in cloud.run(["modal", "app", "logs", container.app_id]).output
        assert cloud.run(["modal", "app", "stop", "--yes", container.app_id]).code == 0
        follow = cloud.run(["modal", "app", "logs", "-f", container.app_id])
        assert "told by KeyboardInterrupt" in follow.output
        assert container.returncode == 0


def test_an_import_that_fails_in_the_container_fails_the_call_at_once(tmp_path: Path):
    (tmp_path / "beside.py").write_text("")
    app = write_app(
        tmp_path,
        """
        import beside

        @app.function(retries=AT_ONCE)
        def work(): pass

        @app.local_entrypoint()
        def main(): work.spawn().get()
        """,
    )
    with Loopback(tmp_path) as cloud:
        done = cloud.run(["modal", "run", app])
        assert done.code == 1
        assert "No module named 'beside'" in done.output
        assert len(cloud.containers) == 1


def test_nothing_outlives_the_block_and_a_watch_that_saw_nothing_is_told(tmp_path: Path):
    app = write_app(tmp_path, SLEEPER)
    cloud = Loopback(tmp_path)
    cloud.__enter__()
    cloud.when(lambda container: False, kill)
    client = cloud.start(["modal", "run", app])
    client.wait_for("ready")
    with pytest.raises(AssertionError, match="1 watches saw nothing"):
        cloud.__exit__(None, None, None)
    assert client.process.returncode == -signal.SIGKILL
    assert [container.returncode for container in cloud.containers] == [-signal.SIGKILL]
