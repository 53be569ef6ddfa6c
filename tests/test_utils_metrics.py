"""metrics.jsonl: what is written is read, a kill at any byte costs at most the last row, a resumed run repeats none."""

import json
import math
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.errors import CheckpointError, DataError
from utils.metrics import MetricsWriter, column, read_metrics

FIGURES = st.floats(allow_nan=True, allow_infinity=True)


def write_rows(path: Path, steps: range | list[int], resume_step: int = 0) -> None:
    """A run that logs `step` and its square."""
    writer = MetricsWriter(path, resume_step=resume_step)
    for step in steps:
        writer.write({"step": step, "tokens": 64 * step, "train/loss": float(step * step)})
    writer.close()


@given(st.lists(FIGURES, max_size=5))
@settings(max_examples=25, deadline=None)
def test_rows_come_back_and_every_line_is_strict_json(tmp_path_factory: pytest.TempPathFactory, values: list) -> None:
    path = tmp_path_factory.mktemp("run") / "metrics.jsonl"
    writer = MetricsWriter(path)
    for step, value in enumerate(values):
        writer.write({"step": step, "train/loss": value, "note": "a\nb"})
    writer.close()
    for line in path.read_text().splitlines():
        json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    read = [row["train/loss"] for row in read_metrics(path)]
    assert len(read) == len(values)
    for got, wrote in zip(read, values, strict=True):
        assert got == wrote if math.isfinite(wrote) else math.isnan(got)


def test_a_row_is_readable_before_the_file_is_closed(tmp_path: Path) -> None:
    writer = MetricsWriter(tmp_path / "metrics.jsonl")
    writer.write({"step": 1})
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"step": 1}]
    writer.close()


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_killed_at_any_byte_and_resumed_equals_never_stopped(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("run")
    whole, killed = folder / "whole.jsonl", folder / "killed.jsonl"
    write_rows(whole, range(1, 13))
    content = whole.read_bytes()
    cut = data.draw(st.integers(0, len(content)))
    killed.write_bytes(content[:cut])
    logged = len(read_metrics(killed))
    assert logged == content[:cut].count(b"\n")
    checkpoint = data.draw(st.integers(0, logged))
    write_rows(killed, range(checkpoint + 1, 13), resume_step=checkpoint)
    assert killed.read_bytes() == content


def test_a_run_from_step_zero_starts_the_file_anew(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write_rows(path, range(4))
    write_rows(path, range(2))
    assert [row["step"] for row in read_metrics(path)] == [0, 1]


def test_a_kill_while_rows_are_dropped_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "metrics.jsonl"
    write_rows(path, range(1, 9))
    before = path.read_bytes()

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        MetricsWriter(path, resume_step=3)
    assert path.read_bytes() == before


@pytest.mark.parametrize("line", ["nonsense", "[1, 2]", '{"tokens": 3}', '{"step": 2', "\xff"])
def test_a_broken_line_is_named_unless_it_is_the_last_and_torn(tmp_path: Path, line: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n' + line.encode("latin-1") + b'\n{"step": 3}\n')
    with pytest.raises(DataError, match=r"metrics\.jsonl:2: "):
        read_metrics(path)
    path.write_bytes(b'{"step": 1}\n' + line.encode("latin-1"))
    assert read_metrics(path) == [{"step": 1}]


def test_no_file_is_a_persons_mistake(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No such file"):
        read_metrics(tmp_path / "metrics.jsonl")


def test_a_folder_that_cannot_be_written_is_a_persons_mistake(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot write"):
        MetricsWriter(tmp_path / "missing" / "metrics.jsonl")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's device that is always full")
def test_a_full_disk_is_named(tmp_path: Path) -> None:
    writer = MetricsWriter(tmp_path / "metrics.jsonl")
    writer._file.close()
    writer._file = open("/dev/full", "wb", buffering=0)  # noqa: SIM115
    with pytest.raises(CheckpointError, match="No space left"):
        writer.write({"step": 1})
    writer.close()


def test_columns_skip_rows_without_the_figure() -> None:
    rows = [{"step": 1, "tokens": 8, "a": 2.0}, {"step": 1, "tokens": 8, "b": 3.0}, {"step": 2, "tokens": 16, "a": 1.0}]
    assert column(rows, "a") == ([1, 2], [2.0, 1.0])
    assert column(rows, "a", "tokens") == ([8, 16], [2.0, 1.0])
