"""Volumes of the loopback control plane, as the real client and containers of toy apps see them."""

import sys
from pathlib import Path

import pytest

from tests.modal_blocks import BLOCK
from tests.modal_loopback import Loopback
from tests.modal_mounts import Mount, Volume, scan
from tests.modal_toys import write_app

pytestmark = [pytest.mark.modal_loopback, pytest.mark.slow]

MAIN = """
    @app.local_entrypoint()
    def main(): print("result", work.spawn().get())
"""
AT_HOME = """
import modal, sys
from io import BytesIO
from pathlib import Path

volume = modal.Volume.from_name("home", create_if_missing=True, version=2)
"""


def at_home(cloud: Loopback, lines: str) -> str:
    """What a program at home prints that has the volume `home`."""
    script = cloud.folder / "at_home.py"
    script.write_text(AT_HOME + lines)
    done = cloud.run(["python", script])
    assert done.code == 0, done.output
    return done.output


def test_what_a_container_writes_is_durable_after_a_commit_only(tmp_path: Path):
    app = write_app(
        tmp_path,
        """
        @app.function(volumes={"/runs": volume})
        def work():
            before = sorted(path.name for path in RUNS.iterdir())
            (RUNS / "new" / "deep").mkdir(parents=True)
            (RUNS / "new" / "deep" / "a.txt").write_text("a")
            (RUNS / "old.txt").unlink()
            volume.commit()
            (RUNS / "late.txt").write_text("never committed")
            return before
        """,
        MAIN,
    )
    with Loopback(tmp_path) as cloud:
        durable = cloud.volume("toy-runs")
        (durable / "old.txt").write_text("old")
        done = cloud.run(["modal", "run", app])
        assert "result ['old.txt']" in done.output
        assert sorted(scan(durable)) == ["new", "new/deep", "new/deep/a.txt"]
        assert (cloud.containers[0].mounts["/runs"] / "late.txt").exists()


def test_background_commits_save_what_an_interrupted_container_left(tmp_path: Path):
    app = write_app(
        tmp_path,
        """
        @app.function(volumes={"/runs": volume}, single_use_containers=True)
        def work():
            if (RUNS / "left.txt").exists():
                return (RUNS / "left.txt").read_text()
            (RUNS / "left.txt").write_text("by the first")
            raise KeyboardInterrupt
        """,
        MAIN,
    )
    with Loopback(tmp_path, background_commits=True) as cloud:
        assert "result by the first" in cloud.run(["modal", "run", app]).output
        assert cloud.count("VolumeCommit") == len(cloud.containers) == 2


@pytest.mark.skipif(sys.platform != "linux", reason="open files are found in /proc")
@pytest.mark.parametrize("held", ["file", "mapped", "folder", "child"])
def test_open_files_make_a_commit_and_a_reload_fail(tmp_path: Path, held: str):
    app = write_app(
        tmp_path,
        f"""
        def hold():
            if {held!r} == "file":
                return open(RUNS / "a.txt")
            if {held!r} == "mapped":
                import ctypes  # Python's own mmap keeps the file open as well.
                with open(RUNS / "a.txt") as file:
                    return ctypes.CDLL(None).mmap(None, ctypes.c_size_t(1), 1, 2, file.fileno(), ctypes.c_long(0))
            if {held!r} == "folder":
                return os.chdir(RUNS)
            with open(RUNS / "a.txt") as file:
                return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], stdin=file)

        @app.function(volumes={{"/runs": volume}})
        def work():
            (RUNS / "a.txt").write_text("a")
            volume.commit()
            volume.reload()
            kept = hold()
            for action in (volume.commit, volume.reload):
                try:
                    action()
                except RuntimeError as error:
                    print("refused:", error)
        """,
        MAIN,
    )
    with Loopback(tmp_path) as cloud:
        done = cloud.run(["modal", "run", app])
        assert done.code == 0
        assert done.output.count("refused: there are open files preventing the operation") == 2
        # The container is over although a child of it was not.
        assert "Timed out waiting for final app logs" not in done.output


def test_a_reload_shows_what_others_committed_and_a_read_only_mount_is_watched(tmp_path: Path):
    app = write_app(
        tmp_path,
        """
        data = modal.Volume.from_name("toy-data", create_if_missing=True, version=2)

        @app.function(volumes={"/runs": volume, "/data": data.with_mount_options(read_only=True)})
        def work():
            print("ready", flush=True)
            while not (RUNS / "go.txt").exists():
                volume.reload()
            try:
                (RUNS.parent / "data" / "mine.txt").write_text("no")
            except OSError as error:
                print("refused", error)
            data.commit()
            return (RUNS / "go.txt").read_text()
        """,
        MAIN,
    )
    with Loopback(tmp_path) as cloud:
        durable = cloud.volume("toy-runs")
        cloud.when(lambda one: "ready" in one.output, lambda one: (durable / "go.txt").write_text("now"))
        done = cloud.run(["modal", "run", app])
        assert "result now" in done.output
        assert not list(cloud.volume("toy-data").iterdir())
        assert "refused" in done.output or "mine.txt" in cloud.problems[0]
        cloud.problems.clear()
        mounts = {mount.mount_path: mount.read_only for mount in cloud.containers[0].function.volume_mounts}
        assert mounts == {"/runs": False, "/data": True}


