"""Which parameters count as matrices: their dimensions and their names."""

import pytest

from optimizers.selection import select_matrices
from utils.errors import ConfigError

SHAPES = {f"layers.0.{len(shape)}": shape for shape in ((), (2,), (2, 1), (2, 3, 1), (2, 3, 4, 5), (2, 3, 4, 5, 6))}
SHAPES["embed.weight"] = (4, 4)


def test_two_to_four_dimensions_in_the_layers() -> None:
    assert select_matrices(SHAPES, ("*layers.*",)) == {name: SHAPES[name] for name in SHAPES if name[-1] in "234"}
    assert list(select_matrices(SHAPES, ("*layers.*", "embed*"), lambda shape: len(shape) == 2)) == [
        "layers.0.2",
        "embed.weight",
    ]


def test_a_glob_without_a_match_and_a_selection_of_nothing_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"matrices: 'lairs\*' matches no parameter; nearest: layers"):
        select_matrices(SHAPES, ("*layers.*", "lairs*"))
    with pytest.raises(ConfigError, match=r"no matrix matches '\*layers\.\*'; there are: "):
        select_matrices({"layers.0.norm": (3,)}, ("*layers.*",))
    with pytest.raises(ConfigError, match=r"no matrix matches \[\]; there are: "):
        select_matrices(SHAPES, ())
