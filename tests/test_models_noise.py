"""Keys of dropout: never the same twice, the same again from the same key."""

import mlx.core as mx
import numpy as np

from models.noise import drawn_from, drop, next_key


def test_a_given_key_decides_everything_inside() -> None:
    x = mx.ones((50, 50))
    results = []
    for _ in range(2):
        with drawn_from(mx.random.key(7)):
            results.append([np.array(drop(x, 0.5)) for _ in range(2)])
    np.testing.assert_array_equal(results[0], results[1])
    assert (results[0][0] != results[0][1]).any()


def test_without_a_key_the_global_stream_is_used() -> None:
    assert next_key() is None
    mx.random.seed(1)
    first = np.array(drop(mx.ones((50, 50)), 0.5))
    assert (first != np.array(drop(mx.ones((50, 50)), 0.5))).any()
    mx.random.seed(1)
    np.testing.assert_array_equal(first, np.array(drop(mx.ones((50, 50)), 0.5)))


def test_dropping_keeps_the_mean_and_nothing_is_dropped_at_zero() -> None:
    x = mx.ones((400, 400))
    dropped = np.array(drop(x, 0.3))
    assert abs(dropped.mean() - 1) < 0.01
    assert set(np.unique(dropped).round(5)) == {0.0, np.float32(1 / 0.7).round(5)}
    assert drop(x, 0.0) is x
