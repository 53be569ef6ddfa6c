"""`init_from` and `--data` away from home.

Training on a machine that has neither the corpus nor the folder of init_from, only what was prepared from them.
"""

import shutil
from pathlib import Path
from typing import Any

import pytest

from core.assembly import Supplies
from core.config import Config
from core.run import run_folder
from core.training import train
from tests.tiny_run import assert_same_run, losses, quiet_train, tiny_config
from utils.errors import CheckpointError, DataError


def prepared_by(config: Config) -> Path:
    data: Any = config.data
    return data.preparation(lambda line: None).shards(data.build(config.seed, report=lambda line: None).tokenizer)


def train_away(config: Config, supplies: Supplies, **flags: bool) -> Path:
    return train(config, supplies=supplies, say=lambda line: None, **flags).folder


def test_a_run_without_its_sources_is_the_run_with_them(tmp_path: Path) -> None:
    origin = quiet_train(tiny_config(tmp_path, name="first", training={"duration": "3 steps"})).folder
    changes: dict[str, Any] = {"training": {"duration": "4 steps"}, "init_from": str(origin)}
    config = tiny_config(tmp_path, **changes)
    supplies = Supplies(tmp_path / "away" / "data", tmp_path / "away" / "weights")
    shutil.copytree(prepared_by(config), tmp_path / "away" / "data")
    shutil.copytree(origin, tmp_path / "away" / "weights")
    stayed = quiet_train(config).folder.rename(tmp_path / "stayed")
    for gone in (origin, tmp_path / "cache"):
        shutil.rmtree(gone)
    (tmp_path / "corpus.jsonl").unlink()
    with pytest.raises((DataError, CheckpointError)):
        quiet_train(config)
    away = train_away(config, supplies)
    assert losses(away) == losses(stayed)
    assert_same_run(away, stayed)
    longer = config.model_copy(update={"training": config.training.model_copy(update={"early_stopping": 9})})
    assert train_away(longer, Supplies(supplies.data), resume=True) == away, "weights are asked for at step 0 only"


def test_prepared_data_of_other_sources_is_refused(tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    data: Any = config.data
    shards = prepared_by(config)
    other = tiny_config(tmp_path, name="two", data={"sources": [source.model_dump() for source in data.sources] * 2})
    with pytest.raises(DataError, match="was prepared from 1 sources, data.sources has 2"):
        train_away(other, Supplies(shards))
    assert not (run_folder(other) / "config.yaml").exists()
