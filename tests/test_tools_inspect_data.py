"""`tools/inspect-data.py` as a person calls it, in this process: text, numbers and picture of configs, runs, shards."""

import itertools
import json
import re
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest

from core.config import Config, build_section, to_yaml
from data.inspection_report import shorten, spell
from data.loader import Dataset
from data.preparation_report import REPORT_FILE
from tests.commands import Done, call
from tests.prepared_data import write_jsonl
from tests.tiny_run import WORDS, merge, tiny_values
from tests.tool_files import load_tool

tool = load_tool("inspect-data")


def inspect(*arguments: str | Path) -> Done:
    """The tool, in this process."""
    return call(tool.main, *arguments)


def data_values(folder: Path) -> dict[str, Any]:
    """Two sources of bytes with copies and documents that are too short; the second comes in late."""
    rng = np.random.default_rng(0)
    texts = [[" ".join(rng.choice(WORDS, rng.integers(20, 60))) for _ in range(40)] for _ in range(2)]
    write_jsonl(folder / "old.jsonl", ["short", *texts[0], texts[0][3]])
    write_jsonl(folder / "new.jsonl", texts[1])
    return {
        "sources": [
            {"type": "jsonl", "path": str(folder / "old.jsonl"), "name": "old"},
            {"type": "jsonl", "path": str(folder / "new.jsonl"), "name": "new"},
        ],
        "tokenizer": {"type": "bytes"},
        "filters": [{"type": "length", "min_words": 10}],
        "mixture": {
            "by": "tokens",
            "window_tokens": 1000,
            "stages": [{"tokens": "50 %", "weights": {"old": 1}}, {"weights": {"old": 1, "new": 1}}],
        },
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with config.yaml, prepared once."""
    folder = tmp_path_factory.mktemp("inspect")
    config = build_section(Config, merge(tiny_values(folder), {"data": data_values(folder)}))
    (folder / "config.yaml").write_text(to_yaml(config))
    return folder


def dataset_of(folder: Path, **settings: Any) -> tuple[Config, Dataset]:
    """What training would read, by the tool's own way to it."""
    options = tool.make_parser().parse_args(["--config", str(folder / "config.yaml"), *settings.get("arguments", [])])
    subject = tool.open_subject(options)
    return subject.config, subject.dataset


def test_what_is_shown_is_the_batch_that_training_gets_at_that_step(folder: Path) -> None:
    config, dataset = dataset_of(folder)
    step = 13
    batch, _ = next(itertools.islice(dataset.batches(config.rows_per_batch), step - 1, None))
    result = inspect("--config", folder / "config.yaml", "--step", str(step), "--rows", "8", "--tokens")
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("batch of update 13 of 20, epoch 0\n")
    rows = re.split(r"\nrow \d+ of 8 ", result.stdout.split("\nthe whole batch")[0])[1:]
    assert len(rows) == 8
    for row, shown in enumerate(rows):
        lines = shown.splitlines()
        assert lines[0].startswith(f"(row {12 * 8 + row + 1} of the run)")
        pieces = int(batch.segments[row].max())
        for piece in range(1, pieces + 1):
            places = np.flatnonzero(batch.segments[row] == piece)
            told = [*batch.tokens[row, places].tolist(), int(batch.targets[row, places[-1]])]
            assert lines[3 * piece].strip() == shorten(spell(dataset.tokenizer, told), 150).strip()
        table = [line.split()[:6] for line in lines[3 * pieces + 2 :] if line]
        assert [int(cells[4]) for cells in table] == batch.tokens[row].tolist()
        assert [int(cells[5]) for cells in table] == batch.targets[row].tolist()


def test_statistics_and_preparation_are_told_and_progress_goes_elsewhere(folder: Path) -> None:
    result = inspect("--config", folder / "config.yaml", "--rows", "0", f"data.cache_dir={folder / 'other'}")
    assert "reading the corpus" in result.stderr
    assert "reading the corpus" not in result.stdout
    assert "row 1 of" not in result.stdout
    for expected in (
        r"\n    old +\d+ .* 100\.0% +100\.0%\n    new +0 +0 +0\.0% +0\.0%\n",
        r"\n  exact copies of an earlier document: 1 of \d+",
        r"\n        old, document 4; old, document 41\n",
        r"\n  old: \d+ documents, .* 75\.\d % of the mixture",
        r"\n  old: 42 documents, .* read\n",
        r"\n    not trained on, too_few_words: 1 ",
    ):
        assert re.search(expected, result.stdout), (expected, result.stdout)


def test_the_curriculum_is_seen(folder: Path) -> None:
    late = inspect("--config", folder / "config.yaml", "--step", "18", "--rows", "0").stdout
    asked = re.search(r"\n    new .* (\S+)%\n", late)
    assert asked is not None
    assert float(asked[1]) == 50.0
    observed = re.search(r"\n  new((?: +\S+% \(\S+%\))+)", late)
    assert observed is not None
    shares = [float(cell) for cell in re.findall(r"([\d.]+)% \(", observed[1])]
    assert shares[:2] == [0.0, 0.0]
    assert min(shares[4:]) > 30


def test_a_picture_is_written(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "new" / "data.png"
    result = inspect("--config", folder / "config.yaml", "--rows", "0", "--picture", path)
    assert result.stdout.endswith(f"\nwrote {path}\n")
    pixels = (255 * matplotlib.image.imread(path)[..., :3]).astype(np.int64) @ [65536, 256, 1]
    assert len(np.unique(pixels)) > 50
    assert 0x1F6FB4 in pixels  # The first source.


def test_the_picture_gets_what_was_counted(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr("utils.data_plot.plot_data", lambda picture, path: drawn.append(picture))
    inspect("--config", folder / "config.yaml", "--step", "15", "--picture", tmp_path / "data.png")
    config, dataset = dataset_of(folder)
    batch, _ = next(itertools.islice(dataset.batches(config.rows_per_batch), 14, None))
    picture = drawn[0]
    assert list(picture.names) == ["old", "new"]
    assert (picture.step, picture.row_length, picture.num_read) == (15, 32, 82)
    np.testing.assert_array_equal(picture.segments, batch.segments)
    np.testing.assert_array_equal(picture.sources >= 0, batch.weights > 0)
    assert sorted(picture.left_out) == ["held_out", "too_few_words"]
    assert picture.left_out["too_few_words"] == [1, 0]
    assert [int(counts.sum()) for _, counts in picture.lengths] == dataset.store.train.num_documents
    assert picture.asked[0][-1] == picture.observed[0][-1] == 20


def make_run(folder: Path, run: Path, positions: dict[int, Any]) -> Path:
    """A run folder with a tokenizer and checkpoints that hold nothing but the loader's state."""
    _, dataset = dataset_of(folder)
    dataset.tokenizer.save(run / "tokenizer")
    (run / "config.yaml").write_text((folder / "config.yaml").read_text())
    for step, state in positions.items():
        checkpoint = run / "checkpoints" / f"step_{step:08d}"
        checkpoint.mkdir(parents=True)
        saved = {"data": state, "data_fingerprint": dataset.fingerprint}
        (checkpoint / "state.json").write_text(json.dumps(saved) if state != "broken" else "{")
    return run


def test_a_run_is_shown_from_its_nearest_checkpoint(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, dataset = dataset_of(folder)
    states = {step: dataset.state_at(8 * step) for step in (5, 10, 12)}
    run = make_run(folder, tmp_path / "run", {0: None, **states, 11: "broken"})
    used: list[Any] = []
    state_at = Dataset.state_at

    def recorded(self: Dataset, row: int, near: Any = None) -> Any:
        used.append(near)
        return state_at(self, row, near)

    monkeypatch.setattr(Dataset, "state_at", recorded)
    for step, nearest in ((1, None), (5, None), (6, states[5]), (11, states[10]), (12, states[10]), (13, states[12])):
        shown = inspect("--run", run, "--step", str(step))
        assert shown.stdout == inspect("--config", folder / "config.yaml", "--step", str(step)).stdout
        assert used[-2:] == [nearest, None]


def test_a_run_keeps_its_tokenizer(folder: Path, tmp_path: Path) -> None:
    run = make_run(folder, tmp_path / "run", {})
    values = json.loads((run / "tokenizer" / "tokenizer.json").read_text())
    values["added_tokens"][0]["content"] = "<|other|>"
    text = json.dumps(values).replace("<|endoftext|>", "<|other|>")
    (run / "tokenizer" / "tokenizer.json").write_text(text)
    config = (run / "tokenizer" / "tokenizer_config.json").read_text()
    (run / "tokenizer" / "tokenizer_config.json").write_text(config.replace("<|endoftext|>", "<|other|>"))
    assert "\u00ab<|other|>\u00bb" in inspect("--run", run, "--rows", "8").stdout


def test_a_folder_of_shards_is_shown_as_the_text_it_was_made_from(folder: Path, tmp_path: Path) -> None:
    _, dataset = dataset_of(folder)
    data = {key: value for key, value in data_values(folder).items() if key == "mixture"}
    data |= {"type": "shards", "path": str(dataset.store.folder), "sequence_length": 32}
    values = tiny_values(folder) | {"data": data}
    (tmp_path / "shards.yaml").write_text(to_yaml(build_section(Config, values)))
    from_text = inspect("--config", folder / "config.yaml", "--step", "7").stdout
    assert inspect("--config", tmp_path / "shards.yaml", "--step", "7").stdout == from_text


def test_shards_without_a_report_are_shown(folder: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    arguments = ("--config", folder / "config.yaml", "--rows", "0", f"data.cache_dir={cache}")
    inspect(*arguments)
    next(cache.glob(f"shards-*/{REPORT_FILE}")).unlink()
    result = inspect(*arguments, "--picture", tmp_path / "data.png")
    assert result.returncode == 0, result.stderr
    assert f"holds no {REPORT_FILE}" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--step", "0"), "updates 1 to 20"),
        (("--step", "21"), "updates 1 to 20"),
        (("--step", "-3"), "updates 1 to 20"),
        (("--step", "x"), "invalid int value"),
        (("--rows", "-1"), "--rows"),
        (
            ("data.mixture.exhausted=stop", "data.mixture.stages=[]", "--step", "999", "training.duration=999 steps"),
            "used",
        ),
        (
            (
                "data.sources=[{type: jsonl, path: nowhere.jsonl}]",
                "data.mixture.stages=[]",
            ),
            "nowhere.jsonl",
        ),
        (("data={type: shards, path: nowhere, sequence_length: 32}",), "nowhere"),
        (("data.validation_fraction=1", "data.mixture.stages=[]", "data.filters=[]"), "no training document"),
        (("data.mixture.stages=[{weights: {older: 1}}]",), "older"),
        (("model.vocab_size=7",), "model.vocab_size is 7"),
        (("--picture", "{folder}/config.yaml/x.png"), "cannot write"),
        (("--picture", "{folder}"), "cannot write"),
        (("--run", "{folder}"), "not allowed with"),
    ],
)
def test_what_cannot_be_shown_is_one_error_line(folder: Path, arguments: tuple[str, ...], message: str) -> None:
    result = inspect("--config", folder / "config.yaml", *(each.replace("{folder}", str(folder)) for each in arguments))
    refused(result, message)


def refused(result: Done, message: str) -> None:
    """One error line, nothing shown."""
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert result.returncode == 2, result.stdout
    assert len(errors) == 1
    assert message in errors[0]
    assert result.stdout == ""


def test_a_run_that_is_none_or_has_other_data_is_refused(folder: Path, tmp_path: Path) -> None:
    refused(inspect("--run", tmp_path / "nowhere"), "is no run")
    refused(inspect("--run", tmp_path), "is no run")
    refused(inspect(), "--config")
    refused(inspect("--config", tmp_path / "none.yaml"), "none.yaml")
    run = make_run(folder, tmp_path / "run", {3: None})
    refused(inspect("--run", run, "data.packing={method: padded}"), "not what")


def test_a_picture_that_cannot_be_written_leaves_nothing(folder: Path, tmp_path: Path) -> None:
    refused(inspect("--config", folder / "config.yaml", "--step", "0", "--picture", tmp_path / "x.png"), "updates 1")
    assert not (tmp_path / "x.png").exists()
    (tmp_path / "x.png").write_text("mine")
    refused(inspect("--config", folder / "config.yaml", "--step", "0", "--picture", tmp_path / "x.png"), "updates 1")
    assert (tmp_path / "x.png").read_text() == "mine"
