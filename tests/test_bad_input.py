"""Everything a person can get wrong, at the command line: `error:` lines that say what and where, exit code 2, no
traceback, nothing half-written. The messages are part of what is tested; read them when you change one."""

import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from core import checkpoint, run
from core.checkpoint import find_damage, list_checkpoints
from core.config import load
from core.run import acquire_lock
from core.training import main, train
from data.tokenizer import BytesTokenizerConfig
from tests.tiny_run import merge, metric_rows, tiny_values, write_corpus
from utils.errors import exit_code_of

SHORT = {"training": {"duration": "6 steps"}, "checkpoint": {"every": "2 steps"}, "evaluation": {"every": None}}


class Command:
    """`python -m core.training`, run in this process, and what it wrote."""

    def __init__(self, folder: Path, capture: pytest.CaptureFixture[str]) -> None:
        self.folder, self.capture = folder, capture
        self.config = folder / "config.yaml"
        self.run = folder / "runs" / "tiny"
        self.write()

    def write(self, **changes: Any) -> None:
        """The tiny config with some sections changed."""
        self.config.write_text(yaml.safe_dump(merge(tiny_values(self.folder), merge(SHORT, changes))))

    def __call__(self, *arguments: str) -> tuple[int, list[str]]:
        """Exit code and the lines on stderr."""
        self.capture.readouterr()
        try:
            code = exit_code_of(lambda: main(["--config", str(self.config), *arguments]))
        except SystemExit as stop:
            code = int(stop.code or 0)
        lines = self.capture.readouterr().err.splitlines()
        return code, lines

    def fails(self, *arguments: str) -> list[str]:
        """The errors of a call that has to end with exit code 2 and nothing but errors on stderr."""
        code, lines = self(*arguments)
        assert code == 2, lines
        assert lines
        assert all(line.startswith("error: ") for line in lines), lines
        return [line.removeprefix("error: ") for line in lines]

    def assert_nothing_written(self) -> None:
        """No run folder, and no leftovers of prepared data."""
        assert not self.run.exists()
        cache = self.folder / "cache"
        left = [path.name for path in cache.glob("*") if not path.name.startswith(".lock")] if cache.is_dir() else []
        assert all(name.startswith(("tokenizer-", "shards-", "text-", "row-counts")) for name in left), left


@pytest.fixture
def command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Command:
    return Command(tmp_path, capsys)


def assert_words(lines: list[str], *words: str) -> None:
    text = "\n".join(lines)
    assert all(word in text for word in words), text


def looks_at_values(b: Any, h: Any, q: Any, k: Any) -> Any:
    return k <= q if q.max().item() > 3 else k < q


def of_a_wrong_shape(b: Any, h: Any, q: Any, k: Any) -> Any:
    return (k >= 0)[0, 0, 0]


def breaks_on_long_rows(b: Any, h: Any, q: Any, k: Any) -> Any:
    if k.size > 24:
        raise KeyError("no such key")
    return k <= q


FLEX = "model:\n  attention:\n    type: flex\n    mods:\n"

