"""The optimizers of a forerunner's file: which of ours each name stands for, and which keys it reads.

One file often carries the keys of several optimizers; only those of the chosen one are read, the others are accepted
silently. To translate another optimizer: a function here and a row in `OPTIMIZERS`.
"""

from collections.abc import Callable

from core.forerunner_work import Work
from utils.registry import suggestion
from utils.yaml_file import Node, Sequence, node_of, value_of

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
    OPTIMIZERS[name](work, node)


def _translate_decay(work: Work, chosen: Node) -> None:
    node = work.node(WEIGHT_DECAY) or work.optimizer_node("weight_decay")
    work.put("optimizer.weight_decay", 0 if node is None else node, node or chosen)
    if node is not None and value_of(node):
        work.note(node, f"weight_decay {value_of(node)} is applied, decoupled, to all but norms, biases and embeddings")


def _adamw(work: Work, chosen: Node) -> None:
    work.put("optimizer.type", "adamw", chosen)
    _put_betas(work)
    _put(work, "optimizer.eps", work.optimizer_node("eps", "epsilon"))


def _adam(work: Work, chosen: Node) -> None:
    _adamw(work, chosen)
    work.put("optimizer.weight_decay", 0, chosen)
    work.note(chosen, "adam is read as adamw without weight decay, which is the same update")


def _adamw_enhanced(work: Work, chosen: Node) -> None:
    _adamw(work, chosen)
    _put_average(work)


def _lion(work: Work, chosen: Node) -> None:
    work.put("optimizer.type", "lion", chosen)
    _put_betas(work)
    _put_average(work)


def _sgd(work: Work, chosen: Node) -> None:
    work.put("optimizer.type", "sgd", chosen)
    momentum = work.optimizer_node("momentum")
    work.put("optimizer.momentum", 0 if momentum is None else momentum, momentum or chosen)
    if momentum is not None:
        _put(work, "optimizer.nesterov", work.optimizer_node("nesterov"))


def _sgd_enhanced(work: Work, chosen: Node) -> None:
    _sgd(work, chosen)
    _put_average(work)


def _muon(work: Work, chosen: Node) -> None:
    work.put("optimizer.type", "muon", chosen)
    work.put("optimizer.update_scale", "original", chosen)
    for key in ("momentum", "nesterov", "ns_steps"):
        _put(work, f"optimizer.{key}", work.optimizer_node(key))
    _put_betas(work)
    _put(work, "optimizer.eps", work.optimizer_node("eps", "epsilon"))
    work.note(
        chosen, "muon keeps the original update scale, for which the learning rate was chosen; AdamW takes the rest"
    )


def _hybrid(work: Work, chosen: Node) -> None:
    for key, only in (("matrix_optimizer", "muon"), ("non_matrix_optimizer", "adamw")):
        node = work.optimizer_node(key)
        if node is not None and value_of(node) != only:
            text = f"this version's hybrid is muon for matrices and adamw for the rest, got '{value_of(node)}'"
            work.problem(node, f"training.optimization.{key}", text)
    _muon(work, chosen)


OPTIMIZERS: dict[str, Callable[[Work, Node], None]] = {
    "adam": _adam,
    "adamw": _adamw,
    "adamw_enhanced": _adamw_enhanced,
    "hybrid": _hybrid,
    "lion": _lion,
    "muon": _muon,
    "sgd": _sgd,
    "sgd_enhanced": _sgd_enhanced,
}


def _put(work: Work, path: str, node: Node | None) -> None:
    if node is not None:
        work.put(path, node, node)


def _put_betas(work: Work) -> None:
    """`betas: [a, b]`, or `beta1` and `beta2`, of which both are needed."""
    both, first, second = (work.optimizer_node(key) for key in ("betas", "beta1", "beta2"))
    if both is not None:
        work.put("optimizer.betas", both, both)
    elif first is not None or second is not None:
        where = first or second
        assert where is not None
        pair = (first or node_of(0.9, where.place), second or node_of(0.95, where.place))
        work.put("optimizer.betas", Sequence(pair, where.place), where)


def _put_average(work: Work) -> None:
    node = work.optimizer_node("ema_momentum")
    if node is not None and value_of(node):
        work.put("training.weight_ema", node, node)
        work.note(node, "ema_momentum is read as training.weight_ema: an average of the weights is kept beside them")
