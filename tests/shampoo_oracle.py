"""Shampoo in float64 NumPy, written from the papers (arXiv 1802.09568, 2002.09018, 2309.06497): block by block, with
eigenvalues for the roots, and plain running means that are corrected where they are used."""

import numpy as np

Numbers = dict[str, np.ndarray]

RATE, DECAY = 0.01, 0.1
MATRIX_OF = {(3, 4, 7): (12, 7), (5, 2, 3, 2): (10, 6)}


def root_of(matrix: np.ndarray, power: float, ridge: float = 1e-5) -> np.ndarray:
    values, vectors = np.linalg.eigh(matrix)
    return vectors * (np.maximum(values, 0) + ridge * np.linalg.norm(matrix)) ** -power @ vectors.T


def shampoo_block(weight: np.ndarray, gradients: list[np.ndarray], grafting: str, power: float) -> np.ndarray:
    """Weights of one block, from the papers: plain running means, corrected where they are used."""
    first_beta, second_beta, statistics_beta, eps = 0.9, 0.95, 0.8, 1e-8
    m, v, left, right = (np.zeros(()) for _ in range(4))
    roots = waiting = None
    for t, g in enumerate(gradients, 1):
        if t - 1 >= 2 and (t - 1) % 2 == 0:
            correction = 1 - statistics_beta ** (t - 1)
            waiting = root_of(left / correction, power), root_of(right / correction, power)
        left = statistics_beta * left + (1 - statistics_beta) * g @ g.T
        right = statistics_beta * right + (1 - statistics_beta) * g.T @ g
        m = first_beta * m + (1 - first_beta) * g
        v = second_beta * v + (1 - second_beta) * g**2
        mean = m / (1 - first_beta**t)
        velocity = sum(first_beta ** (t - 1 - index) * past for index, past in enumerate(gradients[:t]))
        adam = mean / (np.sqrt(v / (1 - second_beta**t)) + eps)
        step = {"adam": adam, "sgd": g, "momentum": velocity, "none": mean}[grafting]
        if roots:
            direction = roots[0] @ mean @ roots[1]
            length = np.linalg.norm(direction) if grafting == "none" else np.linalg.norm(step)
            step = direction * length / np.linalg.norm(direction)
        weight = weight * (1 - RATE * DECAY) - RATE * step
        roots = waiting
    return weight


def parts(length: int, size: int) -> list[slice]:
    """As few equal parts as there can be; the last one may be shorter."""
    part = -(-length // -(-length // size))
    return [slice(start, min(start + part, length)) for start in range(0, length, part)]


def shampoo_oracle(parameters: Numbers, gradients: list[Numbers], size: int, grafting: str, power: float) -> Numbers:
    result = {}
    for name, weight in parameters.items():
        shape = MATRIX_OF.get(weight.shape, weight.shape)
        found = np.empty(shape)
        for rows in parts(shape[0], size):
            for columns in parts(shape[1], size):
                block = [gradient[name].reshape(shape)[rows, columns] for gradient in gradients]
                found[rows, columns] = shampoo_block(weight.reshape(shape)[rows, columns], block, grafting, power)
        result[name] = found.reshape(weight.shape)
    return result