YAML_FILES = {
    "misspelt key": (
        "training:\n  durration: 5 steps\n",
        ["config.yaml:2", "training.durration", "did you mean", "duration"],
    ),
    "unknown key": ("data:\n  type: text\n  shuffle: true\n", ["config.yaml:3", "data.shuffle"]),
    "unknown section": ("trainnig: {}\n", ["config.yaml:1", "trainnig", "training"]),
    "unknown type": ("optimizer: {type: adamx}\n", ["config.yaml:1", "adamx", "adamw"]),
    "wrong type": ("training:\n  batch_size: many\n", ["config.yaml:2", "training.batch_size", "many"]),
    "a list for a section": ("model: [1, 2]\n", ["config.yaml:1", "model"]),
    "out of range": ("model:\n  residual_dropout: 1.5\n", ["config.yaml:2", "residual_dropout", "1.5"]),
    "bad length": ("training:\n  duration: 5 parsecs\n", ["config.yaml:2", "training.duration", "5 parsecs", "steps"]),
    "duplicate key": ("seed: 1\nname: a\nseed: 2\n", ["config.yaml:3", "seed", "1"]),
    "broken YAML": ("training: {duration: 5\nseed: 1\n", ["config.yaml:"]),
    "tabs": ("training:\n\tduration: 5\n", ["config.yaml:2"]),
    "python tag": ("name: !!python/object/apply:os.system [echo]\n", ["config.yaml:1", "!!python", "tag"]),
    "a list at the top": ("- 1\n- 2\n", ["config.yaml"]),
    "extends itself": ("extends: config.yaml\n", ["config.yaml:1", "extends"]),
    "extends what is not there": ("extends: [nowhere.yaml]\n", ["config.yaml:1", "nowhere.yaml"]),
    "both batch sizes": ("training: {batch_size: 8, batch_tokens: 2048}\n", ["training", "not both"]),
    "longer than the model": (
        "model: {max_position_embeddings: 128}\ndata: {sequence_length: 512}\n",
        ["data.sequence_length", "512", "max_position_embeddings 128"],
    ),
    "batch that does not divide": (
        "training: {batch_size: 10, micro_batch_size: 4}\n",
        ["config.yaml:1", "training.batch_size", "8 and 12"],
    ),
    "tokens that do not divide": (
        "data: {sequence_length: 32}\ntraining: {batch_tokens: 100}\n",
        ["training.batch_tokens", "96 and 128"],
    ),
    "an unknown mod": (
        FLEX + "      - {type: sliding_windo, window: 9}\n",
        ["config.yaml:5", "model.attention.mods[0].type", "did you mean 'sliding_window'"],
    ),
    "a window that is none": (
        FLEX + "      - {type: sliding_window, window: 0}\n",
        ["config.yaml:5", "window", "got 0"],
    ),
    "a window longer than the model": (
        FLEX + "      - {type: sliding_window, window: 9000}\n",
        ["config.yaml:4", "model.attention.mods", "window 9000", "max_position_embeddings 2048"],
    ),
    "a choice between scores": (
        FLEX + "      - {type: or, mods: [{type: alibi}]}\n",
        ["config.yaml:5", "mods[0]", "alibi changes scores"],
    ),
    "a function that is not there": (
        FLEX + "      - {type: function, mask: no_such_file:my_mask}\n",
        ["config.yaml:5", "mods[0]", "no module 'no_such_file'"],
    ),
    "a function that looks at values": (
        FLEX + f"      - {{type: function, mask: '{__name__}:looks_at_values'}}\n",
        ["config.yaml:4", "looks_at_values", "looks at the values", "mx.where"],
    ),
    "a function of a wrong shape": (
        FLEX + f"      - {{type: function, mask: '{__name__}:of_a_wrong_shape'}}\n",
        ["config.yaml:4", "of_a_wrong_shape", "gives shape [24]", "pairs of shape"],
    ),
    "a name that is a path": ("name: ../elsewhere\n", ["config.yaml:1", "name", "../elsewhere"]),
}


@pytest.mark.parametrize("case", YAML_FILES)
def test_a_wrong_config(command: Command, case: str) -> None:
    text, words = YAML_FILES[case]
    command.config.write_text(text)
    assert_words(command.fails(), *words)
    command.assert_nothing_written()


def test_a_mod_that_fails_while_training(command: Command) -> None:
    mods = [{"type": "function", "mask": f"{__name__}:breaks_on_long_rows"}]
    command.write(model={"attention": {"type": "flex", "mods": mods}})
    (line,) = command.fails()
    assert_words([line], "attention mod 'function", "breaks_on_long_rows' failed: KeyError: 'no such key'")


def test_all_problems_are_named_at_once(command: Command) -> None:
    command.config.write_text("seed: x\ntraining:\n  batch_size: -1\n  durration: 5\nmodell: {}\n")
    lines = command.fails()
    assert len(lines) == 4
    assert_words(lines, ":1: seed", ":3: training.batch_size", ":4: training.durration", ":5: modell")


def test_a_cycle_of_parents_is_shown(command: Command) -> None:
    (command.folder / "parent.yaml").write_text("extends: config.yaml\n")
    command.config.write_text("extends: parent.yaml\n")
    (line,) = command.fails()
    assert_words([line], "config.yaml", "parent.yaml")


@pytest.mark.parametrize("kind", ["missing", "folder", "binary"])
def test_a_config_that_cannot_be_read(command: Command, kind: str) -> None:
    command.config.unlink()
    if kind == "folder":
        command.config.mkdir()
    if kind == "binary":
        command.config.write_bytes(b"\x80\x00\xff")
    (line,) = command.fails()
    assert "config.yaml" in line


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["training.durration=5"], ["command line", "training.durration", "duration"]),
        (["training.duration"], ["training.duration", "="]),
        (["training.duration=[5"], ["training.duration"]),
        (["--resume", "--overwrite"], ["exclude each other"]),
        (["--resum"], ["--resum"]),
    ],
)
def test_a_wrong_command_line(command: Command, arguments: list[str], words: list[str]) -> None:
    assert_words(command.fails(*arguments), *words)
    command.assert_nothing_written()


