"""What would be lost is refused, what is damaged stays where it is, what is replaced leaves nothing behind."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from core.checkpoint import ASIDE
from core.remote_checkpoints import INCOMING
from core.remote_transfer import Which, pull_run, push_run, refuse_another_life
from tests.folder_volume import FolderVolume
from tests.prepared_data import silent
from tests.travelling_runs import manifest, pointed, resumed, steps_of, tree, write_run
from utils.errors import CheckpointError

Transfer = Callable[..., int | None]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home" / "run"


def lives(case: str, source: Path, target: Path) -> str:
    """Two ends that must not be mixed; what is said of it."""
    write_run(source, 10, 20)
    if case == "later":
        write_run(target, 10, 20, 30)
        return "run is at step 30 .* and at step 20 "
    if case == "other contents":
        write_run(target, 10, 20, life=0.5)
        return "step 10 of run .* is another one than"
    if case == "other config":
        write_run(target, 10, optimizer={"learning_rate": 0.5})
        return "the config of run differs in optimizer.learning_rate: .* there, .* here"
    for path in (source / "checkpoints").iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    write_run(target, 10)
    return "run is at step 10 .* and without a checkpoint "


CASES = ("later", "other contents", "other config", "nothing saved")


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("which", ["last", "none"])
@pytest.mark.parametrize("transfer", [push_run, pull_run])
def test_what_would_be_lost_is_refused(
    transfer: Transfer, which: Which, case: str, volume: FolderVolume, home: Path, there: Path
) -> None:
    source, target = (home, there) if transfer is push_run else (there, home)
    message = lives(case, source, target)
    before = tree(target)
    with pytest.raises(CheckpointError, match=message) as raised:
        transfer(volume, home, which, silent)
    end = "on the volume" if target == there else "here"
    assert raised.value.problems[-1] == f"to replace the run {end}, add --force; to keep both, rename one"
    assert tree(target) == before
    assert volume.sent == []
    transfer(volume, home, which, silent, force=True)
    pointers = {"checkpoints/LATEST", "checkpoints/BEST"}
    carried = {name: content for name, content in tree(target).items() if name not in pointers}
    assert carried.items() <= tree(source).items()
    assert steps_of(target)[-1:] == steps_of(source)[-1:] or which == "none"
    assert pointed(target)[0] == (f"step_{steps_of(target)[-1]:08d}" if steps_of(target) else "")


def test_what_may_differ_when_resuming_may_differ_when_travelling(
    volume: FolderVolume, home: Path, there: Path
) -> None:
    write_run(home, 10)
    write_run(there, 10, 20, training={"duration": "50 steps"})
    assert pull_run(volume, home, "last", silent) == 20
    assert (home / "config.yaml").read_bytes() == (there / "config.yaml").read_bytes()


def test_a_config_of_another_version_is_told_and_not_replaced(volume: FolderVolume, home: Path, there: Path) -> None:
    write_run(home, 10)
    write_run(there, 20)
    (there / "config.yaml").write_text("from_the_future: 1\n")
    with pytest.raises(CheckpointError, match="configs of run here and on the volume cannot be compared"):
        pull_run(volume, home, "last", silent)


def test_damaged_checkpoints_do_not_travel(volume: FolderVolume, home: Path, there: Path) -> None:
    write_run(home, 10, 20, 30, best=10)
    for step in (10, 30):
        weights = manifest(home, step).with_name("model.safetensors")
        weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    news: list[str] = []
    assert push_run(volume, home, "best", silent) is None
    assert push_run(volume, home, "all", news.append) == 20
    assert any("damaged checkpoint passed over" in line for line in news)
    assert steps_of(there) == [20]
    assert pointed(there) == ("step_00000020", "")


def test_a_damaged_run_here_is_repaired_from_the_volume(volume: FolderVolume, home: Path, there: Path) -> None:
    write_run(home, 10, 20)
    push_run(volume, home, "all", silent)
    for step in (10, 20):
        weights = manifest(home, step).with_name("model.safetensors")
        weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    assert pull_run(volume, home, "all", silent) == 20
    assert tree(home) == tree(there)


@pytest.mark.parametrize("damage", ["flipped", "cut short", "no manifest", "torn manifest"])
def test_a_damaged_checkpoint_there_replaces_nothing(
    damage: str, volume: FolderVolume, home: Path, there: Path
) -> None:
    write_run(home, 10)
    push_run(volume, home, "all", silent)
    write_run(there, 20)
    before, weights = tree(home), manifest(there, 20).with_name("model.safetensors")
    content = weights.read_bytes()
    if damage == "flipped":
        weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        with pytest.raises(CheckpointError, match=r"step_00000020 did not arrive whole[\s\S]*\(checksum\)"):
            pull_run(volume, home, "last", silent)
        assert tree(home) == before
        weights.write_bytes(content)
        volume.read = []
        assert pull_run(volume, home, "last", silent) == 20
        read = {name.rpartition("/")[2] for name in volume.read if "step_00000020" in name}
        assert read == {"MANIFEST.json", "model.safetensors"}
        assert tree(home).items() >= tree(there).items()
        return
    if damage == "cut short":
        weights.write_bytes(content[:-1])
    elif damage == "no manifest":
        manifest(there, 20).unlink()
    else:
        manifest(there, 20).write_text("{")
    assert pull_run(volume, home, "last", silent) == 10
    assert steps_of(home) == [10]


def test_another_checkpoint_of_the_same_step_leaves_none_of_its_files(
    volume: FolderVolume, home: Path, there: Path
) -> None:
    """Averaged weights that the manifest does not name would be read all the same."""
    write_run(home, 10)
    push_run(volume, home, "all", silent)
    manifest(there, 10).with_name("ema.safetensors").write_bytes(b"of another life")
    manifest(there, 10).unlink()
    push_run(volume, home, "all", silent)
    assert tree(there) == tree(home)


def test_what_an_interrupted_pull_left_of_another_checkpoint_does_not_join(
    volume: FolderVolume, home: Path, there: Path
) -> None:
    write_run(there, 10)
    left = home / "checkpoints" / INCOMING / "step_00000010"
    left.mkdir(parents=True)
    (left / "ema.safetensors").write_bytes(b"of a save that the run has replaced")
    (left.parent / "plots").mkdir()
    (left.parent / "plots" / "old.png").write_bytes(b"gone from the volume meanwhile")
    assert pull_run(volume, home, "all", silent) == 10
    assert tree(home) == tree(there)


@pytest.mark.parametrize("transfer", [push_run, pull_run])
def test_a_checkpoint_that_a_kill_left_aside_counts(
    transfer: Transfer, volume: FolderVolume, home: Path, there: Path
) -> None:
    write_run(home, 10, 20)
    if transfer is pull_run:
        shutil.copytree(home, there)
    (home / "checkpoints" / "step_00000020").rename(home / "checkpoints" / f"{ASIDE}step_00000020")
    assert transfer(volume, home, "last" if transfer is push_run else "none", silent) == 20
    assert steps_of(home) == [10, 20]


def test_latest_names_no_damaged_checkpoint(volume: FolderVolume, home: Path, there: Path) -> None:
    write_run(there, 10, 20)
    write_run(home, 10, 30)
    manifest(home, 30).with_name("state.json").write_text("{")
    assert pull_run(volume, home, "last", silent) == 20
    assert pointed(home) == ("step_00000020", "")
    write_run(there, 30, 40, life=0.5)
    assert pull_run(volume, home, "last", silent) == 40, "the damaged one counts for nothing"


def test_what_a_killed_replacement_left_aside_is_in_nobodys_way(volume: FolderVolume, home: Path, there: Path) -> None:
    write_run(home, 10, note="evaluated")
    write_run(there, 10, 20)
    left = home / "checkpoints" / f"{ASIDE}step_00000010"
    shutil.copytree(home / "checkpoints" / "step_00000010", left)
    assert pull_run(volume, home, "all", silent) == 20
    assert tree(home) == tree(there)
    assert not left.exists()


def test_a_run_that_deletes_what_is_being_fetched_is_read_again(
    volume: FolderVolume, home: Path, there: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_run(there, 10, 20)
    read_file, steps = volume.read_file, iter((30, 40))

    def goes_on(path: str) -> Iterator[bytes]:
        if path.endswith("optimizer.safetensors") and (step := next(steps, None)):
            write_run(there, step, best=10)
            shutil.rmtree(there / path.lstrip("/").removeprefix("run/").rpartition("/")[0])
        return read_file(path)

    monkeypatch.setattr(volume, "read_file", goes_on)
    news: list[str] = []
    assert pull_run(volume, home, "last", news.append) == 40
    assert sum("looking again" in line for line in news) == 2
    assert resumed(home, home.parent / "copy") == 40
    assert [path.name for path in (home / "checkpoints").iterdir() if path.name.startswith(".")] == []
    write_run(there, 50)
    steps = iter((60, 70, 80))
    before = tree(home)
    with pytest.raises(CheckpointError, match="deletes its checkpoints faster than they come"):
        pull_run(volume, home, "last", silent)
    assert tree(home) == before


def parted(case: str, source: Path, target: Path) -> str:
    """Two lives that went on from one checkpoint, the target's behind; what is said of them."""
    write_run(target, 10, 20)
    shutil.copytree(target, source)
    if case == "a step of both":
        write_run(target, 30, 40, 50, life=0.5)
        write_run(source, 30, 40, 50, 60, keep=3)
        return "step 40 of run .* is another one than"
    write_run(target, 30, 40, 50, life=0.5, keep=4)
    if case == "no step of both":
        write_run(source, 60, keep=1)
    else:
        write_run(source, 60, keep=3)  # Both still have step 20, from where on they are two.
    end = ("on the volume", "here") if "volume" in target.parts else ("here", "on the volume")
    return f"run is another run {end[0]} than {end[1]}: at step 21 the loss was 21.5 {end[0]}, 21.0 {end[1]}"


