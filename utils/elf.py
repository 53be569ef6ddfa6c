"""Names that an ELF shared library exports, read with `struct` because binutils may not be installed.

Only what `utils/fast_blas.py` needs: 64-bit files, either byte order, the `.dynsym` section. Layout: System V ABI,
chapter 4 (ELF header, section headers, symbol table).
"""

import struct
from pathlib import Path

SECTION_DYNSYM = 11
SECTION_HEADER = "IIQQQQIIQQ"
SYMBOL = "IBBHQQ"
UNDEFINED = 0


def read_defined_symbols(path: str | Path) -> list[str]:
    """Names in the dynamic symbol table that the file defines itself. Raises OSError when it is no 64-bit ELF file."""
    content = Path(path).read_bytes()
    try:
        order = byte_order(content)
        sections = read_sections(content, order)
        table = next(section for section in sections if section[1] == SECTION_DYNSYM)
        _, _, _, _, strings_at, strings_size, *_ = sections[table[6]]
        strings = content[strings_at : strings_at + strings_size]
        symbols = struct.iter_unpack(order + SYMBOL, content[table[4] : table[4] + table[5]])
        return [name_at(strings, symbol[0]) for symbol in symbols if symbol[0] and symbol[3] != UNDEFINED]
    except (struct.error, StopIteration, IndexError, ValueError, KeyError) as error:
        raise OSError(f"{path} is not a 64-bit ELF library with a dynamic symbol table") from error


def byte_order(content: bytes) -> str:
    """The `struct` prefix of an ELF64 file. Raises ValueError for anything else."""
    if content[:5] != b"\x7fELF\x02":
        raise ValueError("not a 64-bit ELF file")
    return {1: "<", 2: ">"}[content[5]]


def read_sections(content: bytes, order: str) -> list[tuple[int, ...]]:
    """All section headers: name, type, flags, address, offset, size, link, info, alignment, entry size."""
    (offset,) = struct.unpack_from(order + "Q", content, 40)
    size, count = struct.unpack_from(order + "HH", content, 58)
    return [struct.unpack_from(order + SECTION_HEADER, content, offset + i * size) for i in range(count)]


def name_at(strings: bytes, start: int) -> str:
    """The zero-terminated name that begins at `start`."""
    return strings[start : strings.index(b"\0", start)].decode()