GOOD_LINE = '{"text": "the red dog sees the small cat"}\n'
CORPORA: dict[str, tuple[bytes | None, list[str]]] = {
    "missing": (None, ["bad.jsonl", "no such file", "data.sources"]),
    "empty": (b"", ["bad.jsonl", "no documents"]),
    "blank lines": (b"\n\n  \n", ["bad.jsonl", "no documents"]),
    "binary": (b"\x89PNG\x00\x08" * 300, ["bad.jsonl", "binary", "unpack"]),
    "cut gzip": (b"\x1f\x8b\x08\x00" * 300, ["bad.jsonl", "cut short or damaged", "again"]),
    "half broken": ((GOOD_LINE + '{"text": \n').encode() * 50, ["50 of 100 lines", "bad.jsonl:2", "1%"]),
    "other key": (b'{"content": "x"}\n' * 50, ["bad.jsonl:1", "no key 'text'", "content"]),
    "not UTF-8": (b'{"text": "\xff"}\n' * 50, ["bad.jsonl:1", "UTF-8"]),
    "one document": (b'{"text": ""}\n' * 3, ["bad.jsonl", "no documents"]),
}


@pytest.mark.parametrize("case", CORPORA)
def test_a_wrong_corpus(command: Command, case: str) -> None:
    content, words = CORPORA[case]
    path = command.folder / "bad.jsonl"
    if content is not None:
        path.write_bytes(content)
    command.write(data={"sources": [{"type": "jsonl", "path": str(path)}]})
    assert_words(command.fails(), *words)
    command.assert_nothing_written()


def test_a_few_broken_lines_are_counted_and_named(command: Command) -> None:
    path = command.folder / "some.jsonl"
    write_corpus(path, num_documents=150)
    path.write_text(path.read_text() + "oops\n" + GOOD_LINE)
    command.write(data={"sources": [{"type": "jsonl", "path": str(path)}], "tokenizer": {"type": "bytes"}})
    said: list[str] = []
    assert exit_code_of(lambda: train(load(command.config), say=said.append).exit_code) == 0
    assert_words(said, "left out: 1 of 152 lines", "some.jsonl:151", "not JSON")


def large_tokenizer(path: Path) -> None:
    """More tokens than 16 bits can number."""
    content = json.loads(BytesTokenizerConfig().build().backend.to_str())
    vocabulary = content["model"]["vocab"]
    first = max([*vocabulary.values(), *(token["id"] for token in content["added_tokens"])]) + 1
    vocabulary |= {f"word{number}": first + number for number in range(66000)}
    path.write_text(json.dumps(content))


def test_a_vocabulary_too_large_for_the_shards(command: Command) -> None:
    path = command.folder / "tokenizer.json"
    large_tokenizer(path)
    command.write(data={"tokenizer": {"type": "file", "path": str(path)}, "token_type": "uint16"})
    assert_words(command.fails(), "uint16 cannot hold a vocabulary of 66257", "auto or uint32")
    command.assert_nothing_written()


@pytest.mark.parametrize(("content", "words"), [(None, ["nowhere"]), ("{}", ["nowhere"]), ("{", ["nowhere"])])
def test_a_tokenizer_that_cannot_be_used(command: Command, content: str | None, words: list[str]) -> None:
    path = command.folder / "nowhere.json"
    if content is not None:
        path.write_text(content)
    command.write(data={"tokenizer": {"type": "file", "path": str(path)}})
    assert_words(command.fails(), *words)
    command.assert_nothing_written()


def test_a_vocabulary_too_small_for_the_tokenizer(command: Command) -> None:
    command.write(model={"vocab_size": 299})
    assert_words(command.fails(), "model.vocab_size is 299", "need 300", "leave it out")
    command.assert_nothing_written()


def test_a_warm_up_longer_than_the_run(command: Command) -> None:
    command.write(schedule={"warmup": "9 steps"})
    assert_words(command.fails(), "schedule.warmup is 9 steps", "only 6")
    command.assert_nothing_written()


def test_data_made_with_another_tokenizer(command: Command) -> None:
    assert command() == (0, [])
    (shards,) = (command.folder / "cache").glob("shards-*")
    manifest = json.loads((shards / "manifest.json").read_text())
    (shards / "manifest.json").write_text(json.dumps(manifest | {"tokenizer_hash": "0" * 64}))
    assert_words(command.fails("--resume"), str(shards), "made with tokenizer 000000000000", "delete the folder")


