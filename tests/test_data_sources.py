"""Sources: exact text, resuming anywhere, and what happens to broken lines and files."""

import json
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.sources import JSONLSourceConfig, StdlibSourceConfig, TextSourceConfig, library_files, parse_line
from utils.errors import DataError

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)


def read(source, state=None):
    lines: list[str] = []
    return [text for text, _ in source.documents(state, lines.append)], lines


def write_jsonl(path: Path, lines: list) -> Path:
    path.write_bytes(b"".join(line if isinstance(line, bytes) else json.dumps(line).encode() + b"\n" for line in lines))
    return path


def assert_resumes(source) -> None:
    """Going on behind any document gives what never stopping gave, warnings included; states survive JSON."""
    reports: list[str] = []
    whole = list(source.documents(None, reports.append))
    assert whole
    for number, (_, state) in enumerate(whole):
        again: list[str] = []
        rest = list(source.documents(json.loads(json.dumps(state)), again.append))
        assert rest == whole[number + 1 :]
        assert again == reports


@settings(max_examples=25, deadline=None)
@given(files=st.lists(st.lists(TEXTS, max_size=5), min_size=1, max_size=3), limit=st.none() | st.integers(1, 8))
def test_jsonl_gives_every_text_and_resumes_anywhere(tmp_path_factory, files, limit):
    folder = tmp_path_factory.mktemp("jsonl")
    for number, texts in enumerate(files):
        write_jsonl(folder / f"{number}.jsonl", [{"text": text} for text in texts])
    expected = [text for texts in files for text in texts if text][:limit]
    source = JSONLSourceConfig(path=str(folder), max_documents=limit)
    if not expected:
        with pytest.raises(DataError, match="holds no documents"):
            read(source)
        return
    assert read(source)[0] == expected
    assert_resumes(source)


@settings(max_examples=25, deadline=None)
@given(
    files=st.lists(st.lists(TEXTS.filter(lambda text: "\0" not in text and "#" not in text), max_size=4), min_size=1),
    cut=st.booleans(),
)
def test_text_files_are_taken_byte_for_byte_and_resume_anywhere(tmp_path_factory, files, cut):
    folder = tmp_path_factory.mktemp("text")
    for number, parts in enumerate(files):
        (folder / f"{number:03}.txt").write_bytes("#".join(parts).encode())
    wholes = files if cut else [["#".join(parts)] for parts in files]
    expected = [text for texts in wholes for text in texts if text]
    source = TextSourceConfig(path=str(folder / "*.txt"), separator="#" if cut else None)
    if expected:
        assert read(source)[0] == expected
        assert_resumes(source)
    else:
        with pytest.raises(DataError, match="holds no documents"):
            read(source)


def test_stdlib_is_the_library_without_tests_and_resumes():
    source = StdlibSourceConfig(max_documents=5)
    assert_resumes(source)
    names = {path.name for path in library_files()}
    assert {"argparse.py", "_pydecimal.py"} <= names
    assert not any({"test", "tests", "site-packages"} & set(path.parts[-4:-1]) for path in library_files())
    texts, _ = read(StdlibSourceConfig())
    assert 5_000_000 < sum(len(text) for text in texts) < 50_000_000


def test_state_holds_only_what_resuming_needs_and_no_text(tmp_path):
    source = JSONLSourceConfig(path=str(write_jsonl(tmp_path / "a.jsonl", [{"text": "x" * 10_000}] * 3)))
    for _, state in source.documents():
        assert len(json.dumps(state)) < 200


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{'text': 1}", "not JSON"),
        (b'{"text": "cut', "not JSON"),
        (b'["text"]', "not an object but list"),
        (b'{"body": "x", "id": 1}', r"no key 'text' \(there are: body, id\)"),
        (b'{"text": null}', "not text but NoneType"),
        (b'{"text": "\xff"}', "not UTF-8"),
        (b'{"text": "\\ud800"}', "surrogate"),
        (b"[" * 100_000, "not JSON"),
    ],
)
def test_each_way_a_line_can_be_broken_is_told(line, reason):
    text, problem = parse_line(line, "text")
    assert text == ""
    assert problem
    assert re.search(reason, problem)


def test_nul_and_escapes_inside_json_are_text():
    assert parse_line(b'{"text": "a\\u0000b\\ud83d\\ude00"}', "text") == ("a\0b\U0001f600", None)