def test_the_last_commit_of_a_file_wins_and_other_files_stay(tmp_path: Path):
    volume = Volume("vo-1", "v", 2, tmp_path / "durable", 0.0)
    for name in ("both", "first", "second", "removed"):
        (volume.folder / name).write_text("old")
    first, second = (Mount(volume, "/runs", tmp_path / name) for name in ("one", "two"))
    (first.local / "both").write_text("1")
    (first.local / "first").write_text("1")
    (first.local / "removed").unlink()
    (second.local / "both").write_text("2")
    (second.local / "second").write_text("2")
    first.commit()
    second.commit()
    second.commit()
    assert {path.name: path.read_text() for path in volume.folder.iterdir()} == {
        "both": "2",
        "first": "1",
        "second": "2",
    }
    (first.local / "second").write_text("mine, not committed")
    first.reload()
    assert (first.local / "both").read_text() == "2"
    assert (first.local / "second").read_text() == "mine, not committed"
    second.reload()
    assert sorted(path.name for path in second.local.iterdir()) == ["both", "first", "second"]


def test_files_travel_in_blocks_and_known_blocks_are_not_sent_again(tmp_path: Path):
    big = b"x" * BLOCK + b"y" * 5 + b"\0" * 7
    (tmp_path / "big.bin").write_bytes(big)
    with Loopback(tmp_path) as cloud:
        upload = f"""
with volume.batch_upload() as batch:
    batch.put_file({str(tmp_path / "big.bin")!r}, "/deep/big.bin")
    batch.put_file(BytesIO(b""), "deep/empty.bin")
"""
        at_home(cloud, upload)
        durable = cloud.volume("home")
        assert (durable / "deep/big.bin").read_bytes() == big
        assert (durable / "deep/empty.bin").read_bytes() == b""
        # Zeros at the end of a block do not travel.
        assert cloud.uploaded_bytes == BLOCK + 5
        at_home(cloud, upload.replace("batch_upload()", "batch_upload(force=True)").replace("/deep/big", "/copy/big"))
        assert (durable / "copy/big.bin").read_bytes() == big
        assert cloud.uploaded_bytes == BLOCK + 5
        refused = upload.replace("with", "try:\n with", 1).replace("    batch", "  batch")
        assert "exists" in at_home(cloud, f"{refused}except FileExistsError as error: print('exists', error)")
        output = at_home(
            cloud,
            f"""
content = b"".join(volume.read_file("deep/big.bin"))
print(content == Path({str(tmp_path / "big.bin")!r}).read_bytes(), b"".join(volume.read_file("/deep/empty.bin")))
""",
        )
        assert "True b''" in output
        assert cloud.downloaded_bytes == BLOCK + 5


def test_listing_reading_and_removing_from_home(tmp_path: Path):
    with Loopback(tmp_path) as cloud:
        durable = cloud.volume("home")
        (durable / "run/checkpoints").mkdir(parents=True)
        (durable / "run/checkpoints/a").write_text("abc")
        (durable / "top").write_text("t")
        output = at_home(
            cloud,
            """
def show(*arguments, **options):
    print(sorted((entry.path, entry.type.name, entry.size) for entry in volume.listdir(*arguments, **options)))

show("/")
show("/run", recursive=True)
show("run/checkpoints/a")
for name, action in {
    "list": lambda: volume.listdir("nowhere"),
    "read": lambda: list(volume.read_file("nowhere")),
    "remove": lambda: volume.remove_file("nowhere"),
    "folder": lambda: volume.remove_file("run"),
    "absent": lambda: modal.Volume.from_name("absent").hydrate(),
    "commit": volume.commit,
}.items():
    try:
        action()
    except Exception as error:
        print(name, type(error).__name__)
volume.remove_file("/run", recursive=True)
show("/", recursive=True)
print([each.name for each in modal.Volume.objects.list()])
""",
        )
        assert output.splitlines() == [
            "[('run', 'DIRECTORY', 0), ('top', 'FILE', 1)]",
            "[('run/checkpoints', 'DIRECTORY', 0), ('run/checkpoints/a', 'FILE', 3)]",
            "[('run/checkpoints/a', 'FILE', 3)]",
            "list NotFoundError",
            "read FileNotFoundError",
            "remove FileNotFoundError",
            "folder InvalidError",
            "absent NotFoundError",
            "commit RuntimeError",
            "[('top', 'FILE', 1)]",
            "['home']",
        ]


def test_a_volume_of_the_old_version_is_noticed(tmp_path: Path):
    with Loopback(tmp_path) as cloud:
        old = "old = modal.Volume.from_name('old', create_if_missing=True)\n"
        assert "Unimplemented" in at_home(
            cloud, f"{old}try: old.listdir('/')\nexcept Exception as error: print(type(error).__name__)"
        )
        cloud.problems.clear()
        assert "InvalidError" in at_home(
            cloud,
            "try: modal.Volume.from_name('old', version=2).hydrate()\n"
            "except Exception as error: print(type(error).__name__)",
        )
