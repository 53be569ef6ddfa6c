"""`modal run modal/modal_deploy.py` from end to end against a stand-in of Modal's servers: the real client, the real
entrypoint of containers, training on this CPU. A run that went away must be the run that stayed, to the bit.
"""

import json
import shutil
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest

from core.checkpoint import find_damage, list_checkpoints, read_checkpoint
from core.config import load
from core.remote import DATA_VOLUME, newest_step
from core.run import acquire_lock
from tests.modal_loopback import Loopback, kill, kill_children
from tests.remote_runs import GPU, NEEDS_THE_STAND_IN, Home, attempts, deploy, launch, saved, stayed, there
from tests.tiny_run import assert_same_run, losses, metric_rows

pytestmark = NEEDS_THE_STAND_IN


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of 120 steps that never left home."""
    return stayed(tmp_path_factory.mktemp("stayed") / "home")


def test_the_stand_in_is_for_this_client() -> None:
    """The protocol is private: a new client is looked at, then its version is written here and in the lock file."""
    assert metadata.version("modal") == "1.6.4"


def test_a_run_there_is_the_run_here(cloud: Loopback, home: Home, reference: Path) -> None:
    options = ("--cpu", "8", "--memory", "32", "--timeout", "12", "--retries", "7", "--region", "us")
    finished = launch(cloud, home, *options)
    assert finished.code == 0, finished.output
    assert_same_run(home.run, reference)
    assert load(home.run / "config.yaml") == load(home.folder / "c.yaml")
    for line in ("plan of runs/tiny on Modal", "cost  ", "step 120/120", "runs/tiny is here, at step 120"):
        assert line in finished.output
    assert cloud.goodbyes == ["ENTRYPOINT_COMPLETED"], "Modal counts it as a success"
    (row,) = attempts(cloud, home)
    assert (row.outcome, row.step, row.gpu) == ("finished", 120, GPU)

    (container,) = cloud.containers
    function = container.function
    assert function.single_use_containers
    assert (function.resources.gpu_config.gpu_type, function.resources.gpu_config.count) == (GPU, 1)
    assert (function.resources.milli_cpu, function.resources.memory_mb) == (8000, 32768)
    assert function.timeout_secs == 12 * 3600
    assert (function.retry_policy.retries, function.retry_policy.max_delay_ms) == (7, 60_000)
    assert list(function.scheduler_placement.regions) == ["us"]
    assert {(mount.mount_path, mount.read_only) for mount in function.volume_mounts} == {
        ("/runs", False), ("/data", True)
    }  # fmt: skip
    recipe = "\n".join(cloud.image_lines(function))
    assert "FROM python:3.12" in recipe
    assert "'mlx[cuda12]==0.32.4'" in recipe
    assert "--constraint /pippin-lock.txt" in recipe
    mounted = {name.split("root/", 1)[-1] for name in container.files}
    assert {"core/training.py", "data/loader.py", "models/decoder.py", "utils/cli.py", "modal_deploy.py"} <= mounted
    assert not any(name.startswith(("tests/", "configs/", "docs/")) for name in mounted)
    assert not any("corpus" in path.name for path in cloud.folder.rglob("*")), "text stays at home"


def test_what_is_there_is_not_sent_again(cloud: Loopback, home: Home) -> None:
    short = ("training.duration=3 steps", "evaluation.every=null", "--pull", "none")
    first = launch(cloud, home, *short, new_image=True)
    assert first.code == 0, first.output
    assert "smoke test passed" in first.output
    sent = cloud.uploaded_bytes
    (folder,) = cloud.volume(DATA_VOLUME).iterdir()
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    assert sent >= size
    second = launch(cloud, home, *short, "name=again", new_image=True)
    assert second.code == 0, second.output
    assert "smoke test" not in second.output, "the image has passed it"
    assert "prepared data: already on the volume" in second.output
    assert cloud.uploaded_bytes - sent < 2000, "no more than who was called"
    assert not list_checkpoints(home.run / "checkpoints")
    assert (home.run / "metrics.jsonl").is_file()
    third = launch(cloud, home, *short)
    assert third.code == 2
    assert "is there already" in third.output
    assert cloud.count("FunctionMap") == 2, "refused before a GPU was asked for"
    anew = launch(cloud, home, "training.duration=4 steps", *short[1:], "--overwrite")
    assert anew.code == 0, anew.output
    assert [row["step"] for row in metric_rows(home.run) if "train/loss" in row] == [1, 2, 3, 4]
    assert len(attempts(cloud, home)) == 1
    calls = cloud.count("FunctionMap")
    done = launch(cloud, home, "training.duration=4 steps", *short[1:], "--resume")
    assert done.code == 0, done.output
    assert "step 4 of 4 is done: to go on, raise training.duration" in done.output
    shutil.rmtree(home.run)
    other = launch(cloud, home, "training.duration=5 steps", *short[1:], "--resume", "seed=7")
    assert other.code == 2
    assert "was started with another config" in other.output
    assert cloud.count("FunctionMap") == calls, "neither costs anything"


def test_a_crash_goes_on_where_it_was_saved(cloud: Loopback, home: Home, reference: Path) -> None:
    cloud.when(saved(cloud, home, 40), kill_children)
    finished = launch(cloud, home)
    assert finished.code == 0, finished.output
    first, second = attempts(cloud, home)
    assert (first.outcome, second.outcome) == ("crashed", "finished")
    assert second.first_step == first.step >= 40
    assert f"going on from step {first.step}" in finished.output
    assert f"resuming from runs/tiny/checkpoints/step_{first.step:08d}" in finished.output
    assert "killed by SIGKILL" in first.message
    assert_same_run(home.run, reference)


def test_an_interrupted_container_saves_and_another_goes_on(cloud: Loopback, home: Home, reference: Path) -> None:
    cloud.when(saved(cloud, home, 20), cloud.interrupt)
    finished = launch(cloud, home, "--retries", "0", "checkpoint.every=20 steps")
    assert finished.code == 0, finished.output
    first, second = attempts(cloud, home)
    assert (first.outcome, second.outcome) == ("interrupted", "finished")
    assert first.step == second.first_step > 20
    assert "stopping after this step and saving" in finished.output
    assert losses(home.run) == losses(reference)
    one, other = (read_checkpoint(list_checkpoints(run / "checkpoints")[-1]) for run in (home.run, reference))
    for name, array in one.model.items():
        np.testing.assert_array_equal(array, other.model[name], err_msg=name)
    steps = [row["step"] for row in metric_rows(home.run) if "train/loss" in row]
    assert steps == list(range(1, 121)), "no step is counted twice"


def test_when_all_attempts_crash_what_was_saved_stays(cloud: Loopback, home: Home) -> None:
    cloud.when(saved(cloud, home, 20, attempt=1), kill_children)
    cloud.when(saved(cloud, home, 50, attempt=2), kill_children)
    finished = launch(cloud, home, "--retries", "1", "--pull", "all")
    assert finished.code == 2
    assert "error: gave up: attempt 2 crashed at step" in finished.output
    assert "checkpoints saved before are whole: continue with --resume" in finished.output
    assert "Traceback" not in finished.output.rpartition("gave up")[2]
    found = list_checkpoints(home.run / "checkpoints")
    assert len(found) >= 2
    assert not [line for checkpoint in found for line in find_damage(checkpoint)]
    resumed = launch(cloud, home, "--resume", "training.early_stopping=99", "--pull", "none")
    assert resumed.code == 0, resumed.output
    assert [row.outcome for row in attempts(cloud, home)] == ["crashed", "crashed", "finished"]


def test_a_lost_machine_and_a_flipped_bit_cost_one_checkpoint(cloud: Loopback, home: Home, reference: Path) -> None:
    def spoil_and_kill(container: object) -> None:
        folder = there(cloud, home) / "checkpoints"
        newest = folder / f"step_{newest_step(there(cloud, home)):08d}" / "optimizer.safetensors"
        content = bytearray(newest.read_bytes())
        content[-1] ^= 1
        newest.write_bytes(content)
        kill(container)  # pyright: ignore[reportArgumentType]

    cloud.when(saved(cloud, home, 40), spoil_and_kill)
    finished = launch(cloud, home)
    assert finished.code == 0, finished.output
    assert "damaged checkpoint passed over" in finished.output
    first, second = attempts(cloud, home)
    assert (first.outcome, first.ended) == ("running", None), "it died without a word"
    assert second.outcome == "finished"
    assert_same_run(home.run, reference)


def test_what_a_person_must_mend_is_not_tried_again(cloud: Loopback, home: Home) -> None:
    finished = launch(cloud, home, "optimizer={type: sgd, learning_rate: 1e30}", "training.gradient_clip=null")
    assert finished.code == 2
    assert "error: step" in finished.output
    assert "the update was not made and the run stops" in finished.output
    (row,) = attempts(cloud, home)
    assert row.outcome == "refused"
    assert len(cloud.containers) == 1


@pytest.mark.slow
def test_hours_are_a_hard_stop(cloud: Loopback, home: Home) -> None:
    finished = launch(cloud, home, "training.duration=100000 steps", "checkpoint.every=null", "--max-hours", "0.001")
    assert finished.code == 130
    assert "--max-hours 0.001 is used up; --resume goes on from the last checkpoint" in finished.output
    (row,) = attempts(cloud, home)
    assert row.outcome == "out of hours"
    assert newest_step(home.run) == row.step > 0, "it was saved, and brought home"
    assert cloud.containers[0].function.timeout_secs == 604
    again = launch(cloud, home, "training.duration=100000 steps", "--resume", "--max-hours", "0.001", "--pull", "none")
    assert again.code == 130
    assert attempts(cloud, home)[1].step > row.step, "a new launch has hours of its own"


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--gpu", "H100:8"], "error: --gpu is 'H100:8': a run takes one GPU for now"),
        (["optimizer.learning_rte=1"], "error: command line: optimizer.learning_rte: unknown key"),
        (["init_from=wide"], "init_from: wide does not fit the model section"),
    ],
)
def test_a_mistake_costs_nothing(cloud: Loopback, home: Home, arguments: list[str], line: str) -> None:
    """Others are in test_core_remote_launch.py, without the stand-in."""
    if "init_from=wide" in arguments:
        wide = home.train("name=wide", "model.intermediate_size=64", "training.duration=3 steps")
        shutil.copytree(list_checkpoints(wide / "checkpoints")[-1], home.folder / "wide")
    finished = launch(cloud, home, *arguments)
    assert finished.code == 2
    assert line in finished.output
    assert "Traceback" not in finished.output
    assert cloud.calls == []


def test_a_run_that_is_trained_here_is_not_sent(cloud: Loopback, home: Home) -> None:
    home.run.mkdir(parents=True)
    with acquire_lock(home.run):
        finished = launch(cloud, home)
    assert finished.code == 2
    assert "error: runs/tiny is in use by process" in finished.output
    assert cloud.calls == []


def test_without_a_token_or_an_answer_one_line_says_so(cloud: Loopback, home: Home) -> None:
    no_token = launch(cloud, home, env={"MODAL_TOKEN_ID": "", "MODAL_TOKEN_SECRET": ""})
    assert no_token.code == 2
    assert (
        no_token.output.strip()
        == "error: there is no Modal token on this machine; to get one: modal setup (or modal token set)"
    )
    nobody = launch(cloud, home, env={"MODAL_SERVER_URL": "http://127.0.0.1:9"})
    assert nobody.code == 2
    assert "error: cannot reach Modal at 127.0.0.1:9 (Connection refused)" in nobody.output
    assert cloud.calls == []


@pytest.mark.slow
def test_a_smoke_test_of_its_own(cloud: Loopback, home: Home) -> None:
    command = [word for word in deploy(home) if word not in ("--config", "c.yaml")]
    finished = cloud.run([*command, "--smoke"], cwd=home.folder)
    assert finished.code == 0, finished.output
    assert "smoke test passed" in finished.output
    assert cloud.containers[0].function.resources.gpu_config.gpu_type == GPU
    assert cloud.count("VolumePutFiles2") == 0


def test_secrets_reach_the_container_and_no_log(cloud: Loopback, home: Home) -> None:
    cloud.secrets["huggingface-secret"] = {"HF_TOKEN": "hf_0123456789abcdef"}
    (home.folder / "leaky.py").write_text(
        "import os\nfrom optimizers.enhanced_optimizers import SGDConfig\n"
        "class Leaky(SGDConfig):\n    type: str = 'leaky:Leaky'\n"
        "    def build(self, parameters):\n"
        "        print('token', os.environ.get('HF_TOKEN', 'none'))\n        return super().build(parameters)\n"
    )
    own = ("optimizer={type: 'leaky:Leaky', learning_rate: 0.1}", "training.duration=3 steps")
    path = {"PYTHONPATH": str(home.folder)}
    finished = launch(cloud, home, *own, "--secret", "huggingface-secret", env=path)
    assert finished.code == 0, finished.output
    assert "token ***" in finished.output
    kept = [file for folder in (home.run, there(cloud, home)) for file in folder.rglob("*") if file.is_file()]
    assert not [file for file in kept if b"hf_0123456789abcdef" in file.read_bytes()]
    missing = launch(cloud, home, *own, "name=other", "--secret", "wandb-secret", env=path)
    assert missing.code == 2
    assert "error: --secret: there is no secret 'wandb-secret' on Modal" in missing.output
    assert cloud.count("FunctionMap") == 1


@pytest.mark.slow
def test_weights_to_start_from_travel_too(cloud: Loopback, home: Home) -> None:
    home.train("name=first", "training.duration=5 steps")
    changes = ("init_from=runs/first", "training.duration=6 steps")
    finished = launch(cloud, home, *changes)
    assert finished.code == 0, finished.output
    assert "weights: sending" in finished.output
    expected = home.train(*changes, "name=here")
    assert losses(home.run) == losses(expected)


def test_ctrl_c_saves_there_and_brings_home(cloud: Loopback, home: Home) -> None:
    long = ("training.duration=100000 steps", "checkpoint.every=null")
    knows = deploy(home, *long)
    running = cloud.start(knows, cwd=home.folder)
    running.wait_for("step 40/100000")
    running.interrupt()
    finished = running.wait()
    assert finished.code == 130, finished.output
    assert "stopping: the run is saved there first" in finished.output
    (row,) = attempts(cloud, home)
    assert row.outcome == "stopped"
    assert newest_step(home.run) == row.step > 0


def test_a_terminal_sees_a_bar(cloud: Loopback, home: Home) -> None:
    short = ("training.duration=40 steps", "evaluation.every=20 steps", "--timeout", "0.001", "--pull", "none")
    finished = launch(cloud, home, *short, terminal=True)
    assert finished.code == 0, finished.output
    assert "20/40 [############------------] loss" in finished.output
    assert json.loads((home.run / "metrics.jsonl").read_text().splitlines()[-1])["step"] == 40
    assert cloud.containers[0].function.timeout_secs == 60, "the least that leaves time to start"


@pytest.mark.slow
def test_two_lives_of_one_name_are_told_apart_before_a_gpu_is_paid(cloud: Loopback, home: Home) -> None:
    short = ("training.duration=20 steps", "evaluation.every=null")
    assert launch(cloud, home, *short, "--pull", "none").code == 0
    shutil.rmtree(home.run)
    home.train("training.duration=10 steps", "evaluation.every=null")
    calls = cloud.count("FunctionMap")
    finished = launch(cloud, home, "training.duration=30 steps", *short[1:], "--resume")
    assert finished.code == 2
    assert "error: " in finished.output
    assert cloud.count("FunctionMap") == calls
