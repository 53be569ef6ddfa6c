"""JSON lines and text: each way to be broken is told, long lines are not held, packed files are as plain ones."""

import re

import pytest

from data import compressed
from data.file_sources import JSONLSourceConfig, TextSourceConfig, parse_line
from tests.source_oracles import assert_resumes, json_line, pack, read, write_jsonl
from utils.errors import DataError


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{'text': 1}", "not JSON"),
        (b'{"text": "cut', "not JSON"),
        (b'["text"]', "not an object but list"),
        (b'{"body": "x", "id": 1}', r"no key 'text' \(there are: body, id\)"),
        (b'{"text": null}', "not text but NoneType"),
        (b'{"text": "\xff"}', "not UTF-8"),
        (b'{"text": "a\0b"}', "not JSON"),
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


def test_a_dotted_key_goes_into_objects_unless_there_is_such_a_key():
    line = b'{"a": {"b": {"c": "deep"}, "n": 1}, "a.b": "flat"}'
    assert parse_line(line, "a.b.c") == ("deep", None)
    assert parse_line(line, "a.b") == ("flat", None)
    for key, reason in (
        ("a.x", "no key 'a.x' (there are: b, n)"),
        ("a.n", "'a.n' is not text but int"),
        ("a.n.c", "no key 'a.n.c': 'n' is not an object (there are: b, n)"),
        ("x.y", "no key 'x.y': 'x' is not an object (there are: a, a.b)"),
    ):
        assert parse_line(line, key) == ("", reason)


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
    assert_resumes(JSONLSourceConfig(path=str(path)), every=20)


def test_a_wrong_key_stops_early_and_not_at_the_end_of_a_long_file(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [{"content": "x"}] * 1500)
    with pytest.raises(DataError, match="1000 of 1000 lines") as caught:
        read(JSONLSourceConfig(path=str(path)))
    assert "there are: content" in str(caught.value)
    assert f"{path}:1: no key" in str(caught.value)
    assert "data.sources.key" in str(caught.value)
    assert read(JSONLSourceConfig(path=str(path), key="content"))[0] == ["x"] * 1500


def test_blank_lines_bom_crlf_and_a_missing_last_newline_are_fine(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "a"}\r\n\r\n{"text": "b"}\n\n \n{"text": "c"}')
    source = JSONLSourceConfig(path=str(path))
    assert read(source)[0] == ["a", "b", "c"]
    assert_resumes(source)


