"""Muon on one matrix and AdamW on anything, in float64, from the papers and not from our code."""

from typing import Any

import numpy as np

from optimizers.newton_schulz import COEFFICIENTS  # Compared with the published ones in their own test.


class MuonOracle:
    """Muon on one matrix, from the papers, in float64. `gradients` come one by one."""

    def __init__(self, weight: np.ndarray, rate: float, decay: float, **options: Any) -> None:
        self.weight, self.rate, self.decay, self.options = weight.copy(), rate, decay, options
        self.momentum, self.second = np.zeros_like(weight), np.zeros(len(weight))
        self.num_updates = 0

    def update(self, gradient: np.ndarray, schedule: float) -> None:
        mu = self.beta()
        self.momentum = mu * self.momentum + (1 - mu) * gradient
        step = mu * self.momentum + (1 - mu) * gradient if self.options.get("nesterov", True) else self.momentum
        direction = self.polynomial(step)
        rows, columns = gradient.shape
        size = max(1.0, rows / columns) ** 0.5
        if self.options.get("update_scale") != "original":
            size = 0.2 * max(rows, columns) ** 0.5
        if self.options.get("normuon"):
            beta = self.options.get("normuon_beta", 0.95)
            self.second = beta * self.second + (1 - beta) * (direction**2).mean(axis=1)
            direction = direction / (np.sqrt(self.second)[:, None] + 1e-8)
            # Algorithm 1 of the paper has 0.2 sqrt(rows columns) / norm.
            direction = direction * (min(rows, columns) ** 0.5 / np.linalg.norm(direction))
        rate = self.rate * schedule
        decays = direction * self.weight >= 0 if self.options.get("cautious_decay") else np.ones_like(direction)
        self.weight = self.weight - rate * self.decay * decays * self.weight - rate * size * direction
        self.num_updates += 1

    def beta(self) -> float:
        end, start = self.options.get("momentum", 0.95), self.options.get("momentum_start")
        if start is None:
            return end
        share = min(self.num_updates / self.options["momentum_warmup_steps"], 1)
        return (1 - share) * start + share * end

    def polynomial(self, matrix: np.ndarray) -> np.ndarray:
        left, values, right = np.linalg.svd(matrix, full_matrices=False)
        values = values / np.sqrt((values**2).sum())
        table = COEFFICIENTS[self.options.get("coefficients", "quintic")]
        for a, b, c in table[: self.options.get("ns_steps", 5)]:
            values = a * values + b * values**3 + c * values**5
        return left @ np.diag(values) @ right


class AdamWOracle(MuonOracle):
    """AdamW on anything."""

    def update(self, gradient: np.ndarray, schedule: float) -> None:
        self.num_updates += 1
        self.momentum = 0.9 * self.momentum + 0.1 * gradient
        self.square = 0.95 * getattr(self, "square", 0.0) + 0.05 * gradient**2
        mean, square = (
            self.momentum / (1 - 0.9**self.num_updates),
            self.square / (1 - 0.95**self.num_updates),
        )
        rate = self.rate * schedule
        self.weight = self.weight * (1 - rate * self.decay) - rate * mean / (np.sqrt(square) + 1e-8)
