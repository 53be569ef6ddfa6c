"""Pages and source trees: what is cut, what is removed, what is left alone and counted."""

import pytest

from data.document_sources import MarkdownSourceConfig, TreeSourceConfig, cut_at_headings
from tests.source_oracles import assert_resumes, pack, read
from utils.errors import DataError

PAGE = (
    "intro\n# One\ntext\n## Below\n```sh\n# no heading\n~~~\n```\n# Two\n~~~~\n# no\n~~~\n# no\n~~~~\n#three\n# Three\n"
)


def test_a_page_is_cut_at_its_first_level_outside_code():
    parts = cut_at_headings(PAGE)
    assert "".join(parts) == PAGE
    assert [part.split("\n")[0] for part in parts] == ["intro", "# One", "# Two", "# Three"]
    assert cut_at_headings("# One\n") == ["# One\n"]
    assert cut_at_headings("") == [""]


@pytest.mark.parametrize(
    ("page", "rest"),
    [
        ("---\ntitle: x\ntags: [a]\n---\n\n# Text\n", "# Text\n"),
        ("+++\r\ntitle = 1\r\n+++\r\ntext", "text"),
        ("---\n---\ntext\n", "text\n"),
        ("---\na: b\n---\ntext\n---\nmore\n", "text\n---\nmore\n"),
        ("---\ntitle: x\n---", ""),
        ("\ufeff---\na: b\n---\ntext", "text"),
        ("text\n---\nnot front\n---\n", "text\n---\nnot front\n---\n"),
        ("---\nnever closed\n", "---\nnever closed\n"),
        ("----\na\n----\n", "----\na\n----\n"),
        ("---\na\n+++\nb", "---\na\n+++\nb"),
    ],
)
def test_front_matter_is_removed_and_nothing_else(tmp_path, page, rest):
    (tmp_path / "a.md").write_bytes(page.encode())
    (tmp_path / "b.md").write_text("second")
    assert read(MarkdownSourceConfig(path=str(tmp_path)))[0] == [text for text in (rest, "second") if text]
    kept = MarkdownSourceConfig(path=str(tmp_path), keep_front_matter=True)
    assert read(kept)[0] == [page, "second"]


def test_pages_are_whole_unless_cut_and_restructured_text_never_is(tmp_path):
    (tmp_path / "a.md.gz").write_bytes(pack([PAGE.encode()], ".gz"))
    (tmp_path / "b.rst").write_text(PAGE)
    assert read(MarkdownSourceConfig(path=str(tmp_path)))[0] == [PAGE, PAGE]
    cut = MarkdownSourceConfig(path=str(tmp_path), cut_at_headings=True)
    assert read(cut)[0] == [*cut_at_headings(PAGE), PAGE]
    assert_resumes(cut)


def test_a_page_in_another_encoding_is_counted_as_broken(tmp_path):
    (tmp_path / "a.md").write_bytes(b"caf\xe9")
    with pytest.raises(DataError, match=r"1 of 1 files read are broken(.|\n)*a\.md: not UTF-8 \(byte 3\)"):
        read(MarkdownSourceConfig(path=str(tmp_path)))


def make_tree(root):
    files = {
        "src/b.py": b"print()\n",
        "a.C": b"int x;\n",
        "src/readme.txt": b"not a suffix",
        "node_modules/x.js": b"ignored",
        "src/build/y.py": b"ignored",
        ".hidden/z.py": b"ignored",
        "src/.z.py": b"ignored",
        "bin.py": b"\0\1",
        "zipped.py": b"PK\x03\x04\0",
        "old.py": b"caf\xe9",
        "huge.py": b"x" * 2001,
        "empty.py": b"",
    }
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    (root / "link.py").symlink_to(root / "src/b.py")
    (root / "linked").symlink_to(root / "src")
    return TreeSourceConfig(path=str(root), max_document_bytes=2000)


def test_a_tree_gives_its_sources_once_and_counts_what_it_leaves_out(tmp_path):
    source = make_tree(tmp_path)
    texts, reports = read(source)
    assert texts == ["int x;\n", "print()\n"]
    assert reports == [
        f"{tmp_path}: left out: 2 files of 7: binary",
        f"{tmp_path}: left out: 1 files of 7: more than 2,000 bytes",
        f"{tmp_path}: left out: 1 files of 7: not UTF-8",
    ]
    assert_resumes(source)


def test_a_path_header_other_suffixes_and_other_folders(tmp_path):
    plain = make_tree(tmp_path)
    source = plain.model_copy(update={"path_header": True})
    assert read(source)[0] == ["File: a.C\nint x;\n", "File: src/b.py\nprint()\n"]
    wide = source.model_copy(update={"path_header": False, "suffixes": (".txt", ".js"), "ignored": ("src",)})
    assert read(wide)[0] == ["ignored"]
    assert source.origin() != plain.origin() != wide.origin()


def test_a_tree_that_is_none_is_told(tmp_path):
    with pytest.raises(DataError, match="no such folder; check data.sources.path"):
        read(TreeSourceConfig(path=str(tmp_path / "nothing")))
    (tmp_path / "a.png").touch()
    with pytest.raises(DataError, match="no source file in this folder; check data.sources.suffixes"):
        read(TreeSourceConfig(path=str(tmp_path)))
    assert TreeSourceConfig(path=str(tmp_path)).find_problems() != []


def test_a_source_file_that_vanishes_is_told(tmp_path):
    (tmp_path / "a.py").write_text("a")
    (tmp_path / "b.py").write_text("b")
    documents = TreeSourceConfig(path=str(tmp_path)).documents()
    next(documents)
    (tmp_path / "b.py").unlink()
    with pytest.raises(DataError, match=r"b\.py: cannot be read: No such file"):
        next(documents)
