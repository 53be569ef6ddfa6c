"""Makes g++ read MLX's header once instead of once for every kernel, which is four fifths of what a kernel costs.

MLX compiles fused CPU kernels with g++, about a second each, and nearly all of that goes into one header. The g++ that
`put_header_first` places on PATH is a script that compiles this header once, when it first compiles, and then shows
the result to the real g++, which takes it only if it fits (after an update of g++ delete `.cache/compiler-*`). The
kernels come out the same, byte for byte.
"""

import os
import shlex
import shutil
import sys
from importlib.metadata import version
from pathlib import Path

import mlx

HEADER = "mlx/backend/cpu/compiled_preamble.h"
FLAGS = "-std=c++17 -O3 -Wall -fPIC"
"""What MLX gives to g++: a header compiled with other flags would be passed over."""
SCRIPT = """#!/bin/sh
if [ "$*" != --version ] && [ ! -e {ready} ]; then
    mkdir -p "$(dirname {ready})"
    {compiler} {flags} -x c++-header -I {include} {header} -o {ready}.$$ > /dev/null 2>&1 && mv {ready}.$$ {ready}
fi
exec {compiler} -I {folder} "$@"
"""


def put_header_first() -> None:
    """Place the script on this process's PATH, which its children inherit. It is kept in `.cache` for the next time."""
    include = Path(next(iter(mlx.__path__))) / "include"
    folder = Path(__file__).resolve().parent.parent / ".cache" / f"compiler-mlx-{version('mlx')}"
    compiler = shutil.which("g++")
    usable = sys.platform == "linux" and (include / HEADER).exists() and os.access(folder.parents[1], os.W_OK)
    if compiler is None or Path(compiler).parent == folder or not usable:
        return
    words = {"ready": folder / f"{HEADER}.gch", "compiler": compiler, "include": include, "header": include / HEADER}
    quoted = {name: shlex.quote(str(word)) for name, word in words.items()}
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = folder / f"g++.{os.getpid()}"
    unfinished.write_text(SCRIPT.format(flags=FLAGS, folder=shlex.quote(str(folder)), **quoted))
    unfinished.chmod(0o755)
    unfinished.replace(folder / "g++")
    os.environ["PATH"] = f"{folder}{os.pathsep}{os.environ['PATH']}"