@pytest.mark.parametrize("case", ["a step of both", "no step of both", "an earlier step of both"])
@pytest.mark.parametrize("which", ["last", "none"])
@pytest.mark.parametrize("transfer", [push_run, pull_run])
def test_two_lives_are_not_mixed_although_one_is_ahead(
    transfer: Transfer, which: Which, case: str, volume: FolderVolume, home: Path, there: Path, tmp_path: Path
) -> None:
    source, target = (home, there) if transfer is push_run else (there, home)
    message = parted(case, source, target)
    before = tree(target)
    with pytest.raises(CheckpointError, match=message) as raised:
        transfer(volume, home, which, silent)
    assert len(raised.value.problems) == 2
    assert tree(target) == before
    transfer(volume, home, which, silent, force=True)
    if which == "last":
        assert set(steps_of(target)) <= set(steps_of(source)), "nothing of the other life stays"
        assert resumed(target, tmp_path / "scratch") == 60


@pytest.mark.parametrize("transfer", [push_run, pull_run])
def test_an_older_end_of_two_lives_is_told_not_to_be_brought_first(
    transfer: Transfer, volume: FolderVolume, home: Path, there: Path
) -> None:
    source, target = (home, there) if transfer is push_run else (there, home)
    parted("a step of both", target, source)
    with pytest.raises(CheckpointError, match="step 40 of run") as raised:
        transfer(volume, home, "last", silent)
    assert "it first" not in str(raised.value)
    with pytest.raises(CheckpointError, match=r"step 40 of run[\s\S]*to keep both, rename one"):
        refuse_another_life(volume, home, silent)


