"""`--dry-run`: the numbers of the real run, for models of any size, with nothing allocated and nothing written."""

from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten

from core.assembly import build_parts, count_optimizer_bytes
from core.config import to_yaml
from core.dry_run import dry_run, learning_rates, spread
from core.run import run_folder
from core.training import main
from distributed.group import SingleConfig
from optimizers import OPTIMIZERS
from optimizers.schedules import Timeline
from tests.tiny_run import tiny_config
from utils.cli import exit_code_of
from utils.errors import ConfigError

HUGE = {
    "hidden_size": 5120, "intermediate_size": 25600, "num_hidden_layers": 64, "num_attention_heads": 64,
    "num_key_value_heads": 8, "head_dim": 128, "max_position_embeddings": 4096, "tie_word_embeddings": False,
}  # fmt: skip


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_it_counts_what_training_allocates(tmp_path: Path, capsys: pytest.CaptureFixture[str], optimizer: str) -> None:
    config = tiny_config(
        tmp_path, optimizer={"type": optimizer, "learning_rate": 1e-3}, data={"tokenizer": {"type": "bytes"}}
    )
    parts = build_parts(config, SingleConfig().build(), None, lambda line: None)
    assert dry_run(config) == 0
    printed = capsys.readouterr().out
    assert f"{parts.plan.num_params:,} (" in printed
    assert f"{parts.plan.total_tokens:,} (" in printed
    assert "20, 2 of them warm-up" in printed
    names = {name: array for name, array in parts.optimizer.state_dict().items() if name.startswith("parameters.")}
    parameters: Any = dict(tree_flatten(parts.model.trainable_parameters()))
    assert count_optimizer_bytes(parts.optimizer.groups, parameters) == sum(array.nbytes for array in names.values())


