"""The report of a preparation: a source that gave less than was asked says so."""

from pathlib import Path

import pytest

from data.deduplication import DeduplicationConfig
from data.filters import FilterConfig
from data.preparation_report import read_report
from tests.prepared_data import section, write_jsonl


@pytest.mark.parametrize("deduplicate", [DeduplicationConfig(), None])
def test_a_source_read_no_further_that_gives_too_little_says_so(
    tmp_path: Path, deduplicate: DeduplicationConfig | None
) -> None:
    source = write_jsonl(tmp_path / "corpus.jsonl", ["x" * 500] * 400).model_copy(update={"max_tokens": 2000})
    said: list[str] = []
    config = section(tmp_path, sources=(source,), validation_fraction=0, deduplicate=deduplicate)
    preparation = config.preparation(said.append, num_workers=1)
    folder = preparation.shards(preparation.tokenizer())
    warnings = [line for line in said if line.startswith("warning: ")]
    assert read_report(folder)["sources"][0]["notes"] == warnings
    assert len(warnings) == (deduplicate is not None)
    assert all("16 bytes for each of max_tokens, and gave 502 of 2,000 tokens" in line for line in warnings)


def test_a_filter_may_use_a_word_of_ours(tmp_path: Path) -> None:
    class Same(FilterConfig):
        type: str = "same"

        def reason(self, text: str) -> str | None:
            return "duplicate" if text == "b" else None

    source = write_jsonl(tmp_path / "corpus.jsonl", ["a", "b", "a", "c"])
    settings = {"filters": (Same(),), "deduplicate": DeduplicationConfig(), "validation_fraction": 0}
    preparation = section(tmp_path, sources=(source,), **settings).preparation(lambda line: None, num_workers=1)
    (account,) = read_report(preparation.shards(preparation.tokenizer()))["sources"]
    assert (account["kept"]["documents"], account["dropped"]) == (2, {"duplicate": 2})
