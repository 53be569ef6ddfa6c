"""A forerunner's YAML (`model.dimensions`, `training.hyperparameters`, ...) turned into ours while it is read.

It works on nodes, so an error in a translated file still names the line a person wrote. The keys stand in
`core/forerunner_keys.py`; here is what needs more than moving. Numbers mean what their users meant, not what the
programs did with them by mistake, and each such reading becomes a note that is said once. The optimizers stand in
`core/forerunner_optimizers.py`. A key of theirs that is missing here: add it to a table, or to a function below.
"""

from pathlib import PurePath
from typing import Any, NamedTuple

from core.forerunner_keys import ALL_KEYS, IGNORED, MOVED, REFUSED, REQUIRED, SIGNS
from core.forerunner_optimizers import translate_optimizer
from core.forerunner_work import Work
from utils.errors import ConfigError
from utils.registry import suggestion
from utils.yaml_file import Mapping, Node, Scalar, describe, value_of

SCHEDULES = {"cosine_with_warmup": "cosine", "cosine": "cosine", "linear": "linear"}
DEFAULT_SPECIAL_TOKENS = {"pad": "<pad>", "bos": "<bos>", "eos": "<eos>"}
DEFAULT_SAMPLE_INTERVAL = 1000
DEFAULT_CHECKPOINTING_RATIO = 0.5


class Translation(NamedTuple):
    """A forerunner's file in our schema."""

    root: Mapping
    notes: tuple[str, ...]
    """Each key that was ignored and each number that was read in its meaning, once, with file and line."""
    problems: tuple[str, ...]
    """What cannot be translated."""
    overwrite: bool
    """`overwrite: true`: an existing run of that name may be replaced."""


def is_forerunner(root: Mapping) -> bool:
    """Whether a file is written in a forerunner's schema."""
    return any(root.get(path) is not None for path in SIGNS)


def translate(root: Mapping) -> Translation:
    """Our nodes for a forerunner's. Raises ConfigError for a file that only trains a tokenizer."""
    if is_tokenizer_config(root):
        file = root.place.file
        raise ConfigError(f"{file}: trains a tokenizer, no model: python tools/train-tokenizer.py --config {file}")
    work = Work(root)
    ignored: dict[str, dict[str, Node]] = {}
    _check_keys(work, root, "", ignored)
    _note_ignored(work, ignored)
    _check_required(work)
    for old, new in MOVED.items():
        if (node := work.node(old)) is not None:
            work.put(new, node, node)
    _translate_sources(work)
    _translate_tokenizer(work)
    _translate_model(work)
    _translate_batch(work)
    _translate_duration(work)
    _translate_schedule(work)
    translate_optimizer(work)
    _translate_periods(work)
    _translate_precision(work)
    _translate_checkpointing(work)
    _translate_start(work)
    overwrite = work.flag("overwrite")
    return Translation(work.result(), tuple(work.notes), tuple(work.problems), overwrite)


def _note_ignored(work: Work, ignored: dict[str, dict[str, Node]]) -> None:
    for reason, nodes in ignored.items():
        verb = "is" if len(nodes) == 1 else "are"
        work.note(next(iter(nodes.values())), f"{', '.join(nodes)} {verb} ignored: {reason}")


def _check_keys(work: Work, mapping: Mapping, path: str, ignored: dict[str, dict[str, Node]]) -> None:
    for key, node in mapping.entries.items():
        where = f"{path}.{key}" if path else key
        if where in IGNORED:
            if IGNORED[where] and _asks_for_something(node):
                ignored.setdefault(IGNORED[where], {})[where] = node
        elif where in REFUSED:
            if _asks_for_something(node):
                work.problem(node, where, f"cannot be done: {REFUSED[where]}")
        elif any(known.startswith(where + ".") for known in ALL_KEYS):
            if isinstance(node, Mapping):
                _check_keys(work, node, where, ignored)
            elif value_of(node) is not None:
                work.problem(node, where, f"expected a section with keys of its own, got {describe(node)}")
        elif where not in ALL_KEYS:
            there = {known.removeprefix(path + ".").split(".")[0] for known in ALL_KEYS if known.startswith(path)}
            work.problem(node, where, f"unknown key{suggestion(key, sorted(there))}")


def _asks_for_something(node: Node) -> bool:
    return value_of(node) not in (None, False, 0, "", "none", [], {})


def _check_required(work: Work) -> None:
    for path in REQUIRED:
        if work.node(path) is None:
            parent = work.root.get(path.rpartition(".")[0]) if "." in path else None
            work.problem(parent or work.root, path, "is required, but missing")


def _translate_sources(work: Work) -> None:
    for old, new in (("data.input_file", "data.sources"), ("data.validation_file", "data.validation_sources")):
        if node := work.node(old):
            kind = "text" if PurePath(str(value_of(node))).suffix == ".txt" else "jsonl"
            work.put(new, [{"type": kind, "path": node}], node)
    if work.node("data.validation_file") is None:
        work.put("data.validation_fraction", 0, work.root)
        work.note(
            work.root, "no data.validation_file: nothing is held out or evaluated; data.validation_fraction=0.05 does"
        )
    if node := work.node("data.preprocessing.max_context_size"):
        work.note(node, "documents longer than max_context_size go on in a further row; their end is not cut off")