def test_a_few_broken_lines_are_left_out_and_named(tmp_path):
    lines: list = [{"text": f"document {number}"} for number in range(200)]
    lines[7] = b"broken\n"
    lines[150] = b'{"other": 1}\n'
    path = write_jsonl(tmp_path / "a.jsonl", lines)
    texts, reports = read(JSONLSourceConfig(path=str(path)))
    assert len(texts) == 198
    assert any(f"{path}:8: not JSON" in line for line in reports)
    assert any(f"{path}:151: no key 'text'" in line for line in reports)
    assert any("2 of 200 lines" in line for line in reports)


def test_more_than_one_percent_of_broken_lines_stops(tmp_path):
    lines: list = [{"text": f"document {number}"} for number in range(200)]
    lines[5:8] = [b"broken\n"] * 3
    path = write_jsonl(tmp_path / "a.jsonl", lines)
    with pytest.raises(DataError, match="3 of 200 lines") as caught:
        read(JSONLSourceConfig(path=str(path)))
    assert f"{path}:6: not JSON" in str(caught.value)
    assert "data.sources.key" in str(caught.value)


def test_a_wrong_key_stops_early_and_not_at_the_end_of_a_long_file(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [{"content": "x"}] * 5000)
    with pytest.raises(DataError, match="1000 of 1000 lines") as caught:
        read(JSONLSourceConfig(path=str(path)))
    assert "there are: content" in str(caught.value)
    assert read(JSONLSourceConfig(path=str(path), key="content"))[0] == ["x"] * 5000


def test_blank_lines_bom_crlf_and_a_missing_last_newline_are_fine(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "a"}\r\n\r\n{"text": "b"}\n\n{"text": "c"}')
    source = JSONLSourceConfig(path=str(path))
    assert read(source)[0] == ["a", "b", "c"]
    assert_resumes(source)


@pytest.mark.parametrize("source", [JSONLSourceConfig, TextSourceConfig])
def test_missing_empty_and_folder_without_match_are_told_with_a_remedy(tmp_path, source):
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\0")
    (tmp_path / "empty.jsonl").touch()
    for path, message in (
        (tmp_path / "nothing.jsonl", "no such file or folder; check data.sources.path"),
        (tmp_path / "*.csv", "no such file or folder"),
        (tmp_path / "empty.jsonl", "holds no documents"),
    ):
        with pytest.raises(DataError, match=message):
            read(source(path=str(path)))
    (tmp_path / "sub").mkdir()
    with pytest.raises(DataError, match="no .* file in this folder"):
        read(source(path=str(tmp_path / "sub")))
    assert "no such file" in source(path=str(tmp_path / "nothing.jsonl")).find_problems()[0]
    assert source(path=str(tmp_path / "empty.jsonl")).find_problems() == []


def test_binary_files_are_refused(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\x1f\x8b\x08\0\0\0compressed")
    with pytest.raises(DataError, match=r"a\.jsonl: binary, not JSON lines .*unpack"):
        read(JSONLSourceConfig(path=str(path)))
    with pytest.raises(DataError, match=r"a\.jsonl: binary"):
        read(TextSourceConfig(path=str(path)))


def test_text_that_is_not_utf8_is_named(tmp_path):
    (tmp_path / "a.txt").write_bytes("caf\u00e9".encode("latin-1"))
    (tmp_path / "b.txt").write_text("fine")
    with pytest.raises(DataError, match=r"a\.txt: not UTF-8 \(byte 3\)") as caught:
        read(TextSourceConfig(path=str(tmp_path)))
    assert "1 of 2 files" in str(caught.value)


def test_one_bad_file_among_many_is_left_out(tmp_path):
    for number in range(100):
        (tmp_path / f"{number:03}.txt").write_text(f"document {number}")
    (tmp_path / "050.txt").write_bytes(b"\xff\xfe")
    source = TextSourceConfig(path=str(tmp_path))
    texts, reports = read(source)
    assert len(texts) == 99
    assert any("050.txt: not UTF-8" in line for line in reports)
    assert_resumes(source)


def test_origin_changes_when_a_file_does(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": "a"}])
    source = JSONLSourceConfig(path=str(path))
    before = source.origin()
    assert source.origin() == before
    write_jsonl(path, [{"text": "ab"}])
    assert source.origin() != before
    assert JSONLSourceConfig(path=str(path), key="b").origin() != source.origin()
