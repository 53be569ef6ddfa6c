"""The first updates of a run on one batch, for tests of what a config trains."""

from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten

from core.assembly import build_parts
from core.config import Config
from core.training import make_step, to_micro_batches
from distributed.group import SingleConfig


def take_steps(config: Config, num_steps: int) -> tuple[Any, list[Any], dict[str, np.ndarray]]:
    """Parts after some updates, the outputs of these, and the parameters before them."""
    parts = build_parts(config, SingleConfig().build(), None, lambda line: None)
    before = {name: np.array(array) for name, array in tree_flatten(parts.model.trainable_parameters())}
    step = make_step(parts, SingleConfig().build(), config)
    loader = parts.dataset.batches(8)
    batch = to_micro_batches(next(loader)[0], 8)
    loader.close()
    outputs = []
    for num_updates in range(num_steps):
        refreshed = parts.optimizer.refresh(num_updates)
        outputs.append(step(batch))
        parts.optimizer.install(refreshed)
        mx.eval(outputs[-1], parts.model.state, parts.optimizer.state)
    return parts, outputs, before