def _translate_tokenizer(work: Work) -> None:
    path, own = work.node("data.tokenizer_path"), work.root.get("data.tokenizer")
    if path is not None:
        work.put("data.tokenizer", {"type": "file", "path": path}, path)
        if own is not None:
            work.note(own, "data.tokenizer is ignored: vocabulary and special tokens are those of data.tokenizer_path")
        return
    size, tokens = work.node("data.tokenizer.normal_vocab_size"), work.node("data.tokenizer.special_tokens")
    where = own or work.root
    if size is not None and value_of(size) != 256:
        work.note(
            size, f"normal_vocab_size {value_of(size)} is read as 256: without data.tokenizer_path tokens are bytes"
        )
    work.put("data.tokenizer", {"type": "bytes", "special_tokens": tokens or DEFAULT_SPECIAL_TOKENS}, where)


def _translate_model(work: Work) -> None:
    layers = work.node("model.dimensions.num_layers")
    work.put("model.num_hidden_layers", layers or 8, layers or work.root)
    length = work.node("data.preprocessing.max_context_size")
    if length is not None and work.node("model.attention.max_position_embeddings") is None:
        work.put("model.max_position_embeddings", length, length)
    scaling = work.node("model.rope.scaling")
    if isinstance(scaling, Mapping):
        keys = {"rope_type" if key == "type" else key: node for key, node in scaling.entries.items()}
        work.put("model.rope_scaling", Mapping(keys, scaling.place), scaling)
    elif scaling is not None:
        work.problem(scaling, "model.rope.scaling", f"expected {{type: linear, factor: 2}}, got {describe(scaling)}")
    _translate_attention(work)


def _translate_attention(work: Work) -> None:
    flash, flex = (work.node(f"model.attention.use_{name}_attention") for name in ("flash", "flex"))
    size, chosen = work.node("model.attention.flash_block_size"), "auto"
    if work.flag("model.attention.use_flex_attention"):
        chosen = "flex"
    elif flash is not None:
        chosen = "flash" if work.flag("model.attention.use_flash_attention") else "simple"
    where = (flex if chosen == "flex" else flash) or work.root
    has_blocks = size is not None and chosen in ("flash", "flex")
    if chosen != "auto":
        work.put("model.attention", {"type": chosen} | ({"block_size": size} if has_blocks else {}), where)
    if chosen == "flex":
        text = "use_flex_attention without mods is plain attention; model.attention.mods changes it"
        work.note(where, text)
    if size is not None and not has_blocks:
        work.note(size, f"model.attention.flash_block_size is ignored: attention {chosen} has no blocks to choose")


def _translate_checkpointing(work: Work) -> None:
    switch, ratio = (work.node(f"system.gradient_checkpointing{end}") for end in ("", "_ratio"))
    if switch is None or not work.flag("system.gradient_checkpointing"):
        return
    share = value_of(ratio) if ratio is not None else DEFAULT_CHECKPOINTING_RATIO
    if not isinstance(share, int | float) or not 0 < share <= 1:
        work.problem(ratio, "system.gradient_checkpointing_ratio", f"expected a share above 0 and up to 1, got {share}")
        return
    every = round(1 / share)
    wanted = "all" if every == 1 else f"every {every}"
    work.put("training.activation_checkpointing", wanted, switch)
    work.note(switch, f"gradient_checkpointing of {share:g} of the blocks is read as activation_checkpointing {wanted}")


def _translate_batch(work: Work) -> None:
    node, parts = (
        work.node("training.hyperparameters.batch_size"),
        "training.hyperparameters.gradient_accumulation_steps",
    )
    batch, accumulation = work.count("training.hyperparameters.batch_size"), work.count(parts)
    if node is not None and batch is not None:
        work.put("training.batch_size", batch * (accumulation or 1), work.node(parts) or node)
        work.put("training.micro_batch_size", batch, node)
    if accumulation and accumulation > 1:
        text = f"iters, warmup_steps and intervals count updates, each of {accumulation} micro-batches"
        work.note(work.node(parts), text)
    clip = work.node("training.hyperparameters.gradient_clip") or work.optimizer_node("grad_clip_norm")
    work.put("training.gradient_clip", clip, clip or work.root)
    if clip is not None:
        work.note(clip, f"gradients are clipped to a global norm of {value_of(clip)}, not element by element")
    if work.flag("training.early_stopping.enabled"):
        patience = work.node("training.early_stopping.patience")
        work.put("training.early_stopping", patience or 3, patience or work.root)


