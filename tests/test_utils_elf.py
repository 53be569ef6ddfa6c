"""The symbol reader against a hand-made library, the dynamic linker, and files that are no libraries."""

import ctypes
import struct
from pathlib import Path

import pytest

from utils.elf import SECTION_DYNSYM, SECTION_HEADER, SYMBOL, read_defined_symbols


def make_library(order: str, symbols: dict[str, bool]) -> bytes:
    """An ELF64 file that is nothing but a header, a string table and a symbol table (name -> defined)."""
    strings, table = b"\0", struct.pack(order + SYMBOL, 0, 0, 0, 0, 0, 0)
    for name, defined in symbols.items():
        table += struct.pack(order + SYMBOL, len(strings), 0x12, 0, 5 if defined else 0, 0, 0)
        strings += name.encode() + b"\0"
    strings_at = 64
    table_at = strings_at + len(strings)
    sections_at = table_at + len(table)
    sections = [
        (0, 0, 0, 0, 0, 0, 0, 0, 0, 0),
        (0, 3, 0, 0, strings_at, len(strings), 0, 0, 1, 0),
        (0, SECTION_DYNSYM, 0, 0, table_at, len(table), 1, 1, 8, 24),
    ]
    header = b"\x7fELF\x02" + (b"\x01" if order == "<" else b"\x02") + b"\x01" + bytes(9)
    header += struct.pack(order + "HHIQQQIHHHHHH", 3, 62, 1, 0, 0, sections_at, 0, 64, 0, 0, 64, len(sections), 0)
    return header + strings + table + b"".join(struct.pack(order + SECTION_HEADER, *row) for row in sections)


@pytest.mark.parametrize("order", ["<", ">"])
def test_only_defined_names_in_table_order(order: str, tmp_path: Path) -> None:
    path = tmp_path / "library.so"
    path.write_bytes(make_library(order, {"scipy_dgemm_": True, "malloc": False, "cblas_sgemm": True}))
    assert read_defined_symbols(path) == ["scipy_dgemm_", "cblas_sgemm"]


@pytest.mark.parametrize("content", [b"", b"text", b"\x7fELF\x01\x01" + bytes(80), b"\x7fELF\x02\x01" + bytes(80)])
def test_other_files_are_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(OSError, match="not a 64-bit ELF"):
        read_defined_symbols(path)


def test_a_file_cut_short_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "library.so"
    path.write_bytes(make_library("<", {"a": True})[:-70])
    with pytest.raises(OSError, match="not a 64-bit ELF"):
        read_defined_symbols(path)


def test_names_of_a_real_library_resolve() -> None:
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("needs a Linux process map")
    path = next(line.split()[-1] for line in maps.read_text().splitlines() if "/libc.so.6" in line)
    names = read_defined_symbols(path)
    assert "strlen" in names
    assert ctypes.CDLL(path).strlen