def test_a_byte_order_mark_belongs_at_the_beginning_only(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": "a"}, b'\xef\xbb\xbf{"text": "b"}\n', *[{"text": "c"}] * 100])
    texts, reports = read(JSONLSourceConfig(path=str(path)))
    assert texts == ["a", *["c"] * 100]
    assert any("a.jsonl:2: not JSON" in line for line in reports)


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


def test_binary_files_are_refused_and_a_single_nul_is_one_broken_line(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes('{"text": "wide"}\n'.encode("utf-16"))
    with pytest.raises(DataError, match=r"a\.jsonl: binary, not JSON lines .*unpack or convert"):
        read(JSONLSourceConfig(path=str(path)))
    with pytest.raises(DataError, match=r"a\.jsonl: binary"):
        read(TextSourceConfig(path=str(path)))
    write_jsonl(path, [b'{"text": "a\0b"}\n', *({"text": str(number)} for number in range(120))])
    texts, reports = read(JSONLSourceConfig(path=str(path)))
    assert len(texts) == 120
    assert any(":1: not JSON" in line for line in reports)


def test_text_that_is_not_utf8_is_named(tmp_path):
    (tmp_path / "a.txt").write_bytes("caf\u00e9".encode("latin-1"))
    (tmp_path / "b.txt").write_text("fine")
    with pytest.raises(DataError, match=r"a\.txt: not UTF-8 \(byte 3\)") as caught:
        read(TextSourceConfig(path=str(tmp_path)))
    assert "1 of 2 files" in str(caught.value)


def test_one_bad_file_or_part_among_many_is_left_out(tmp_path):
    for number in range(100):
        (tmp_path / f"{number:03}.txt").write_text(f"document {number}")
    (tmp_path / "050.txt").write_bytes(b"\xff\xfe")
    source = TextSourceConfig(path=str(tmp_path))
    texts, reports = read(source)
    assert len(texts) == 99
    assert any("050.txt: not UTF-8" in line for line in reports)
    assert_resumes(source, every=9)
    one = tmp_path / "one.txt"
    one.write_bytes(b"".join(b"bad \xff#" if number == 7 else b"good#" for number in range(100)))
    texts, reports = read(TextSourceConfig(path=str(one), separator="#"))
    assert texts == ["good"] * 99
    assert any("one.txt: part 8, up to byte 41: not UTF-8 (byte 4)" in line for line in reports)


def test_text_files_are_taken_byte_for_byte(tmp_path):
    content = " \ufeff\r\ncaf\u00e9 \u2028 end\t\n\n"
    (tmp_path / "a.txt").write_bytes(content.encode())
    assert read(TextSourceConfig(path=str(tmp_path)))[0] == [content]


@pytest.mark.parametrize("packing", ["", ".gz", ".zst"])
def test_a_longer_document_is_counted_and_what_follows_is_read(tmp_path, packing, monkeypatch):
    monkeypatch.setattr(compressed, "PIECE_BYTES", 1000)
    texts = [str(number) for number in range(150)]
    lines = [json_line(text) for text in texts]
    lines.insert(20, json_line("x" * 50_000))
    path = tmp_path / f"a.jsonl{packing}"
    path.write_bytes(pack([b"".join(lines[:70]), b"".join(lines[70:])], packing))
    source = JSONLSourceConfig(path=str(path), max_document_bytes=5000)
    found, reports = read(source)
    assert found == texts
    assert f"left out: {path}:21: longer than data.sources.max_document_bytes (5,000)" in reports
    assert_resumes(source, every=11)
    text = tmp_path / f"a.txt{packing}"
    text.write_bytes(pack([b"x" * 5001], packing))
    with pytest.raises(DataError, match=r"longer than data\.sources\.max_document_bytes.*\n.*data\.sources\.separator"):
        read(TextSourceConfig(path=str(text), max_document_bytes=5000))
    assert read(TextSourceConfig(path=str(text), max_document_bytes=5001))[0] == ["x" * 5001]


def test_going_on_parses_nothing_again(tmp_path):
    """What lies before the place may even have become nonsense of the same length."""
    lines = [json_line(f"document {number}") for number in range(20)]
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"".join(lines))
    source = JSONLSourceConfig(path=str(path))
    states = [state for _, state in source.documents()]
    path.write_bytes(bytes(len(b"".join(lines[:10]))) + b"".join(lines[10:]))
    assert read(source, states[9])[0] == [f"document {number}" for number in range(10, 20)]


def test_a_file_that_became_shorter_is_told(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": "a"}] * 9)
    source = JSONLSourceConfig(path=str(path))
    state = [state for _, state in source.documents()][-1]
    write_jsonl(path, [{"text": "a"}] * 5)
    with pytest.raises(DataError, match=r"a\.jsonl: changed while it was read"):
        read(source, state)


def test_a_folder_is_searched_for_every_suffix_of_its_kind(tmp_path):
    for name in ("a.jsonl", "b.ndjson", "c.jsonl.gz", "d.json.gz", "e.jsonl.zst", "f.json.zst"):
        packing = name[name.rindex(".") :]
        packing = packing if packing in (".gz", ".zst") else ""
        (tmp_path / name).write_bytes(pack([json_line(name)], packing))
    (tmp_path / "settings.json").write_text("{}")
    assert read(JSONLSourceConfig(path=str(tmp_path)))[0] == sorted(
        path.name for path in tmp_path.iterdir() if path.name != "settings.json"
    )


def test_origin_tells_settings_that_change_documents_and_no_others(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", [{"text": "a"}])
    source = JSONLSourceConfig(path=str(tmp_path / "a.jsonl"))
    for change in ({"key": "b"}, {"max_document_bytes": 5}):
        assert source.model_copy(update=change).origin() != source.origin()
    for change in ({"weight": 2.0}, {"name": "x"}, {"path": str(tmp_path)}, {"max_tokens": 5}):
        assert source.model_copy(update=change).origin() == source.origin()
