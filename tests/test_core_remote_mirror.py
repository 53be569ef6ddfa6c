"""The copy of a run folder on a volume: whatever stops it and whenever, what lies there is one that training wrote."""

import errno
import itertools
import os
import random
import resource
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from core.checkpoint import MANIFEST, TEMPORARY
from core.remote import newest_step
from core.remote_mirror import mirror, restore
from tests.failing_files import Action, act_at, fill_up, interrupt, kill, open_files
from tests.pretend_trainer import Trainer, assert_equal, assert_restorable, assert_whole, content, flip, steps
from utils.errors import CheckpointError


@pytest.fixture(autouse=True)
def no_power_cuts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flushing to the disk is most of the time that a tiny save takes."""
    monkeypatch.setattr("core.checkpoint.sync", lambda path: None)


@pytest.fixture
def trainer(tmp_path: Path) -> Trainer:
    return Trainer(tmp_path / "local")


@pytest.fixture
def mount(tmp_path: Path) -> Path:
    return tmp_path / "runs" / "one"


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[Path]:
    """Names of folders that do not exist yet."""
    return (tmp_path / f"restored-{number}" for number in itertools.count())


def test_everything_travels_but_the_lock_and_what_is_temporary(trainer: Trainer, mount: Path) -> None:
    trainer.save(is_best=True)
    trainer.save()
    for name in ("log.txt", "samples.jsonl", "environment.json", "plots/training.png"):
        path = trainer.folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"{name}\n")
    expected = content(trainer.folder)
    for name in (".config.yaml.tmp", "metrics.jsonl.tmp", "plots/.half.png"):
        (trainer.folder / name).write_text("")
    (trainer.folder / ".remote").mkdir()
    (trainer.folder / ".remote" / "output.txt").write_text("")
    assert mirror(trainer.folder, mount)
    assert content(mount) == expected
    assert not (mount / "lock").exists()


def test_a_second_mirror_writes_nothing(trainer: Trainer, mount: Path) -> None:
    trainer.save(is_best=True)
    (trainer.folder / "log.txt").write_text("half a line")
    assert mirror(trainer.folder, mount)
    before = {path: (path.stat().st_ino, path.stat().st_ctime_ns) for path in mount.rglob("*")}
    assert not mirror(trainer.folder, mount)
    assert {path: (path.stat().st_ino, path.stat().st_ctime_ns) for path in mount.rglob("*")} == before


def test_a_change_shows_in_size_or_in_time(trainer: Trainer, mount: Path) -> None:
    path = trainer.folder / "config.yaml"
    for text, seconds in (("name: one\n", 1), ("name: two\n", 2), ("name: three\n", 2)):
        path.write_text(text)
        os.utime(path, (seconds, seconds))
        assert mirror(trainer.folder, mount)
        assert (mount / "config.yaml").read_text() == text


def test_the_state_of_the_remote_run_is_left_alone(trainer: Trainer, mount: Path, fresh: Iterator[Path]) -> None:
    (mount / ".remote").mkdir(parents=True)
    (mount / ".remote" / ".tmp-attempts.json").write_text("being written")
    trainer.save()
    mirror(trainer.folder, mount)
    assert (mount / ".remote" / ".tmp-attempts.json").read_text() == "being written"
    folder = next(fresh)
    restore(mount, folder, print)
    assert not (folder / ".remote").exists()


def test_only_whole_lines_arrive(trainer: Trainer, mount: Path) -> None:
    trainer.save()
    metrics = trainer.folder / "metrics.jsonl"
    whole = metrics.read_bytes()
    with metrics.open("ab") as file:
        file.write(b'{"step": 2, "tok')
    mirror(trainer.folder, mount)
    assert (mount / "metrics.jsonl").read_bytes() == whole
    with metrics.open("ab") as file:
        file.write(b'ens": 2, "time": 1}\n')
    assert mirror(trainer.folder, mount)
    assert (mount / "metrics.jsonl").read_bytes() == metrics.read_bytes()


def test_what_is_pruned_goes_and_the_best_stays(trainer: Trainer, mount: Path) -> None:
    (mount / "checkpoints" / "step_00000009").mkdir(parents=True)  # Half a copy of what was never finished.
    trainer.save(is_best=True)
    for _ in range(4):
        trainer.save()
        mirror(trainer.folder, mount)
    assert steps(mount) == [1, 4, 5]
    assert_equal(trainer, mount)
    assert newest_step(mount) == 5


def test_a_save_of_the_same_step_brings_only_what_differs(trainer: Trainer, mount: Path) -> None:
    trainer.save()
    mirror(trainer.folder, mount)
    model, state = (mount / "checkpoints" / "step_00000001" / name for name in ("model.safetensors", "state.json"))
    before = model.stat().st_ino, state.read_bytes()
    (model.parent / "ema.safetensors").write_bytes(b"no longer saved")
    trainer.save_again(is_best=True)
    assert mirror(trainer.folder, mount)
    assert model.stat().st_ino == before[0]
    assert state.read_bytes() != before[1]
    assert_equal(trainer, mount)


def test_nothing_whole_is_deleted_before_something_newer_has_arrived(trainer: Trainer, mount: Path) -> None:
    for _ in range(2):
        trainer.save()
    mirror(trainer.folder, mount)
    for name in ("step_00000002", "step_00000001"):
        shutil.rmtree(trainer.folder / "checkpoints" / name)
        mirror(trainer.folder, mount)
        assert steps(mount) == [1, 2]


def test_newest_step_counts_complete_checkpoints(trainer: Trainer, mount: Path) -> None:
    assert newest_step(mount) is None
    for _ in range(2):
        trainer.save()
    mirror(trainer.folder, mount)
    (mount / "checkpoints" / "step_00000002" / MANIFEST).unlink()
    assert newest_step(mount) == 1


def test_the_two_newest_and_the_best_come_back(trainer: Trainer, mount: Path, fresh: Iterator[Path]) -> None:
    trainer.keep_last = 3
    trainer.save(is_best=True)
    for _ in range(4):
        trainer.save()
    mirror(trainer.folder, mount)
    folder = next(fresh)
    assert restore(mount, folder, pytest.fail) == 5
    expected = {name: data for name, data in content(trainer.folder).items() if "step_00000003" not in name}
    assert content(folder) == expected
    with pytest.raises(FileExistsError, match="not empty"):
        restore(mount, folder, pytest.fail)


def test_each_attempt_leaves_one_for_a_bit_that_flips_later(
    trainer: Trainer, mount: Path, fresh: Iterator[Path]
) -> None:
    """What comes back is all that the next mirror leaves on the volume."""
    trainer.keep_last = 4
    for _ in range(4):
        trainer.save()
    mirror(trainer.folder, mount)
    flip(mount / "checkpoints" / "step_00000003" / "model.safetensors")
    folder, warnings = next(fresh), []
    assert (restore(mount, folder, warnings.append), len(warnings)) == (4, 1)
    assert "step_00000003" in warnings[0]
    mirror(folder, mount)
    assert steps(mount) == steps(folder) == [2, 4]
    flip(mount / "checkpoints" / "step_00000004" / "model.safetensors")
    assert restore(mount, next(fresh), warnings.append) == 2


def test_nothing_comes_back_from_half_a_first_checkpoint(trainer: Trainer, mount: Path, fresh: Iterator[Path]) -> None:
    folder = next(fresh)
    assert restore(mount, folder, pytest.fail) is None
    trainer.save()
    mirror(trainer.folder, mount)
    (mount / "checkpoints" / "step_00000001" / MANIFEST).unlink()
    assert restore(mount, folder, pytest.fail) is None
    assert not folder.exists()


def test_a_damaged_one_is_named_passed_over_and_written_again(
    trainer: Trainer, mount: Path, fresh: Iterator[Path]
) -> None:
    """Training comes to the same step with the same bytes: an equal manifest must not hide the damage."""
    trainer.save(weight=1)
    mirror(trainer.folder, mount)
    trainer.save(is_best=True, weight=2)
    mirror(trainer.folder, mount)
    expected = content(mount / "checkpoints")
    flip(mount / "checkpoints" / "step_00000002" / "model.safetensors")
    folder, warnings = next(fresh), []
    assert (restore(mount, folder, warnings.append), len(warnings)) == (1, 1)
    assert "step_00000002/model.safetensors has changed" in warnings[0]
    trainer.folder, trainer.step = folder, 1
    mirror(folder, mount)
    assert (mount / "checkpoints" / "LATEST").read_text() == "step_00000001\n"
    trainer.save(is_best=True, weight=2)
    mirror(folder, mount)
    assert content(mount / "checkpoints") == expected


def test_a_damaged_best_is_left_out(trainer: Trainer, mount: Path, fresh: Iterator[Path]) -> None:
    trainer.save(is_best=True)
    trainer.save()
    mirror(trainer.folder, mount)
    flip(mount / "checkpoints" / "step_00000001" / "optimizer.safetensors")
    folder, warnings = next(fresh), []
    assert (restore(mount, folder, warnings.append), len(warnings)) == (2, 1)
    assert steps(folder) == [2]
    assert not (folder / "checkpoints" / "BEST").exists()


def test_a_volume_with_nothing_whole_is_refused(trainer: Trainer, mount: Path, fresh: Iterator[Path]) -> None:
    trainer.save()
    mirror(trainer.folder, mount)
    flip(mount / "checkpoints" / "step_00000001" / "model.safetensors")
    before, folder = content(mount), next(fresh)
    for _ in range(2):
        with pytest.raises(CheckpointError, match="no checkpoint of one on the volume is whole"):
            restore(mount, folder, lambda line: None)
    assert content(mount) == before


def new_run(trainer: Trainer, mount: Path) -> None:
    trainer.save(is_best=True)
    trainer.save()


def pruned(trainer: Trainer, mount: Path) -> None:
    trainer.keep_last = 1
    trainer.save(is_best=True)
    mirror(trainer.folder, mount)
    trainer.save(is_best=True)


def saved_again(trainer: Trainer, mount: Path) -> None:
    trainer.save()
    mirror(trainer.folder, mount)
    trainer.save_again(is_best=True)


SCENARIOS = [new_run, pruned, saved_again]


@pytest.mark.parametrize(("action", "lives"), [(kill, 0), (fill_up, None), (interrupt, 1)])
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_stopped_anywhere(
    trainer: Trainer,
    mount: Path,
    fresh: Iterator[Path],
    scenario: Callable[[Trainer, Path], None],
    action: Action,
    lives: int | None,
) -> None:
    """At every file operation in turn, and then while it cleans up: what was there stays, what comes next goes on."""
    mount.mkdir(parents=True)
    scenario(trainer, mount)
    before, reached = newest_step(mount) or 0, set()
    for number in itertools.count():
        copy = next(fresh)
        shutil.copytree(mount, copy)
        has_acted = act_at(number, action, partial(mirror, trainer.folder, copy), lives)
        reached.add(assert_restorable(trainer, copy, next(fresh), before))
        if action is fill_up:
            assert not list(copy.rglob(f"{TEMPORARY}*"))
        assert_whole(trainer, copy)
        elsewhere, other = next(fresh), next(fresh)
        if restore(copy, elsewhere, pytest.fail) is not None:
            shutil.copytree(copy, other)
            mirror(elsewhere, other)
            assert content(other) == content(elsewhere)
        mirror(trainer.folder, copy)
        assert_equal(trainer, copy)
        if not has_acted:
            break
    assert number > 20
    assert reached == {before, trainer.step}


@pytest.mark.parametrize("again", [False, True])
def test_training_goes_on_meanwhile(tmp_path: Path, again: bool) -> None:
    """At every file operation in turn, the trainer saves: it prunes, or replaces, what is being copied."""
    given_up = 0
    for number in itertools.count():
        trainer = Trainer(tmp_path / f"local-{number}", keep_last=1)
        mount, folder = tmp_path / f"mount-{number}", tmp_path / f"restored-{number}"
        trainer.save(is_best=True)
        mirror(trainer.folder, mount)
        trainer.save(is_best=True)
        trainer.save()

        def go_on(event: str, arguments: object) -> None:
            trainer.save_again() if again else trainer.save(is_best=True)  # noqa: B023

        has_acted = act_at(number, go_on, partial(mirror, trainer.folder, mount))
        assert not list(mount.rglob(f"{TEMPORARY}*"))
        assert_whole(trainer, mount)
        given_up += assert_restorable(trainer, mount, folder, at_least=1) == 1
        mirror(trainer.folder, mount)
        assert_equal(trainer, mount)
        if not has_acted:
            break
    assert given_up > 3


@pytest.mark.parametrize("seed", range(12))
def test_any_story_ends_with_what_training_wrote(
    trainer: Trainer, mount: Path, fresh: Iterator[Path], seed: int
) -> None:
    """Saves, mirrors that are killed or find no room, and machines that are lost, in any order."""
    chance, arrived = random.Random(seed), 0
    for _ in range(25):
        event = chance.choice(["save", "save", "best", "again", "mirror", "kill", "kill", "fill up", "lost"])
        if event in ("save", "best"):
            trainer.save(is_best=event == "best")
        elif event == "again" and trainer.step:
            trainer.save_again(is_best=chance.random() < 0.5)
        elif event == "mirror":
            mirror(trainer.folder, mount)
            assert_equal(trainer, mount)
        elif event in ("kill", "fill up"):
            action = kill if event == "kill" else fill_up
            act_at(chance.randrange(120), action, partial(mirror, trainer.folder, mount))
        elif event == "lost" and arrived:
            trainer.folder = next(fresh)
            trainer.step = assert_restorable(trainer, mount, trainer.folder, arrived)
            rows = (trainer.folder / "metrics.jsonl").read_bytes().splitlines(keepends=True)
            (trainer.folder / "metrics.jsonl").write_bytes(b"".join(rows[: trainer.step]))
        arrived = assert_restorable(trainer, mount, next(fresh), arrived)
    mirror(trainer.folder, mount)
    assert_equal(trainer, mount)


def test_a_file_that_does_not_fit_leaves_no_trace(trainer: Trainer, mount: Path, fresh: Iterator[Path]) -> None:
    """A write that fails in its middle, by the system's own limit."""
    trainer.save()
    mirror(trainer.folder, mount)
    trainer.save()
    expected = content(mount / "checkpoints")
    largest = max(path.stat().st_size for path in trainer.folder.rglob("*.safetensors"))
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    held = open_files()
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest - 1, limit[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            mirror(trainer.folder, mount)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert content(mount / "checkpoints") == expected
    assert open_files() == held
    mirror(trainer.folder, mount)
    restore(mount, next(fresh), pytest.fail)
    assert_equal(trainer, mount)
    assert open_files() == held


def test_a_volume_that_is_only_read_can_be_restored_from(
    trainer: Trainer, mount: Path, fresh: Iterator[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer.save()
    trainer.save()
    mirror(trainer.folder, mount)
    flip(mount / "checkpoints" / "step_00000002" / "model.safetensors")
    unlink = Path.unlink

    def refuse(path: Path, missing_ok: bool = False) -> None:
        if path.is_relative_to(mount):
            raise OSError(errno.EROFS, "Read-only file system", str(path))
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", refuse)
    assert restore(mount, next(fresh), lambda line: None) == 1
