"""A run goes to the volume and back bit for bit, is refused where something would be lost, and survives any break."""

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from core.checkpoint import put_back
from core.remote_transfer import Which, folder_here, pull_run, push_run
from core.run import acquire_lock
from tests.folder_volume import FolderVolume, Lost
from tests.prepared_data import silent
from tests.travelling_runs import pointed, resumed, rows, steps_of, tree, write_run
from utils.errors import CheckpointError

Transfer = Callable[..., int | None]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home" / "run"


def test_a_run_goes_there_and_back_bit_for_bit(volume: FolderVolume, home: Path, there: Path, tmp_path: Path) -> None:
    write_run(home, 10, 20, 30, best=10)
    (home / "plots").mkdir()
    (home / "plots" / "loss.png").write_bytes(b"png")
    (home / "notes.txt").write_text("of a person")
    assert push_run(volume, home, "all", silent) == 30
    (there / ".remote").mkdir()
    (there / ".remote" / "launch.json").write_text("{}")
    assert tree(there) == tree(home)
    assert not (there / "notes.txt").exists()
    assert not (there / "lock").exists()
    other = tmp_path / "other" / "run"
    assert pull_run(volume, other, "all", silent) == 30
    assert tree(other) == tree(home)
    assert sorted(path.name for path in other.iterdir() if path.name.startswith(".")) == []
    assert sorted(path.name for path in (other / "checkpoints").iterdir()) == [
        "BEST", "LATEST", "step_00000010", "step_00000020", "step_00000030"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("which", "steps", "pointers"),
    [
        ("last", [30], ("step_00000030", "")),
        ("best", [10], ("step_00000010", "step_00000010")),
        ("all", [10, 20, 30], ("step_00000030", "step_00000010")),
        ("none", [], ("", "")),
    ],
)
@pytest.mark.parametrize("transfer", [push_run, pull_run])
def test_what_was_asked_for_travels_and_the_pointers_are_right(
    transfer: Transfer, which: Which, steps: list[int], pointers: tuple[str, str],
    volume: FolderVolume, home: Path, there: Path,
) -> None:  # fmt: skip
    source, target = (home, there) if transfer is push_run else (there, home)
    write_run(source, 10, 20, 30, best=10)
    news: list[str] = []
    assert transfer(volume, home, which, news.append) == max(steps, default=None)
    assert steps_of(target) == steps
    assert pointed(target) == pointers
    assert rows(target) == rows(source)
    stays = [line for line in news if line.startswith("the best checkpoint, step_00000010, is not")]
    assert len(stays) == (which in ("last", "none"))


@pytest.mark.parametrize("transfer", [push_run, pull_run])
def test_nothing_is_carried_twice(transfer: Transfer, volume: FolderVolume, home: Path, there: Path) -> None:
    source, target = (home, there) if transfer is push_run else (there, home)
    write_run(source, 10, 20, best=10)
    transfer(volume, home, "all", silent)
    write_run(source, 30)
    volume.sent, volume.read, news = [], [], []
    transfer(volume, home, "all", news.append)
    assert tree(target).items() >= tree(source).items()
    assert [line for line in news if "already" in line] == [
        f"step_000000{step}: already {'on the volume' if target == there else 'here'}" for step in (10, 20)
    ]
    carried = volume.sent if transfer is push_run else volume.read
    whole = {name.split("/")[2] for name in carried if "step_" in name and not name.endswith("MANIFEST.json")}
    assert whole == {"step_00000030"}
    assert transfer is pull_run or "run/metrics.jsonl" not in volume.read, "equal weights say enough"