def test_a_run_whose_tokenizer_was_exchanged(command: Command) -> None:
    assert command() == (0, [])
    BytesTokenizerConfig().build().save(command.run / "tokenizer")
    assert_words(
        command.fails("--resume"), "was trained with tokenizer", "put the run's tokenizer folder back", "a copy"
    )


def test_an_existing_run(command: Command) -> None:
    assert command() == (0, [])
    assert_words(command.fails(), "--resume", "--overwrite")
    lines = command.fails("--resume", "seed=7", "optimizer.learning_rate=0.5")
    assert_words(lines, "optimizer.learning_rate: 0.01 there, 0.5 here", "seed: 42 there, 7 here")
    assert len(lines) == 3


def test_resuming_nothing(command: Command) -> None:
    assert_words(command.fails("--resume"), "no run to resume", "without --resume")
    command.assert_nothing_written()


@pytest.mark.parametrize("damage", ["truncated", "flipped", "no manifest"])
def test_a_damaged_checkpoint_is_passed_over_loudly_and_training_goes_on(command: Command, damage: str) -> None:
    assert command() == (0, [])
    losses = [row.get("train/loss") for row in metric_rows(command.run)]
    newest = list_checkpoints(command.run / "checkpoints")[-1]
    path = newest / ("MANIFEST.json" if damage == "no manifest" else "model.safetensors")
    content = bytearray(path.read_bytes())
    content[-9] ^= 1
    path.write_bytes(content if damage == "flipped" else content[: len(content) // 2])
    code, lines = command("--resume")
    assert code == 0
    assert lines
    assert all(line.startswith("warning: damaged checkpoint passed over: ") for line in lines)
    assert newest.name in lines[0]
    assert [row.get("train/loss") for row in metric_rows(command.run)] == losses
    assert not find_damage(newest)


def test_no_checkpoint_left(command: Command) -> None:
    assert command() == (0, [])
    for folder in list_checkpoints(command.run / "checkpoints"):
        (folder / "state.json").write_text("{}")
    code, lines = command("--resume")
    assert code == 2
    assert sum(line.startswith("warning: ") for line in lines) == 3
    assert any(line.startswith("error: no checkpoint in") and "--overwrite" in line for line in lines)


def fill_after(count: int, original: Callable[..., Any]) -> Callable[..., Any]:
    """Works `count` times, then the disk is full."""
    calls = [0]

    def write(*arguments: Any, **keywords: Any) -> Any:
        calls[0] += 1
        if calls[0] > count:
            raise OSError(errno.ENOSPC, "No space left on device")
        return original(*arguments, **keywords)

    return write


def test_a_disk_that_fills_up_while_saving(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_file", fill_after(1, checkpoint.save_file))
        assert_words(command.fails(), "the disk is full", "earlier checkpoints are whole", "--resume")
    saved = list_checkpoints(command.run / "checkpoints")
    assert [path.name for path in saved] == ["step_00000002"]
    assert not find_damage(saved[0])
    assert not list((command.run / "checkpoints").glob(".tmp-step*"))
    assert command("--resume") == (0, [])
    assert list_checkpoints(command.run / "checkpoints")[-1].name == "step_00000006"


def test_a_disk_that_is_full_at_the_start(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "_replace_text", fill_after(0, run._replace_text))
    assert_words(command.fails(), "the disk is full", str(command.run), "make room, then start again")
    command.assert_nothing_written()


def test_a_place_that_cannot_be_written(command: Command) -> None:
    (command.folder / "file").write_text("")
    lines = command.fails(f"out_dir={command.folder}/file/runs")
    assert_words(lines, "cannot write to", "Not a directory", "out_dir")
    lines = command.fails(f"data.cache_dir={command.folder}/file/cache")
    assert_words(lines, "cannot prepare data", "data.cache_dir")
    command.assert_nothing_written()


def test_a_second_process(command: Command) -> None:
    lock = acquire_lock(command.run)
    assert_words(command.fails(), "is in use by process", "another name")
    lock.close()
    assert command() == (0, [])


def test_a_loss_that_is_no_number(command: Command) -> None:
    objective = {"type": "tests.toy_objectives:BrokenConfig", "row": 32}
    command.write(objective=objective)
    assert_words(command.fails(), "step 5: loss nan", "the run stops", "learning_rate", "--resume")
    assert list_checkpoints(command.run / "checkpoints")[-1].name == "step_00000004"
    command.write(objective={**objective, "row": 0})
    assert_words(command.fails("name=other"), "step 1: loss nan")
