"""SOAP in float64, after Vyas et al. 2024 (arXiv 2409.11321), algorithms 3 and 4, in the order of a training loop that
makes new bases beside an update. Where ours gives each new column the place of an old one, this sorts them by
eigenvalue and reorders the second moment with them, as the authors do. `update_oracles.py` runs it."""

from typing import Any

import numpy as np

BETAS, SHAMPOO_BETA, EPS = (0.9, 0.95), 0.8, 1e-8
MATRIX_OF = {(2, 3, 7): (6, 7), (3, 2, 4, 2): (6, 8)}
"""What the oracle takes for the matrix of a tensor."""


def eigenvectors(matrix: np.ndarray, basis: np.ndarray, exact: bool) -> tuple[np.ndarray, np.ndarray]:
    """The new basis by falling eigenvalue, and the order in which it took the old columns (algorithm 4)."""
    order = np.argsort(-np.einsum("ij,ij->j", basis, matrix @ basis))
    vectors = np.linalg.eigh(matrix)[1][:, ::-1] if exact else np.linalg.qr((matrix @ basis)[:, order])[0]
    return vectors, order


def soap_oracle(shape: tuple[int, ...], max_dim: int, frequency: int, method: str, started: int = 0) -> Any:
    """The step for a parameter of this shape; `state` may hold what `started` earlier updates left there."""

    def begin(state: dict[str, Any], matrix: np.ndarray) -> None:
        state.setdefault("m", np.zeros(matrix.shape))
        state.setdefault("v", np.zeros(matrix.shape))
        for side, size in enumerate(matrix.shape):
            state.setdefault(f"Q{side}", np.eye(size))
            state.setdefault(f"L{side}", np.zeros((size, size)))

    def step(
        old: np.ndarray, gradient: np.ndarray, state: dict[str, Any], number: int, rate: float, decay: float
    ) -> Any:
        matrix = gradient.reshape(MATRIX_OF.get(shape, shape))
        begin(state, matrix)
        done, number = number - 1 + started, number + started
        waiting = {}
        if done == 1 or done and done % frequency == 0:
            for side, size in enumerate(matrix.shape):
                if size <= max_dim:
                    exact = done == 1 or method == "eigh"
                    waiting[side] = eigenvectors(state[f"L{side}"], state[f"Q{side}"], exact)
        left, right = state["Q0"], state["Q1"]
        state["m"] = BETAS[0] * state["m"] + (1 - BETAS[0]) * matrix
        state["v"] = BETAS[1] * state["v"] + (1 - BETAS[1]) * (left.T @ matrix @ right) ** 2
        mean, square = state["m"] / (1 - BETAS[0] ** number), state["v"] / (1 - BETAS[1] ** number)
        change = left @ ((left.T @ mean @ right) / (np.sqrt(square) + EPS)) @ right.T
        for side, product in enumerate((matrix @ matrix.T, matrix.T @ matrix)):
            state[f"L{side}"] = SHAMPOO_BETA * state[f"L{side}"] + (1 - SHAMPOO_BETA) * product
        for side, (basis, order) in waiting.items():
            state[f"Q{side}"] = basis
            state["v"] = np.take(state["v"], order, axis=side)
        return old * (1 - rate * decay) - rate * change.reshape(shape)

    return step
