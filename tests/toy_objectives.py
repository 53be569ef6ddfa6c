"""Objectives of a user's own, plugged in by import path: the seam that tests use as a person would."""

from typing import Any

import mlx.core as mx

from core.objectives.base import Loss, Objective, ObjectiveConfig
from core.objectives.causal import CausalConfig, CausalObjective
from data.batch import Batch


class CountingConfig(ObjectiveConfig):
    """Next-token loss that counts how often Python runs it."""

    type: str = "tests.toy_objectives:CountingConfig"
    """counts"""

    def build(self, num_tokens: int) -> "Counting":
        return Counting(CausalConfig())


class Counting(CausalObjective):
    """A compiled step runs Python only while it is traced."""

    calls = 0

    def __call__(self, model: Any, batch: Batch) -> Loss:
        Counting.calls += 1
        return super().__call__(model, batch)

    def evaluate(self, model: Any, batch: Batch) -> Loss:
        return super().evaluate(model, batch)


class BrokenConfig(ObjectiveConfig):
    """Next-token loss that is NaN for rows that begin with `token`."""

    type: str = "tests.toy_objectives:BrokenConfig"
    """broken"""
    row: int = 40
    """The loss is NaN for the batch that holds this many rows before it."""

    def build(self, num_tokens: int) -> "Broken":
        return Broken(self.row)


class Broken(Objective):
    """Multiplies the loss with NaN once the optimizer has seen enough."""

    def __init__(self, row: int) -> None:
        self.causal = CausalObjective(CausalConfig())
        self.row = row
        self.seen = 0

    def __call__(self, model: Any, batch: Batch) -> Loss:
        loss = self.causal(model, batch)
        broken = self.seen == self.row
        self.seen += batch.tokens.shape[0]
        return loss._replace(total=loss.total * mx.nan) if broken else loss

    def evaluate(self, model: Any, batch: Batch) -> Loss:
        return self.causal.evaluate(model, batch)


class SteepConfig(BrokenConfig):
    """Next-token loss that stays finite while its gradient does not."""

    type: str = "tests.toy_objectives:SteepConfig"
    """steep"""

    def build(self, num_tokens: int) -> "Steep":
        return Steep(self.row)


class Steep(Broken):
    """Adds the root of zero, whose slope is infinite, once the optimizer has seen enough."""

    def __call__(self, model: Any, batch: Batch) -> Loss:
        loss = self.causal(model, batch)
        broken = self.seen == self.row
        self.seen += batch.tokens.shape[0]
        return loss._replace(total=loss.total + mx.sqrt(loss.total - mx.stop_gradient(loss.total))) if broken else loss