def _translate_duration(work: Work) -> None:
    epochs, updates = work.node("training.epochs"), work.node("training.hyperparameters.iters")
    if epochs is not None:
        work.put("training.duration", _with_unit(epochs, "epochs"), epochs)
        if updates is not None:
            work.note(updates, "training.hyperparameters.iters is ignored: training.epochs is given")
    elif updates is not None:
        work.put("training.duration", _with_unit(updates, "steps"), updates)
    else:
        work.put("training.duration", "1 epochs", work.root)


def _with_unit(node: Node, unit: str) -> Any:
    return Scalar(f"{node.text} {unit}", f"{node.text} {unit}", node.place) if isinstance(node, Scalar) else node


def _translate_schedule(work: Work) -> None:
    node = work.node("training.scheduler.type") or work.node("training.scheduler.schedule")
    steps, share = (work.node(f"training.scheduler.warmup_{unit}") for unit in ("steps", "ratio"))
    kind = str(value_of(node)) if node else None
    if node is None or kind not in SCHEDULES:
        got = f"got '{kind}'{suggestion(str(kind), SCHEDULES)}" if node else "it is missing"
        where = node or work.root.get("training.scheduler") or work.root
        work.problem(where, "training.scheduler.type", f"expected {', '.join(SCHEDULES)}; {got}")
        return
    work.put("schedule.type", SCHEDULES[kind], node)
    if work.node("training.scheduler.min_lr_ratio") is None:
        work.put("schedule.final_ratio", 0, node)
    work.put("schedule.warmup", 0, node)
    if kind == "cosine" and (steps or share):
        work.note(steps or share, "the warm-up is ignored: scheduler cosine has none; cosine_with_warmup does")
    elif steps is not None:
        work.put("schedule.warmup", steps, steps)
    elif share is not None:
        work.put("schedule.warmup", _with_unit(share, "of training"), share)


def _translate_periods(work: Work) -> None:
    saves, checks = (work.node(f"logging.steps.{name}_interval") for name in ("checkpoint", "validation"))
    if saves is not None:
        work.put("checkpoint.every", saves if _asks_for_something(saves) else None, saves)
    validates = checks is not None and _asks_for_something(checks) and work.node("data.validation_file") is not None
    work.put("evaluation.every", checks if validates else None, checks or work.root)
    period, wanted = work.node("logging.steps.sample_interval"), work.node("logging.log_samples")
    if wanted is not None and not work.flag("logging.log_samples"):
        return
    if period is not None or wanted is not None:
        every = (period or DEFAULT_SAMPLE_INTERVAL) if period is None or _asks_for_something(period) else None
        work.put("evaluation.samples.every", every, period or wanted or work.root)


def _translate_precision(work: Work) -> None:
    mixed, precision = work.node("system.mixed_precision"), work.node("system.precision")
    if mixed is not None:
        wanted = (precision or "float16") if work.flag("system.mixed_precision") else "float32"
        work.put("training.precision", wanted, precision or mixed)


def _translate_start(work: Work) -> None:
    weights, prefix = work.node("data.weight_path"), work.node("resume.checkpoint")
    if weights is not None:
        folder = PurePath(str(value_of(weights))).parent
        work.put("init_from", str(folder), weights)
        work.note(weights, f"weights are taken from the folder {folder}, which must hold config.json beside them")
    if prefix is not None:
        parts = PurePath(str(value_of(prefix))).parts
        run = PurePath(*parts[: parts.index("checkpoints")]) if "checkpoints" in parts else PurePath(*parts)
        work.put("init_from", str(run), prefix)
        work.note(prefix, f"resume.checkpoint: the weights of {run} start this run; to continue a run, use --resume")


def is_tokenizer_config(root: Mapping) -> bool:
    """Whether a file is a forerunner's recipe for a tokenizer: a vocabulary size at the root, and no model."""
    return root.get("tokenizer.vocab_size") is not None and root.get("model") is None


def translate_tokenizer_config(data: dict[str, Any]) -> dict[str, Any]:
    """A forerunner's tokenizer recipe as `{"data": ..., "output_dir": ...}`, `data` being our data section.

    Raises ConfigError when the text or the vocabulary size is not named.
    """
    given, own = data.get("data") or {}, data.get("tokenizer") or {}
    problems = [
        f"{path}: is required, but missing"
        for path, value in (
            ("data.input_file", given.get("input_file")),
            ("tokenizer.vocab_size", own.get("vocab_size")),
        )
        if value is None
    ]
    if problems:
        raise ConfigError(*problems)
    path = str(given["input_file"])
    source = {"type": "text" if path.endswith(".txt") else "jsonl", "path": path}
    if limit := given.get("max_texts_to_train_on"):
        source |= {"max_documents": limit}
    tokens = (given.get("tokenizer") or {}).get("special_tokens") or DEFAULT_SPECIAL_TOKENS
    tokenizer = {"type": "bpe", "vocab_size": own["vocab_size"], "special_tokens": tokens}
    return {"data": {"sources": [source], "tokenizer": tokenizer}, "output_dir": own.get("output_dir")}