def test_a_run_that_goes_on_elsewhere_comes_home_and_goes_back(volume: FolderVolume, home: Path, there: Path) -> None:
    write_run(home, 10, 20, best=20)
    push_run(volume, home, "last", silent)
    write_run(there, 30, 40, best=40)
    assert pull_run(volume, home, "last", silent) == 40
    assert pointed(home) == ("step_00000040", "step_00000040")
    assert rows(home) == rows(there)
    write_run(home, 50, 60)
    assert push_run(volume, home, "last", silent) == 60
    assert pointed(there) == ("step_00000060", "step_00000040")
    assert (there / "metrics.jsonl").read_bytes() == (home / "metrics.jsonl").read_bytes()
    assert resumed(there, volume.root / "copy") == 60


def test_a_best_that_was_beaten_elsewhere_is_not_called_best(volume: FolderVolume, home: Path, there: Path) -> None:
    write_run(home, 10, best=10)
    push_run(volume, home, "last", silent)
    write_run(there, 20, 30, 40, best=20)
    pull_run(volume, home, "last", silent)
    assert pointed(home) == ("step_00000040", "")
    pull_run(volume, home, "best", silent)
    assert pointed(home) == ("step_00000040", "step_00000020")


def test_a_run_that_is_not_there_is_named(volume: FolderVolume, home: Path, tmp_path: Path) -> None:
    write_run(volume.root / "ruin", 10)
    with pytest.raises(CheckpointError, match="there is no run run on the volume; did you mean ruin"):
        pull_run(volume, home, "last", silent)
    with pytest.raises(CheckpointError, match="there is no run to push at"):
        push_run(volume, home, "last", silent)
    (volume.root / "run" / ".remote").mkdir(parents=True)
    (volume.root / "run" / ".remote" / "launch.json").write_text("{}")
    with pytest.raises(CheckpointError, match="has written nothing yet"):
        pull_run(volume, home, "last", silent)
    assert not home.exists()


def test_a_pull_that_brings_nothing_leaves_nothing(volume: FolderVolume, home: Path, there: Path) -> None:
    write_run(there, 10)
    volume.fail_at = 1
    with pytest.raises(Lost):
        pull_run(volume, home, "last", silent)
    assert not home.exists()


@pytest.mark.parametrize("transfer", [push_run, pull_run])
def test_a_run_in_use_is_left_alone(transfer: Transfer, volume: FolderVolume, home: Path, there: Path) -> None:
    write_run(home, 10)
    write_run(there, 10)
    lock = acquire_lock(home)
    try:
        with pytest.raises(CheckpointError, match="is in use by process"):
            transfer(volume, home, "last", silent)
    finally:
        lock.close()
    assert volume.sent == []
    transfer(volume, home, "last", silent)
    acquire_lock(home).close()


