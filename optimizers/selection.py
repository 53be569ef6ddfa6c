"""Which parameters an optimizer of matrices updates: those of the layers that have enough dimensions; AdamW gets the
rest. Embedding and head are matrices too, but their rows are words, which an update of the whole matrix would mix, and
norms and biases have no second side. To change what counts by default edit `LAYERS`; to change it for one run, the
config's `matrices`."""

from collections.abc import Callable, Sequence

from optimizers.base import Shapes, check_globs, matches, nearest_names
from utils.errors import ConfigError

LAYERS = ("*layers.*",)


def has_sides(shape: Sequence[int]) -> bool:
    """Whether a parameter has two to four dimensions, so that it can be reshaped to a matrix."""
    return 2 <= len(shape) <= 4


def select_matrices(
    shapes: Shapes, globs: Sequence[str], fits: Callable[[Sequence[int]], bool] = has_sides
) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the parameters that match a glob of `optimizer.matrices` and have a shape that fits.

    Raises ConfigError for a glob of one's own that matches nothing, and when nothing is selected.
    """
    check_globs("matrices", [glob for glob in globs if glob not in LAYERS], shapes)
    found = {name: tuple(shape) for name, shape in shapes.items() if fits(shape) and matches(name, globs)}
    if not found:
        near = ", ".join(nearest_names(globs[0] if globs else "*", shapes))
        quoted = ", ".join(f"'{glob}'" for glob in globs)
        raise ConfigError(f"optimizer.matrices: no matrix matches {quoted or '[]'}; there are: {near}")
    return found
