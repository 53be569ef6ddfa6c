"""Makes g++ read MLX's header once instead of once for every kernel, which is four fifths of what a kernel costs.

MLX compiles fused CPU kernels with g++, about a second each, and nearly all of that goes into one header. The g++ that
`put_header_first` places on PATH is a script that compiles this header once, when it first compiles, and then shows
the result to the real g++, which takes it only if it fits. The kernels come out the same, byte for byte.
"""

import atexit
import os
import shlex
import shutil
import sys
import tempfile
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
    """Place the script on this process's PATH, which its children inherit; it goes when the process ends."""
    compiler = shutil.which("g++")
    include = Path(next(iter(mlx.__path__))) / "include"
    if sys.platform != "linux" or compiler is None or not (include / HEADER).exists():
        return
    folder = Path(tempfile.mkdtemp(prefix="pippin-tests-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    words = {"ready": folder / f"{HEADER}.gch", "compiler": compiler, "include": include, "header": include / HEADER}
    quoted = {name: shlex.quote(str(word)) for name, word in words.items()}
    script = folder / "g++"
    script.write_text(SCRIPT.format(flags=FLAGS, folder=shlex.quote(str(folder)), **quoted))
    script.chmod(0o755)
    os.environ["PATH"] = f"{folder}{os.pathsep}{os.environ['PATH']}"