def test_it_writes_nothing(tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    dry_run(config)
    assert sorted(tmp_path.rglob("*")) == before
    assert not run_folder(config).exists()


def test_a_model_of_32_billion_is_counted_without_allocating(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    dry_run(tiny_config(tmp_path, model=HUGE, data={"tokenizer": {"type": "bytes"}}))
    assert mx.get_peak_memory() - before < 10_000_000
    captured = capsys.readouterr()
    assert "(31.2B)" in captured.out
    assert "this machine will not train it" in captured.err


def test_a_limit_that_was_given_is_one_of_any_machine(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="training.memory_limit, 1 kB, is less than the weights alone"):
        dry_run(tiny_config(tmp_path, training={"memory_limit": 1000}))


def test_missing_data_and_tokenizer_are_warnings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = {
        "sources": [{"type": "jsonl", "path": str(tmp_path / "later.jsonl")}],
        "tokenizer": {"type": "file", "path": str(tmp_path / "later")},
    }
    config = tiny_config(tmp_path, data=data, init_from=str(tmp_path / "no-run"))
    assert dry_run(config) == 0
    warnings = capsys.readouterr().err
    for name in ("later.jsonl", str(tmp_path / "later"), "no-run", "counting with a vocabulary of 32,000"):
        assert name in warnings
    assert "error" not in warnings


@pytest.mark.parametrize(
    "sections",
    [
        {"training": {"duration": "3 epochs"}},
        {"evaluation": {"every": "1 epochs"}},
        {"logging": {"layers_every": "1 epochs"}},
    ],
)
def test_epochs_are_known_once_the_data_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], sections: dict[str, Any]
) -> None:
    assert dry_run(tiny_config(tmp_path, **sections)) == 0
    assert "steps of an epoch are known once the data is prepared" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"model": {"vocab_size": 299}}, "model.vocab_size is 299, and tokenizer and objective need 300"),
        ({"schedule": {"warmup": "30 steps"}}, "schedule.warmup is 30 steps"),
        (
            {"objective": {"type": "denoise"}, "model": {"vocab_size": 300}},
            "model.vocab_size is 300, and tokenizer and objective need 301",
        ),
    ],
)
def test_what_can_never_work_is_refused(tmp_path: Path, sections: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        dry_run(tiny_config(tmp_path, **sections))


LONG_CONTEXT = [
    "data.sequence_length=32768", "model.max_position_embeddings=32768", "training.memory_limit=24G",
    "training.batch_size=1", "training.micro_batch_size=1",
]  # fmt: skip


@pytest.mark.parametrize("attention", ["simple", "flash"])
def test_32k_tokens_on_24_gb_need_flash(attention: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--config", "configs/models/model-config-10m.yaml", "--dry-run", *LONG_CONTEXT]
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    code = exit_code_of(lambda: main([*arguments, f"model.attention.type={attention}"]))
    printed = capsys.readouterr()
    assert mx.get_peak_memory() - before < 10**6
    if attention == "flash":
        assert (code, printed.err) == (0, "")
        return
    assert code == 2
    assert printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1
    assert "model.attention.type: flash" in printed.err


def test_documents_kept_apart_by_the_objective_miss_the_fused_kernel_on_metal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(mx.metal, "is_available", lambda: True)
    monkeypatch.setattr(mx.cuda, "is_available", lambda: False)
    for masks in (False, True):
        dry_run(tiny_config(tmp_path, objective={"document_mask": masks}, model={"head_dim": 64}))
        assert ("documents and windows have no fused attention on Metal" in capsys.readouterr().err) == masks


HYBRID = {
    "type": "hybrid",
    "groups": [
        {"match": ["*layers.*"], "optimizer": {"type": "muon"}, "schedule": {"type": "one_cycle"}},
        {"match": ["*"], "optimizer": {"type": "lion"}},
    ],
}


@pytest.mark.parametrize("optimizer", [*({"type": row} for row in OPTIMIZERS), HYBRID])
def test_learning_rates_are_those_the_loop_will_set(tmp_path: Path, optimizer: dict[str, Any]) -> None:
    config = tiny_config(tmp_path, optimizer={"learning_rate": 1e-3, **optimizer})
    parameters = {f"model.layers.0.{name}.weight": mx.zeros((4, 6)) for name in "ab"} | {"norm.weight": mx.zeros((4,))}
    groups = config.optimizer.groups({name: array.shape for name, array in parameters.items()})
    built, timeline = config.optimizer.build(parameters), Timeline(9, 256)
    rates = learning_rates(groups, config.schedule, timeline, range(9))
    for step in range(9):
        assert {name: values[step] for name, values in rates.items()} == built.follow(config.schedule, step, timeline)


@pytest.mark.parametrize(("total", "most"), [(1, 9), (2, 9), (9, 9), (10, 9), (1_000_000, 4000)])
def test_points_are_spread_over_the_run_with_both_ends(total: int, most: int) -> None:
    steps = spread(total, most)
    assert (steps[0], steps[-1], len(steps)) == (0, total - 1, min(total, most))
    gaps = {other - one for one, other in zip(steps, steps[1:], strict=False)}
    assert not gaps or max(gaps) - min(gaps) <= 1


def run_command(folder: Path, *arguments: str, **sections: Any) -> int:
    path = folder / "config.yaml"
    path.write_text(to_yaml(tiny_config(folder, **sections)))
    try:
        return exit_code_of(lambda: main(["--config", str(path), *arguments]))
    except SystemExit as stop:
        return int(stop.code or 0)


def test_the_schedule_is_drawn_and_nothing_else_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(tmp_path, "--dry-run") == 0
    before = sorted(tmp_path.rglob("*"))
    picture = tmp_path / "schedule.png"
    assert run_command(tmp_path, "--dry-run", "--plot-schedule", str(picture), optimizer=HYBRID) == 0
    assert sorted(tmp_path.rglob("*")) == sorted([*before, picture])
    printed = capsys.readouterr().out
    assert f"only {picture} written" in printed
    assert printed.endswith(f"wrote {picture}\n")
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--plot-schedule", "x.png"], "--plot-schedule goes with --dry-run"),
        (["--plot-schedule", "x.pdf", "--dry-run"], "a name that ends in .png, got x.pdf"),
        (["--plot-schedule", "{}/config.yaml/x.png", "--dry-run"], "cannot write {}/config.yaml/x.png"),
        (["--plot-schedule", "{}/x.png", "--dry-run", "training.duration=3 epochs"], "the steps of an epoch are known"),
    ],
)
def test_a_schedule_that_cannot_be_drawn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    assert run_command(tmp_path, *(argument.format(tmp_path) for argument in arguments)) == 2
    *_, error = capsys.readouterr().err.splitlines()
    assert error.startswith("error: ")
    assert words.format(tmp_path) in error
    assert not list(tmp_path.rglob("*.png"))
