"""What is noted of a call, and when it counts as over; the journeys themselves are in test_modal_modal_*.py."""

import json
from pathlib import Path
from typing import Any

import pytest

from core.remote import LAUNCH, Attempt, Order, attempt_file, write_attempt
from core.remote_files import RemoteFolder, remote_state
from core.remote_journey import has_ended, make_call
from core.remote_launch import Launch, parse
from tests.folder_volume import FolderVolume
from tests.tiny_run import tiny_config
from utils.gpus import find_gpu

ORDER = Order("tiny", "runs/tiny", "", "d", None, "T4", "i", 1, None, 60.0, 30.0, 0)


class Function:
    """Stands for a modal.Function; it looks at what is noted when it is called."""

    def __init__(self, volume: FolderVolume, error: Exception | None) -> None:
        self.volume, self.error, self.object_id = volume, error, "fc-1"
        self.noted: dict[str, Any] = {}

    def spawn(self, order: dict[str, Any]) -> "Function":
        assert order["name"] == "tiny"
        self.noted = json.loads(RemoteFolder(self.volume, "tiny").read(LAUNCH) or b"{}")
        if self.error is not None:
            raise self.error
        return self


def launched(folder: Path) -> Launch:
    return Launch(parse(["--config", "x.yaml"]), False, find_gpu("T4"), tiny_config(folder), None, 20)


def test_a_call_is_noted_before_it_is_made_and_after(volume: FolderVolume, tmp_path: Path) -> None:
    function = Function(volume, None)
    call = make_call(function, volume, launched(tmp_path), ORDER, "ap-1")
    assert call is function
    assert (function.noted["call_id"], function.noted["app_id"]) == (None, "ap-1")
    noted = remote_state(volume, "tiny").launch or {}
    assert (noted["call_id"], noted["attempts_before"], noted["total_steps"]) == ("fc-1", 1, 20)


def test_a_call_that_could_not_be_made_leaves_no_note(volume: FolderVolume, tmp_path: Path) -> None:
    with pytest.raises(ConnectionError):
        make_call(Function(volume, ConnectionError("gone")), volume, launched(tmp_path), ORDER, "ap-1")
    assert remote_state(volume, "tiny").launch is None


def test_only_attempts_of_this_call_say_how_it_ended(volume: FolderVolume) -> None:
    run = RemoteFolder(volume, "tiny")
    earlier = Attempt(1, "T4", 1.0, 2.0, 2.0, "stopped")
    run.write(attempt_file(1), write_attempt(earlier).encode())
    assert has_ended(volume, ORDER, 0.05) is None, "that one belongs to the launch before"
    run.write(attempt_file(2), write_attempt(Attempt(2, "T4", 3.0, 4.0, 4.0, "crashed")).encode())
    assert has_ended(volume, ORDER, 5.0) == "crashed"
