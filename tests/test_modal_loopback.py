"""The loopback control plane against toy apps: what it claims to imitate of Modal, seen through the real client."""

import textwrap
from pathlib import Path

import pytest

pytest.importorskip("modal_proto")

from tests.modal_loopback import Loopback, kill

pytestmark = pytest.mark.modal_loopback

TOY = """
import os, sys, time
from pathlib import Path
import modal

image = modal.Image.debian_slim(python_version="3.11").uv_pip_install("numpy").env({"GREETING": "good day"})
app = modal.App("toy", image=image)
volume = modal.Volume.from_name("toy-runs", create_if_missing=True, version=2)
RUNS = Path(os.environ.get("PIPPIN_MOUNTS", "/"), "runs")
"""


def write_app(folder: Path, text: str) -> Path:
    path = folder / "toy_app.py"
    path.write_text(TOY + textwrap.dedent(text))
    return path


def test_a_spawned_call_runs_in_a_container_and_its_result_comes_home(tmp_path: Path):
    app = write_app(
        tmp_path,
        """
        @app.function(volumes={"/runs": volume}, timeout=60, retries=2)
        def work(number):
            (RUNS / "a.txt").write_text(f"{os.environ['GREETING']} {number}")
            volume.commit()
            print("working on", number)
            return number + 1

        @app.local_entrypoint()
        def main(number: int):
            print("result", work.spawn(number).get())
        """,
    )
    with Loopback(tmp_path) as cloud:
        done = cloud.run(["modal", "run", app, "--number", "7"])
        assert done.code == 0, done.output
        assert "result 8" in done.output
        assert "working on 7" in done.output
        assert (cloud.volume("toy-runs") / "a.txt").read_text() == "good day 7"


def test_the_server_tries_a_spawned_call_again_and_counts(tmp_path: Path):
    app = write_app(
        tmp_path,
        """
        @app.function(volumes={"/runs": volume}, retries=modal.Retries(max_retries=2, initial_delay=0.0),
                      single_use_containers=True)
        def work():
            seen = len(list(RUNS.iterdir()))
            (RUNS / f"{seen}.txt").write_text("here")
            volume.commit()
            if seen < 2:
                raise RuntimeError(f"trouble {seen}")
            return seen

        @app.local_entrypoint()
        def main():
            print("result", work.spawn().get())
        """,
    )
    with Loopback(tmp_path) as cloud:
        done = cloud.run(["modal", "run", app])
        assert done.code == 0, done.output
        assert "result 2" in done.output
        assert [container.retries for container in cloud.containers] == [0, 1, 2]
        assert [container.attempt for container in cloud.containers] == [1, 2, 3]


def test_an_interrupted_container_hands_its_call_on_and_nothing_is_counted(tmp_path: Path):
    app = write_app(
        tmp_path,
        """
        @app.function(volumes={"/runs": volume}, single_use_containers=True)
        def work():
            volume.reload()
            if (RUNS / "saved.txt").exists():
                return (RUNS / "saved.txt").read_text()
            try:
                print("ready", flush=True)
                time.sleep(60)
            except KeyboardInterrupt:
                (RUNS / "saved.txt").write_text("half done")
                volume.commit()
                raise

        @app.local_entrypoint()
        def main():
            print("result", work.spawn().get())
        """,
    )
    with Loopback(tmp_path) as cloud:
        cloud.when(lambda container: "ready" in container.output, cloud.interrupt)
        done = cloud.run(["modal", "run", app])
        assert "result half done" in done.output
        assert [container.retries for container in cloud.containers] == [0, 0]


def test_a_lost_machine_counts_as_a_failure(tmp_path: Path):
    app = write_app(
        tmp_path,
        """
        @app.function(retries=modal.Retries(max_retries=1, initial_delay=0.0), single_use_containers=True)
        def work():
            print("ready", flush=True)
            time.sleep(60)

        @app.local_entrypoint()
        def main():
            work.spawn().get()
        """,
    )
    with Loopback(tmp_path) as cloud:
        for attempt in (1, 2):
            cloud.when(lambda container, mine=attempt: container.attempt == mine and "ready" in container.output, kill)
        done = cloud.run(["modal", "run", app])
        assert done.code == 1
        assert "ended with exit code -9" in done.output
        assert [container.retries for container in cloud.containers] == [0, 1]