def test_a_full_disk_is_told_and_leaves_what_was_there(
    volume: FolderVolume, home: Path, there: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_run(home, 10)
    push_run(volume, home, "all", silent)
    write_run(there, 20)
    before = tree(home)

    def full(path: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    with monkeypatch.context() as patch:
        patch.setattr("core.remote_files.sync", full)
        with pytest.raises(CheckpointError, match="No space left on device; what was there before is whole"):
            pull_run(volume, home, "last", silent)
    assert tree(home) == before
    assert pull_run(volume, home, "last", silent) == 20


def break_everywhere(volume: FolderVolume, start: Callable[[], None], transfer: Callable[[], object]) -> Iterator[int]:
    """From the same beginning, let the n-th operation on the volume fail, for every n; yields after each break."""
    for number in range(1, 1000):
        start()
        volume.operations, volume.fail_at = 0, number
        try:
            transfer()
        except Lost:
            volume.fail_at = None
            yield number
        else:
            volume.fail_at = None
            assert number > 10
            return


@pytest.mark.parametrize("transfer", [push_run, pull_run])
def test_wherever_the_connection_breaks_nothing_is_lost(
    transfer: Transfer, volume: FolderVolume, home: Path, there: Path, tmp_path: Path
) -> None:
    """The run can resume without a hole from one of the checkpoints it had or was to get; doing it again completes."""
    source, target, copies = *((home, there) if transfer is push_run else (there, home)), tmp_path / "copies"
    write_run(target, 10, 20, best=10)
    shutil.copytree(target, source)
    write_run(source, 20, best=20, note="evaluated")
    write_run(source, 30, 40)
    for path in (source, target):
        shutil.copytree(path, copies / path.parent.name)

    def start() -> None:
        for path in (source, target):
            shutil.rmtree(path, ignore_errors=True)
            shutil.copytree(copies / path.parent.name, path)

    start()
    transfer(volume, home, "all", silent)
    expected = tree(target)
    assert steps_of(target) == [10, 20, 30, 40]
    for _ in break_everywhere(volume, start, lambda: transfer(volume, home, "all", silent)):
        step = resumed(target, tmp_path / "scratch")
        assert step in ((20, 30, 40, 10) if transfer is push_run else (20,))
        assert tree(source) == tree(copies / source.parent.name)
        latest, best = pointed(target)
        assert (latest, best) == ("step_00000020", "step_00000010") or transfer is push_run
        if best:
            assert int(best[5:]) in steps_of(target)
        complete = (target / "checkpoints").glob("step_*/MANIFEST.json")
        assert steps_of(target) == sorted(int(path.parent.name[5:]) for path in complete)
        transfer(volume, home, "all", silent)
        assert tree(target) == expected


@pytest.mark.parametrize("transfer", [push_run, pull_run])
def test_a_forced_transfer_that_breaks_off_can_be_done_again(
    transfer: Transfer, volume: FolderVolume, home: Path, there: Path, tmp_path: Path
) -> None:
    source, target, copies = *((home, there) if transfer is push_run else (there, home)), tmp_path / "copies"
    write_run(source, 10, 20, best=10)
    write_run(target, 10, 20, 30, best=30, life=0.5)
    (target / "plots").mkdir()
    (target / "plots" / "of_the_other.png").write_bytes(b"png")
    shutil.copytree(target, copies)

    def start() -> None:
        shutil.rmtree(target)
        shutil.copytree(copies, target)

    before = tree(source)
    for _ in break_everywhere(volume, start, lambda: transfer(volume, home, "all", silent, force=True)):
        assert resumed(target, tmp_path / "scratch") in (10, 20, 10.5, 20.5, 30.5, None)
        transfer(volume, home, "all", silent, force=True)
        assert tree(target) == tree(source) == before


class Killed(BaseException):
    """This process, at the change of a name that a test asked for."""


@pytest.mark.parametrize("force", [False, True])
def test_wherever_a_pull_is_killed_while_it_installs_nothing_is_lost(
    force: bool, volume: FolderVolume, home: Path, there: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_run(there, 10, 20, best=20)
    shutil.copytree(there, home)
    write_run(home, 20, note="evaluated")
    if force:
        write_run(home, 20, 30, 60, life=0.5)
    write_run(there, 30, 40)
    shutil.copytree(home, tmp_path / "before")
    count = {"now": 0, "kill": 0}

    def killing(function: Callable[..., None]) -> Callable[..., None]:
        def change(*arguments: object, **options: object) -> None:
            count["now"] += str(arguments[0]).startswith(str(home))
            if count["now"] == count["kill"]:
                raise Killed
            function(*arguments, **options)

        return change

    for function in ("replace", "rename"):
        monkeypatch.setattr(os, function, killing(getattr(os, function)))
    monkeypatch.setattr(shutil, "rmtree", killing(shutil.rmtree))
    monkeypatch.setattr(Path, "unlink", killing(Path.unlink))
    expected = None
    for number in range(100):
        count["kill"] = 0
        shutil.rmtree(home)
        shutil.copytree(tmp_path / "before", home)
        count |= {"now": 0, "kill": number}
        try:
            pull_run(volume, home, "all", silent, force)
        except Killed:
            count["kill"] = 0
            put_back(home / "checkpoints")  # As whoever opens the run does.
            assert resumed(home, tmp_path / "scratch") in (20, 20.5, 30, 40, 60.5)
            pull_run(volume, home, "all", silent, force)
            assert tree(home) == expected
        else:
            assert pointed(home) == pointed(there)
            if number:
                break
            expected = tree(home)
    assert number > 10


def test_a_run_started_anew_replaces_all_of_the_old_one(volume: FolderVolume, home: Path, there: Path) -> None:
    """Nothing in steps, contents or losses says that the two are not one."""
    write_run(home, 10, 20, best=10)
    (home / "plots").mkdir()
    (home / "plots" / "old.png").write_bytes(b"png")
    write_run(there, 5, 15, 25, 35)
    assert pull_run(volume, home, "last", silent, replace=True) == 35
    assert steps_of(home) == [35]
    assert pointed(home) == ("step_00000035", "")
    assert not (home / "plots" / "old.png").exists()
    write_run(home, 45, best=45)
    news: list[str] = []
    assert pull_run(volume, home, "none", news.append, replace=True) == 35
    assert steps_of(home) == [35]
    assert pointed(home) == ("step_00000035", "")
    assert rows(home) == rows(there)
    assert not any("best" in line for line in news)


def test_a_forced_push_leaves_no_best_of_the_other_life(volume: FolderVolume, home: Path, there: Path) -> None:
    write_run(home, 10, 20)
    write_run(there, 10, 20, 30, best=30, life=0.5)
    news: list[str] = []
    assert push_run(volume, home, "last", news.append, force=True) == 20
    assert pointed(there) == ("step_00000020", "")
    assert not any("best" in line for line in news)


def test_without_checkpoints_the_best_here_stays_the_best(volume: FolderVolume, home: Path, there: Path) -> None:
    write_run(home, 10, 20, best=10)
    push_run(volume, home, "all", silent)
    write_run(there, 30, best=30)
    news: list[str] = []
    assert pull_run(volume, home, "none", news.append) == 20
    assert pointed(home) == ("step_00000020", "step_00000010")
    brings = f"python modal/modal_client.py pull --run {home} --checkpoints best"
    assert f"the best checkpoint, step_00000030, is not here; to bring it: {brings}" in news
    assert pull_run(volume, home, "last", silent) == 30
    assert pointed(home) == ("step_00000030", "step_00000030")


def test_without_a_best_one_the_newest_is_named(volume: FolderVolume, home: Path, there: Path) -> None:
    write_run(there, 10)
    news: list[str] = []
    assert pull_run(volume, home, "best", news.append) is None
    (line,) = [line for line in news if "no best checkpoint on the volume" in line]
    assert line.endswith("to bring the newest, step 10: python modal/modal_client.py pull --run run")
    news.clear()
    shutil.rmtree(there / "checkpoints")
    pull_run(volume, home, "best", news.append)
    assert "there is no checkpoint on the volume yet" in news


def test_a_run_lies_where_its_config_says_or_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "kept", 10)
    config = (tmp_path / "kept" / "config.yaml").read_bytes().replace(b"out_dir: runs", b"out_dir: elsewhere")
    assert folder_here("run", config) == Path("elsewhere/run")
    write_run(tmp_path / "runs" / "run", 10)
    assert folder_here("run", config) == Path("runs/run"), "it was brought there"
    write_run(tmp_path / "elsewhere" / "run", 10)
    assert folder_here("run", config) == Path("elsewhere/run")
    for unknown in (None, b"", b"{", b"\xff", b"name: run\n", b"- 1\n", b"out_dir: [1]\n"):
        assert folder_here("new", unknown) == Path("runs/new")
    for there, here in ((tmp_path / "elsewhere", tmp_path / "elsewhere"), (tmp_path / "of_another", Path("runs"))):
        assert folder_here("new", f"out_dir: {there}\n".encode()) == here / "new"
