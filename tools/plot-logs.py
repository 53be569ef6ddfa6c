"""`python tools/plot-logs.py runs/A [runs/B ...] [--out FILE]`: one PNG of what the runs' metrics.jsonl hold.

Without --out it goes into `plots/` of the first run. A single run that logged its layers gets a second picture beside
the first. What is drawn is decided in `utils/plotting.py` and `utils/layer_plot.py`.
"""

from collections.abc import Callable
from pathlib import Path

from utils.cli import Parser, run_command
from utils.errors import DataError
from utils.layer_plot import has_layers, plot_layers
from utils.metrics import Row, read_metrics
from utils.plotting import plot_runs


def read_run(folder: Path) -> list[Row]:
    """The rows of one run. Raises DataError when there are none."""
    if not folder.is_dir():
        raise DataError(f"{folder}: no such run folder; give the path of a run, as in runs/quickstart")
    rows = read_metrics(folder / "metrics.jsonl")
    if not rows:
        raise DataError(f"{folder / 'metrics.jsonl'} holds no rows yet; try again after the first logged step")
    return rows


def name_runs(folders: list[Path]) -> list[str]:
    """Folder names; whole paths where two are equal."""
    names = [folder.resolve().name for folder in folders]
    return [name if names.count(name) == 1 else str(folder) for name, folder in zip(names, folders, strict=True)]


def main() -> None:
    """Read the runs, draw them, say where."""
    parser = Parser(description="Plot loss, bits per byte, learning rate and speed of one or more runs.")
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folder, as in runs/quickstart")
    parser.add_argument("--out", type=Path, metavar="FILE", help="PNG to write; default: plots/ of the first run")
    arguments = parser.parse_args()
    folders = list(dict.fromkeys(arguments.runs))
    runs = dict(zip(name_runs(folders), map(read_run, folders), strict=True))
    default = folders[0] / "plots" / ("training.png" if len(folders) == 1 else "comparison.png")
    path = arguments.out or default
    write(path, lambda: plot_runs(runs, path))
    rows = next(iter(runs.values()))
    if len(runs) == 1 and has_layers(rows):
        layers = path.with_name(f"{path.stem}-layers.png") if arguments.out else path.with_name("layers.png")
        write(layers, lambda: plot_layers(rows, layers))


def write(path: Path, draw: Callable[[], None]) -> None:
    """Draw, and say where. Raises DataError when the file cannot be written."""
    try:
        draw()
    except OSError as error:
        raise DataError(f"cannot write {path}: {error.strerror}") from error
    print(f"wrote {path}")


if __name__ == "__main__":
    run_command(main)