@pytest.mark.parametrize("transfer", [push_run, pull_run])
def test_a_run_that_goes_on_is_one_run(transfer: Transfer, volume: FolderVolume, home: Path, there: Path) -> None:
    """Rows behind the last checkpoint come again with other numbers, and a step saved again has another state."""
    source, target = (home, there) if transfer is push_run else (there, home)
    write_run(target, 10, 20)
    shutil.copytree(target, source)
    with (target / "metrics.jsonl").open("a") as file:
        file.write('{"step": 21, "train/loss": 99.0}\n{"step": 22, "train/lo')
    write_run(source, 20, note="evaluated")
    assert transfer(volume, home, "last", silent) == 20
    assert tree(target).items() >= tree(source).items()
    with (target / "metrics.jsonl").open("a") as file:
        file.write('{"step": 21, "train/loss": 99.0}\n')
    write_run(source, 60, 70, keep=1)
    refuse_another_life(volume, home, silent)
    assert transfer(volume, home, "last", silent) == 70


def test_a_run_that_deletes_what_is_looked_at_is_looked_at_again(
    volume: FolderVolume, home: Path, there: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the list of files and the first look at a manifest; metrics alone would leave the old step with them."""
    write_run(home, 10)
    shutil.copytree(home, there)
    write_run(there, 20, keep=1)
    read_file, counts = volume.read_file, {"left": 1}

    def goes_on(path: str) -> Iterator[bytes]:
        if path.endswith("step_00000020/MANIFEST.json") and counts["left"]:
            counts["left"] -= 1
            write_run(there, 30, keep=1)
        return read_file(path)

    monkeypatch.setattr(volume, "read_file", goes_on)
    news: list[str] = []
    assert pull_run(volume, home, "last", news.append) == 30
    assert [line for line in news if "looking again" in line or "no checkpoint" in line] == [
        "the run went on meanwhile and what was being read is gone: looking again"
    ]
    before = tree(home)
    counts["left"] = 1
    write_run(there, 20, keep=9)
    manifest(there, 30).unlink()
    with pytest.raises(CheckpointError, match="the run run is at work on the volume: stop it first"):
        push_run(volume, home, "last", silent)
    assert tree(home) == before


def test_the_best_of_a_moment_later_is_looked_for_again(
    volume: FolderVolume, home: Path, there: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_run(there, 10, 20, best=10)
    read_file, counts = volume.read_file, {"left": 1}

    def goes_on(path: str) -> Iterator[bytes]:
        if path.endswith("BEST") and counts["left"]:
            counts["left"] -= 1
            write_run(there, 30, 40, 50, best=30)
        return read_file(path)

    monkeypatch.setattr(volume, "read_file", goes_on)
    assert pull_run(volume, home, "best", silent) == 30
    assert pointed(home) == ("step_00000030", "step_00000030")
