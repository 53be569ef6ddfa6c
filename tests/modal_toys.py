"""Small apps for the tests of the loopback control plane: a preamble, and the file that a test's lines make with it.

To give all of them something more, edit `TOY`.
"""

import textwrap
from pathlib import Path

TOY = """
import os, subprocess, sys, time
from pathlib import Path
import modal

image = modal.Image.debian_slim(python_version="3.11").uv_pip_install("numpy").env({"GREETING": "good day"})
app = modal.App("toy", image=image)
volume = modal.Volume.from_name("toy-runs", create_if_missing=True, version=2)
RUNS = Path(os.environ.get("PIPPIN_MOUNTS", "/"), "runs")
AT_ONCE = modal.Retries(max_retries=1, initial_delay=0.0)
"""

SLEEPER = """
    @app.function(volumes={"/runs": volume}, retries=AT_ONCE, single_use_containers=True)
    def work():
        volume.reload()
        if (RUNS / "saved.txt").exists():
            return (RUNS / "saved.txt").read_text()
        try:
            print("ready", flush=True)
            time.sleep(600)
        except BaseException as stop:
            print("told by", type(stop).__name__, flush=True)
            (RUNS / "saved.txt").write_text("half done")
            volume.commit()
            raise

    @app.local_entrypoint()
    def main():
        call = work.spawn()
        print("call", call.object_id, flush=True)
        print("result", call.get())
"""
"""Works until it is told to end, saves, and goes on from there when it is called again."""


def write_app(folder: Path, *parts: str) -> Path:
    """`toy_app.py` in `folder`."""
    path = folder / "toy_app.py"
    path.write_text(TOY + "".join(map(textwrap.dedent, parts)))
    return path
