"""Sources: every row gives the texts it was made from and resumes anywhere; what is broken is counted and judged."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data import SOURCES
from data.document_sources import MarkdownSourceConfig, TreeSourceConfig
from data.file_sources import JSONLSourceConfig, TextSourceConfig
from data.hub_source import HubSourceConfig
from data.parquet_source import ParquetSourceConfig
from data.sources import Part, SourceConfig
from data.stdlib_source import StdlibSourceConfig
from data.synthetic import SyntheticSourceConfig, tell
from tests.source_oracles import assert_resumes, json_line, pack, read, write_jsonl, write_parquet
from utils.errors import DataError

TEXTS = st.lists(
    st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0#\r"), max_size=12), max_size=5),
    min_size=1,
    max_size=3,
)


def flat(files: list[list[str]]) -> list[str]:
    return [text for texts in files for text in texts if text]


def make_jsonl(folder: Path, files, packing: str):
    for number, texts in enumerate(files):
        lines = [json_line(text) for text in texts]
        (folder / f"{number}.jsonl{packing}").write_bytes(pack([b"".join(lines[:2]), b"".join(lines[2:])], packing))
    return JSONLSourceConfig(path=str(folder)), flat(files)


def make_text(folder: Path, files, packing: str):
    for number, texts in enumerate(files):
        whole = "##".join(texts).encode()
        (folder / f"{number}.txt{packing}").write_bytes(pack([whole[:7], whole[7:]], packing))
    return TextSourceConfig(path=str(folder), separator="##"), flat(files)


def make_markdown(folder: Path, files, packing: str):
    for number, texts in enumerate(files):
        page = "".join(f"# {number}\n{text}\n" for text in texts).encode()
        (folder / f"{number}.md{packing}").write_bytes(pack([page], packing))
    wanted = [f"# {number}\n{text}\n" for number, texts in enumerate(files) for text in texts]
    return MarkdownSourceConfig(path=str(folder), cut_at_headings=True), wanted


def make_tree(folder: Path, files, packing: str):
    for number, texts in enumerate(files):
        (folder / f"{number}.py").write_bytes("".join(texts).encode())
    return TreeSourceConfig(path=str(folder)), ["".join(texts) for texts in files if "".join(texts)]


def make_parquet(folder: Path, files, packing: str):
    for number, texts in enumerate(files):
        write_parquet(folder / f"{number}.parquet", texts)
    return ParquetSourceConfig(path=str(folder)), flat(files)


def make_hub(folder: Path, files, packing: str):
    for number, texts in enumerate(files):
        write_parquet(folder / f"data/train-{number}.parquet", texts)
        write_parquet(folder / f"data/test-{number}.parquet", ["not this"])
    return HubSourceConfig(dataset=str(folder)), flat(files)


def make_stdlib(folder: Path, files, packing: str):
    """Slow to list, and the same whatever `files`: it resumes in a test of its own."""
    return StdlibSourceConfig(), []


def make_synthetic(folder: Path, files, packing: str):
    num = len(flat(files))
    return SyntheticSourceConfig(documents=max(1, num), seed=num), [tell(num, i) for i in range(max(1, num))]


MAKERS = {
    "jsonl": make_jsonl,
    "text": make_text,
    "markdown": make_markdown,
    "tree": make_tree,
    "parquet": make_parquet,
    "hub": make_hub,
    "stdlib": make_stdlib,
    "synthetic": make_synthetic,
}
PACKED = [(kind, packing) for kind in ("jsonl", "text", "markdown") for packing in (".gz", ".zst")]


@pytest.mark.parametrize(("kind", "packing"), [*((kind, "") for kind in SOURCES if kind != "stdlib"), *PACKED])
@settings(max_examples=10, deadline=None)
@given(files=TEXTS, limit=st.none() | st.integers(1, 8))
def test_every_source_gives_its_texts_and_resumes_anywhere(tmp_path_factory, kind, packing, files, limit):
    source, expected = MAKERS[kind](tmp_path_factory.mktemp("corpus"), files, packing)
    assert type(source).__name__ == SOURCES[kind].split(":")[1]
    source = source.model_copy(update={"max_documents": limit})
    expected = expected[:limit]
    if not expected:
        with pytest.raises(DataError, match="holds no"):
            read(source)
        return
    assert read(source)[0] == expected
    assert_resumes(source)
    for number, (_, state) in enumerate(source.documents(None, lambda line: None)):
        assert state["documents"] == number + 1
        assert len(json.dumps(state)) < 250


@pytest.mark.parametrize("kind", SOURCES)
def test_origin_is_json_and_changes_with_the_files(tmp_path, kind):
    source, _ = MAKERS[kind](tmp_path, [["one"], ["two"]], "")
    before = json.loads(json.dumps(source.origin()))
    assert source.origin() == before
    files = [path for path in tmp_path.rglob("*") if path.is_file() and "test" not in path.name]
    for path in files:
        path.write_bytes(path.read_bytes() + b" ")
        assert source.origin() != before
        before = source.origin()
    assert bool(files) == (kind not in ("stdlib", "synthetic"))


@pytest.mark.parametrize("kind", SOURCES)
def test_a_source_is_called_by_its_name_or_by_what_it_reads(tmp_path, kind):
    source, _ = MAKERS[kind](tmp_path, [["one"]], "")
    assert source.label() == (kind if kind in ("stdlib", "synthetic") else str(tmp_path))
    assert source.model_copy(update={"name": "prose"}).label() == "prose"
    assert source.find_problems() == []


class Listed(SourceConfig):
    """Parts given by a test: a document, `bad`, or `rule` for one left out."""

    type: str = "listed"
    """Not in a table."""
    words: tuple[str, ...] = ()
    """The parts."""

    def walk(self, state, report):
        return self.walk_files([0], state, report)

    def parts(self, file, state):
        for number in range(state["part"], len(self.words)):
            word = self.words[number]
            if word == "bad":
                yield Part("", {"part": number + 1}, problem=f"{number} is bad")
            else:
                yield Part(
                    "" if word == "rule" else word, {"part": number + 1}, left_out=word if word == "rule" else None
                )


def listed(num_good: int, num_bad: int, num_ruled: int = 0) -> Listed:
    return Listed(words=("good",) * num_good + ("bad",) * num_bad + ("rule",) * num_ruled)


@pytest.mark.parametrize(
    ("num_good", "num_bad", "stops"), [(99, 1, False), (98, 1, True), (198, 2, False), (0, 1, True)]
)
def test_one_in_a_hundred_may_be_broken(num_good, num_bad, stops):
    source = listed(num_good, num_bad)
    if stops:
        with pytest.raises(DataError, match=f"{num_bad} of {num_good + num_bad} files read are broken; 1% may be"):
            read(source)
        return
    texts, reports = read(source)
    assert len(texts) == num_good
    assert reports[0] == f"left out: {num_bad} of {num_good + num_bad} files read are broken; 1% may be"
    assert f"left out: {num_good} is bad" in reports


def test_only_the_first_are_named():
    source = listed(1000, 9)
    _, reports = read(source)
    assert sum("is bad" in line for line in reports) == 5
    assert reports[-1] == "left out: ... and 4 more"


def test_it_stops_as_soon_as_a_thousand_tell_and_not_before():
    words = ("bad",) * 10 + ("good",) * 989 + ("bad",) + ("good",) * 5000
    told: list[str] = []
    with pytest.raises(DataError, match="11 of 1000 files"):
        told.extend(text for text, _ in Listed(words=words).documents())
    assert len(told) == 989
    assert len(read(Listed(words=words[1:]))[0]) == 5989


def test_what_is_left_out_by_rule_is_counted_and_never_stops():
    texts, reports = read(listed(2, 0, 50))
    assert texts == ["good"] * 2
    assert reports == ["listed: left out: 50 files of 52: rule"]
    assert_resumes(listed(2, 0, 50))
    lines: list[str] = []
    with pytest.raises(DataError, match="listed: holds no documents"):
        list(listed(0, 0, 3).documents(None, lines.append))
    assert lines == ["listed: left out: 3 files of 3: rule"]


def test_broken_parts_of_a_capped_source_are_judged_too(tmp_path):
    lines: list = [b"broken\n", *({"text": str(number)} for number in range(500))]
    source = JSONLSourceConfig(path=str(write_jsonl(tmp_path / "a.jsonl", lines)), max_documents=300)
    texts, reports = read(source)
    assert texts == [str(number) for number in range(300)]
    assert "left out: 1 of 301 lines read are broken; 1% may be" in reports
    assert_resumes(source, every=50)
    with pytest.raises(DataError, match="1 of 51 lines"):
        read(source.model_copy(update={"max_documents": 50}))
