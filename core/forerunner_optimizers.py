"""The optimizers of a forerunner's file: which of ours each name stands for, and which keys it reads.

One file often carries the keys of several optimizers; only those of the chosen one are read, the others are accepted
silently. To translate another optimizer: a function here that returns our section, and a row in
`OPTIMIZERS`.
"""

from collections.abc import Callable
from typing import Any

from core.forerunner_work import Work
from utils.registry import suggestion
from utils.yaml_file import Node, Scalar, Sequence, node_of, value_of

Section = dict[str, Any]
"""Keys of our optimizer section, with nodes of theirs or plain values."""

WEIGHT_DECAY = "training.hyperparameters.weight_decay"


def translate_optimizer(work: Work) -> None:
    """Fill the optimizer section; an optimizer this version lacks becomes a problem that names what there is."""
    node = work.node("training.optimization.optimizer")
    if node is None:
        return
    name = str(value_of(node))
    if name not in OPTIMIZERS:
        there = f"there are: {', '.join(OPTIMIZERS)}"
        text = f"this version has no optimizer '{name}'{suggestion(name, OPTIMIZERS)}; {there}"
        work.problem(node, "training.optimization.optimizer", text)
        return
    _translate_decay(work, node)
    for key, value in OPTIMIZERS[name](work, node).items():
        work.put(f"optimizer.{key}", value, value if isinstance(value, Scalar | Sequence) else node)


def _translate_decay(work: Work, chosen: Node) -> None:
    node = work.node(WEIGHT_DECAY) or work.optimizer_node("weight_decay")
    work.put("optimizer.weight_decay", 0 if node is None else node, node or chosen)
    if node is not None and value_of(node):
        work.note(node, f"weight_decay {value_of(node)} is applied, decoupled, to all but norms, biases and embeddings")


def _adamw(work: Work, chosen: Node) -> Section:
    return {"type": "adamw", **_betas(work), **_named(work, eps=("eps", "epsilon"))}


def _adam(work: Work, chosen: Node) -> Section:
    work.note(chosen, "adam has no weight decay here, as it had none there")
    return _adamw(work, chosen) | {"type": "adam", "weight_decay": 0}


def _adamw_enhanced(work: Work, chosen: Node) -> Section:
    _put_average(work)
    return _adamw(work, chosen) | _named(work, amsgrad=("amsgrad",))


def _lion(work: Work, chosen: Node) -> Section:
    _put_average(work)
    return {"type": "lion", **_betas(work)}


def _sgd(work: Work, chosen: Node) -> Section:
    momentum = _named(work, momentum=("momentum",))
    return {"type": "sgd", **(momentum | _named(work, nesterov=("nesterov",)) if momentum else {"momentum": 0})}


def _sgd_enhanced(work: Work, chosen: Node) -> Section:
    _put_average(work)
    return _sgd(work, chosen)


def _muon(work: Work, chosen: Node) -> Section:
    work.note(
        chosen, "muon keeps the original update scale, for which the learning rate was chosen; AdamW takes the rest"
    )
    own = _named(work, momentum=("momentum",), nesterov=("nesterov",), ns_steps=("ns_steps",), eps=("eps", "epsilon"))
    return {"type": "muon", "update_scale": "original", **_betas(work), **own}


def _shampoo(work: Work, chosen: Node) -> Section:
    work.note(chosen, "shampoo is for the matrices of the layers; AdamW takes the rest")
    own = _named(
        work,
        eps=("eps", "epsilon"),
        update_period=("update_period",),
        start_preconditioning_step=("start_preconditioning_step",),
        preconditioner_epsilon=("preconditioner_epsilon",),
        exponent_override=("exponent_override",),
        grafting=("grafting_optimizer",),
    )
    if "exponent_override" in own:
        work.note(own["exponent_override"], "exponent_override is the power that both sides of a matrix share")
    return {"type": "shampoo", **_betas(work), **own}


def _hybrid(work: Work, chosen: Node) -> Section:
    """The usual pairs are one optimizer of ours, which hands the rest to AdamW itself; others become two groups."""
    matrix, other = _member(work, "matrix_optimizer", "muon"), _member(work, "non_matrix_optimizer", "adamw")
    if matrix is None or other is None:
        return {}
    if matrix in HAND_OVER and other == "adamw":
        return OPTIMIZERS[matrix](work, chosen)
    work.note(chosen, f"hybrid is read as {matrix} for the matrices of the layers and {other} for the rest")
    groups = [(MATRICES, matrix), ("*", other)]
    return {
        "type": "hybrid",
        "groups": [{"match": [glob], "optimizer": OPTIMIZERS[name](work, chosen)} for glob, name in groups],
    }


def _member(work: Work, key: str, usual: str) -> str | None:
    """An optimizer that a hybrid names; None, and a problem, when it is none."""
    node = work.optimizer_node(key)
    name = usual if node is None else str(value_of(node))
    if name in OPTIMIZERS and name != "hybrid":
        return name
    there = ", ".join(each for each in OPTIMIZERS if each != "hybrid")
    work.problem(node, f"training.optimization.{key}", f"expected one of {there}; got '{name}'")
    return None


MATRICES = "*_proj.weight"
HAND_OVER = ("muon", "shampoo")
OPTIMIZERS: dict[str, Callable[[Work, Node], Section]] = {
    "adam": _adam,
    "adamw": _adamw,
    "adamw_enhanced": _adamw_enhanced,
    "hybrid": _hybrid,
    "lion": _lion,
    "muon": _muon,
    "sgd": _sgd,
    "sgd_enhanced": _sgd_enhanced,
    "shampoo": _shampoo,
}


def _named(work: Work, **spellings: tuple[str, ...]) -> Section:
    """Our keys with what stands at theirs, in one of several spellings; without those that are not given."""
    found = {key: work.optimizer_node(*theirs) for key, theirs in spellings.items()}
    return {key: node for key, node in found.items() if node is not None}


def _betas(work: Work) -> Section:
    """`betas: [a, b]`, or `beta1` and `beta2`, of which both are needed."""
    both, first, second = (work.optimizer_node(key) for key in ("betas", "beta1", "beta2"))
    if both is not None:
        return {"betas": both}
    where = first or second
    if where is None:
        return {}
    pair = (first or node_of(0.9, where.place), second or node_of(0.95, where.place))
    return {"betas": Sequence(pair, where.place)}


def _put_average(work: Work) -> None:
    node = work.optimizer_node("ema_momentum")
    if node is not None and value_of(node):
        work.put("training.weight_ema", node, node)
        work.note(node, "ema_momentum is read as training.weight_ema: an average of the weights is kept beside them")
