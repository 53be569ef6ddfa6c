"""A person's folder with a tiny run, and `modal run` on it against the stand-in, for the tests of remote runs."""

import contextlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from core.config import Config, load
from core.remote import RUNS_VOLUME, Attempt, attempts_in, newest_step
from core.remote_launch import image_key
from tests.modal_loopback import Container, Finished, Loopback
from tests.tiny_run import interrupt_after, merge, quiet_train, tiny_values, write_corpus
from utils.yaml_file import write_yaml

REPOSITORY = Path(__file__).resolve().parents[1]
DEPLOY, CLIENT = REPOSITORY / "modal" / "modal_deploy.py", REPOSITORY / "modal" / "modal_client.py"
GPU = "A100-80GB"
NEEDS_THE_STAND_IN = [
    pytest.mark.modal_loopback,
    pytest.mark.skipif(sys.platform != "linux", reason="the stand-in's containers need /proc"),
]
MODAL = Path(sys.executable).with_name("modal")


class Home:
    """A folder with a corpus and a config, from which commands are started."""

    def __init__(self, folder: Path, **changes: Any) -> None:
        self.folder = folder
        folder.mkdir(parents=True)
        write_corpus(folder / "corpus.jsonl")
        here = {
            "out_dir": "runs",
            "data": {"sources": [{"type": "jsonl", "path": "corpus.jsonl"}], "cache_dir": "cache"},
            "training": {"duration": "120 steps"},
            "evaluation": {"every": "40 steps"},
        }
        values = merge(merge(tiny_values(folder), here), changes)
        self.name: str = values["name"]
        (folder / "c.yaml").write_text(write_yaml(values))

    @property
    def run(self) -> Path:
        """The run folder here."""
        return self.folder / "runs" / self.name

    def config(self, *overrides: str) -> Config:
        """The config; its paths are relative to the folder."""
        return load(self.folder / "c.yaml", overrides)

    def train(self, *overrides: str, **flags: bool) -> Path:
        """The same run here, in this process."""
        with contextlib.chdir(self.folder):
            quiet_train(self.config(*overrides), **flags)
        return self.run.with_name(self.config(*overrides).name)

    def train_until(self, step: int) -> None:
        """As far as that, and as if Ctrl-C had been pressed."""
        with contextlib.chdir(self.folder):
            interrupt_after(self.config(), step)


def stayed(folder: Path, **changes: Any) -> Path:
    """The run that never left home: what every other one is compared with."""
    return Home(folder, **changes).train()


def knows_the_image(cloud: Loopback) -> None:
    """Let the cloud have tested the image before, which takes two seconds."""
    passed = cloud.volume(RUNS_VOLUME) / ".smoke" / f"{image_key('12')}-{GPU}.json"
    passed.parent.mkdir(exist_ok=True)
    passed.write_text("{}")


def deploy(home: Home, *arguments: str, detach: bool = False) -> list[str]:
    """The command line of `modal run`."""
    flags = ["--detach"] if detach else []
    given = ["--config", "c.yaml", "--gpu", GPU, "--sync-seconds", "0.05", *arguments]
    return [str(MODAL), "run", *flags, str(DEPLOY), *given]


def launch(cloud: Loopback, home: Home, *arguments: str, new_image: bool = False, **options: Any) -> Finished:
    """`modal run` to its end; a new image is tested before it trains."""
    if not new_image:
        knows_the_image(cloud)
    return cloud.run(deploy(home, *arguments), cwd=home.folder, **options)


def client(cloud: Loopback, home: Home, *arguments: str) -> Finished:
    """`python modal/modal_client.py` to its end."""
    return cloud.run([sys.executable, str(CLIENT), *arguments], cwd=home.folder)


def there(cloud: Loopback, home: Home) -> Path:
    """The run's folder on the volume."""
    return cloud.volume(RUNS_VOLUME) / home.name


def attempts(cloud: Loopback, home: Home) -> list[Attempt]:
    """What became of each attempt."""
    return attempts_in(there(cloud, home))


def saved(cloud: Loopback, home: Home, step: int, attempt: int = 1) -> Callable[[Container], bool]:
    """Holds once the volume has a checkpoint of `step` or a later one, in that attempt."""
    return lambda container: container.attempt == attempt and (newest_step(there(cloud, home)) or -1) >= step
