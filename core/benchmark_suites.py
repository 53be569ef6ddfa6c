"""What `tools/benchmark.py` measures: for each suite its cases, for each case its variants, and the bars to reach.

A variant is a worker of tools/benchmark_workers/ and what it is told, as JSON; the tool starts it. What this machine or
a config cannot do becomes a variant that says why it is skipped. To add a suite, write a function here that returns
cases, a worker, and a row in `SUITES`; a figure to reach is a row in `BARS`.
"""

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import mlx.core as mx
from mlx.utils import tree_flatten

from core.benchmark_data import BARS as DATA_BARS
from core.benchmark_data import SUITES as DATA_SUITES
from core.config import Config, build_section, load
from core.precision import resolve_precision
from models.attention.base import AttentionConfig
from models.weights import save_weights
from optimizers import OPTIMIZERS
from utils.benchmark_report import Bar, Case, Variant, command_of
from utils.benchmarking import Row
from utils.chips import this_chip
from utils.errors import ConfigError
from utils.fast_blas import needs_openblas
from utils.machine import Machine
from utils.memory import memory_limit
from utils.schema import OneOf
from utils.yaml_file import write_yaml

REPOSITORY = Path(__file__).resolve().parent.parent
WORKERS, CONFIGS = REPOSITORY / "tools" / "benchmark_workers", REPOSITORY / "configs"
OFF = ("objective.chunk_size=null", "training.activation_checkpointing=none")
ON = ("objective.chunk_size=128", "training.activation_checkpointing=all")


class Shape(NamedTuple):
    """A llama and a batch."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    batch_size: int
    length: int

    def values(self, name: str) -> Row:
        """The config file of this shape."""
        model = {"type": "llama", "max_position_embeddings": self.length} | dict(list(self._asdict().items())[:5])
        return {
            "name": name,
            "model": model,
            "data": {"type": "text", "sequence_length": self.length},
            "training": {"batch_size": self.batch_size},
        }


SHAPES = {
    "tiny": Shape(512, 32, 64, 2, 2, 2, 32),
    "34m": Shape(32768, 384, 1024, 12, 6, 4, 512),
    "124m": Shape(50304, 768, 2048, 12, 12, 16, 1024),
    "350m": Shape(50304, 1024, 2688, 24, 16, 8, 2048),
}
"""tiny is for tests; 34m the comparison with mlx-lm; the others are for a GPU."""

LLAMA, GPT2 = "newton-schulz/llama", "newton-schulz/GPT-2"
WHOLE = "a step with adamw"
MLX_MUON, ALL_STEP = "mlx.optimizers.Muon", "share/updates beside a step of 16,384 tokens"
ATTENTION, WINDOW, LOSS = "attention/causal 2048", "attention/window 256 of 4096", "loss/head and loss"
MEMORY, STEP = "memory/checkpointing", "step/one step"
PEER = "mlx-lm + OpenBLAS" if needs_openblas() else "mlx-lm"
SECONDS, PEAK, ABOVE = "seconds", "peak_bytes", "peak_above_bytes"
BARS = (
    Bar("flash, 1x8x2048x64 backward: times less peak than simple", ATTENTION, ABOVE, "simple", "flash", ">=", 4.0),
    Bar("the same: times less peak than MLX's own attention", ATTENTION, ABOVE, "mx.fast", "flash", ">=", 4.0),
    Bar("the same: time against simple", ATTENTION, SECONDS, "flash", "simple", "<=", 1.3),
    Bar("flex, window 256 at 4096: times faster than dense simple", WINDOW, SECONDS, "simple", "flex", ">=", 3.0),
    Bar("the same: times less peak", WINDOW, ABOVE, "simple", "flex", ">=", 4.0),
    Bar("chunked loss: times less peak than plain", LOSS, ABOVE, "plain", "auto", ">=", 4.0),
    Bar("the same: times less peak than MLX's own loss", LOSS, ABOVE, "mx.nn", "auto", ">=", 4.0),
    Bar("the same: time against plain", LOSS, SECONDS, "auto", "plain", "<=", 1.1),
    Bar("checkpointing all: times less activation memory", MEMORY, ABOVE, "none", "all", ">=", 4.0),
    Bar("the same: step time against none", MEMORY, SECONDS, "all", "none", "<=", 1.4),
    Bar("whole step, savers on: peak against mlx-lm", STEP, PEAK, "ours, savers on", PEER, "<=", 0.36),
    Bar("the same: time against mlx-lm", STEP, SECONDS, "ours, savers on", PEER, "<=", 1.1),
    Bar("whole step, savers off: tokens/s against mlx-lm", STEP, SECONDS, PEER, "ours, savers off", ">=", 0.98),
    Bar("memory planned for ours: off by", STEP, "plan_error", "ours", None, "<=", 0.15),
    Bar("for ours, savers on: off by", STEP, "plan_error", "ours, savers on", None, "<=", 0.15),
    Bar("compiled variants of our step", STEP, "compiled_variants", "ours", None, "<=", 1),
    Bar("Muon, 12 layers of 768, llama: times faster than MLX's", LLAMA, "seconds", MLX_MUON, "ours", ">=", 1.2),
    Bar("the same, GPT-2", GPT2, "seconds", MLX_MUON, "ours", ">=", 1.2),
    Bar("the same, llama: graph nodes of MLX's over ours", LLAMA, "nodes", MLX_MUON, "ours", ">=", 5),
    Bar("Muon's update beside a step of 16k tokens, 40M model", ALL_STEP, "seconds", "muon", WHOLE, "<=", 0.15),
    *DATA_BARS,
)


class Work(NamedTuple):
    """What the suites are asked to measure."""

    config: Config
    """The model and the batch; its vocabulary is known."""
    path: Path
    """The file of `config`."""
    folder: Path
    """Where a suite may write."""
    machine: Machine
    peer_blas: str
    """openblas, as-installed or both: which of mlx-lm's."""
    peer_python: str
    """The interpreter that has torch."""

    @property
    def precision(self) -> str:
        """What ours computes in on this device."""
        return resolve_precision(self.config.training.precision)

    @property
    def batch(self) -> tuple[int, int]:
        """Rows and length."""
        return self.config.rows_per_batch, self.config.data.sequence_length

    def about(self) -> Row:
        """Columns for cases of the whole model."""
        rows, length = self.batch
        model = self.config.model
        about = {"model": self.config.name, "parameters": model.num_params(), "batch": rows, "length": length}
        about["flops_per_token"] = model.flops_per_token(length)
        return about | {"precision": self.precision} | self.peak_columns()

    def peak_columns(self) -> Row:
        """The peak that an MFU is a share of, named."""
        peak = self.machine.peaks[self.precision]
        return {"peak_flops": peak.flops, "peak_origin": peak.origin}


def step_suite(work: Work) -> list[Case]:
    """A whole training step: ours three times, the bare one, the peers."""
    rows, length = work.batch
    spec = {"folder": str(save_model(work)), "num_rows": rows, "length": length} | whole_model(work)
    variants = [ours(work, "ours"), ours(work, "ours, savers off", OFF), ours(work, "ours, savers on", ON)]
    variants.append(ours(work, "bare MLX", kind="bare"))
    variants += mlx_lm_variants(work, spec | {"kind": "train"})
    python = work.peer_python
    for kind, name in (("eager", "PyTorch eager"), ("compile", "torch.compile")):
        command = command_of(WORKERS / "measure_torch.py", spec | {"kind": kind}, python)
        variants.append(Variant(name, command, (python, "torch"), plain_llama_only(work.config)))
    return [whole_case(work, "step", "one step", variants)]


def memory_suite(work: Work) -> list[Case]:
    """Activation checkpointing with the loss in chunks of 128 tokens, so that the logits hide nothing."""
    variants = [
        ours(work, kind, ("objective.chunk_size=128", f"training.activation_checkpointing={kind}"))
        for kind in ("none", "every 2", "all")
    ]
    return [whole_case(work, "memory", "checkpointing", variants)]


def attention_suite(work: Work) -> list[Case]:
    """Forward and backward over lengths, causal; then a sliding window, where blocks can be skipped."""
    is_tiny = work.config.name == "tiny"
    lengths = (128,) if is_tiny else (512, 1024, 2048, 4096, 8192)
    cases = [attention_case(work, f"causal {length}", length, None, ({"type": "causal"},)) for length in lengths]
    length, window = (128, 32) if is_tiny else (4096, 256)
    mods = ({"type": "causal"}, {"type": "sliding_window", "window": window})
    return [*cases, attention_case(work, f"window {window} of {length}", length, window, mods)]


def attention_case(work: Work, name: str, length: int, window: int | None, mods: Sequence[Row]) -> Case:
    """simple, flash, flex and MLX's own on the same queries, keys and values."""
    shape = {"rows": 1, "heads": 8, "groups": 8, "length": length, "head_dim": 64, "precision": work.precision}
    sections = {"simple": {"type": "simple"}, "flash": {"type": "flash"}, "flex": {"type": "flex", "mods": list(mods)}}
    variants = []
    for kind, section in (sections | {"mx.fast": None}).items():
        # A flex mask says for itself what the others are told.
        spec = shape | {"attention": section, "window": None if kind == "flex" else window}
        command = command_of(WORKERS / "measure_attention.py", spec)
        variants.append(Variant(kind, command, skip=attention_problem(section, shape)))
    about = {"model": "attention", "batch": 1, "length": length, "heads": 8, "head_dim": 64, "window": window}
    about["precision"] = work.precision
    tolerance = 1e-2 if work.precision == "float32" else None
    return Case("attention", name, tuple(variants), about, tokens=length, tolerance=tolerance)


def attention_problem(section: Row | None, shape: Row) -> str | None:
    """Why an attention cannot be measured at this size."""
    try:
        if section is not None:
            build_section(Annotated[AttentionConfig, OneOf("models.attention:ATTENTION", "attention")], section)
    except ConfigError as error:
        return str(error)
    needed = 10 * 4 * shape["heads"] * shape["length"] ** 2
    writes_out = section is None or section["type"] == "simple"
    if writes_out and needed > memory_limit() / 2:
        return f"its weights, held several times, may take {needed / 1e9:.0f} GB"
    return None


def loss_suite(work: Work) -> list[Case]:
    """The output layer and its loss at once and in chunks."""
    rows, length = work.batch
    model: Any = work.config.model
    spec = {"rows": rows, "length": length, "vocab_size": model.vocab_size, "hidden_size": model.hidden_size}
    variants = []
    chunks = {"plain": None, "128": 128, "256": 256, "512": 512, "auto": "auto"}
    objectives = {name: {"type": "causal", "chunk_size": chunk} for name, chunk in chunks.items()}
    for name, objective in (objectives | {"mx.nn": None}).items():
        command = command_of(WORKERS / "measure_loss.py", spec | {"objective": objective, "precision": work.precision})
        overrides = [f"objective={write_yaml(objective, flow=True).strip()}"] if objective else []
        variants.append(Variant(name, command, skip=config_problem(work, overrides)))
    about = {"model": "head and loss", "precision": work.precision, "batch": rows, **spec}
    return [Case("loss", "head and loss", tuple(variants), about, tokens=rows * length, tolerance=1e-4)]


def optimizer_suite(work: Work) -> list[Case]:
    """One update of all weights by each row of the table."""
    spec = {"config": str(work.path), "overrides": []}
    variants = tuple(
        Variant(name, command_of(WORKERS / "measure_optimizer.py", spec | {"optimizer": name}))
        for name in sorted(OPTIMIZERS, key=lambda name: name != "adamw")
    )
    return [Case("optimizer", "update", variants, work.about() | {"precision": "float32"})]


def newton_schulz_suite(work: Work) -> list[Case]:
    """Muon's update of the matrices of twelve layers, ours and MLX's: of a llama, and of a GPT-2."""
    is_tiny = work.config.name == "tiny"
    layers, hidden = (2, 24) if is_tiny else (12, 768)
    cases = []
    for name, inner, gated in (("llama", hidden * 8 // 3, True), ("GPT-2", 4 * hidden, False)):
        spec = {"layers": layers, "hidden_size": hidden, "intermediate_size": inner, "gated": gated}
        variants = tuple(
            Variant(kind, command_of(WORKERS / "measure_newton_schulz.py", spec | {"kind": kind}))
            for kind in (MLX_MUON, "ours")
        )
        about = {"model": f"{layers} layers of a {name}, {hidden} wide", "precision": "float32"}
        cases.append(Case("newton-schulz", name, variants, about))
    return cases


def share_suite(work: Work) -> list[Case]:
    """Every optimizer's update beside a whole step with AdamW: 40M parameters, 16,384 tokens, in micro-batches."""
    is_tiny = work.config.name == "tiny"
    path = work.path if is_tiny else CONFIGS / "models" / "model-config-40m.yaml"
    length = 32 if is_tiny else 1024
    batch = ["training.batch_size=2"] if is_tiny else ["training.batch_size=16", "training.micro_batch_size=2"]
    vocab_size = work.config.model.vocab_size if is_tiny else 16384
    overrides = ["optimizer={type: adamw}", f"model.vocab_size={vocab_size}", *batch, f"data.sequence_length={length}"]
    config = load(path, overrides)
    spec = {"config": str(path), "overrides": overrides}
    step = spec | {"vocab_size": vocab_size, "kind": "ours"}
    variants = [Variant(WHOLE, command_of(WORKERS / "measure_step.py", step))]
    variants += [
        Variant(name, command_of(WORKERS / "measure_optimizer.py", spec | {"optimizer": name})) for name in OPTIMIZERS
    ]
    tokens = config.rows_per_batch * length
    about = {"model": config.name, "parameters": config.model.num_params(), "batch": config.rows_per_batch}
    return [Case("share", f"updates beside a step of {tokens:,} tokens", tuple(variants), about | {"length": length})]


def generate_suite(work: Work) -> list[Case]:
    """Reading a prompt, then one token after the other, greedily."""
    longest = getattr(work.config.model, "max_position_embeddings", 1024)
    prompt, new = min(512, longest * 3 // 4), min(64, longest // 4)
    spec = {"folder": str(save_model(work)), "prompt_tokens": prompt, "new_tokens": new} | whole_model(work)
    spec |= {"flops": work.config.model.flops_per_token(prompt) / 3 * prompt, "kind": "generate"}
    variants = [Variant("ours", command_of(WORKERS / "measure_generate.py", spec)), *mlx_lm_variants(work, spec)]
    about = work.about() | {"batch": 1, "length": prompt + new, "prefill_tokens": prompt, "decode_tokens": new - 1}
    return [Case("generate", f"{prompt} + {new} tokens", tuple(variants), about)]


def _without_model(suite: Callable[[bool], list[Case]]) -> Callable[[Work], list[Case]]:
    return lambda work: suite(work.config.name == "tiny")


SUITES: dict[str, Callable[[Work], list[Case]]] = {
    "step": step_suite,
    "memory": memory_suite,
    "attention": attention_suite,
    "loss": loss_suite,
    "optimizer": optimizer_suite,
    "newton-schulz": newton_schulz_suite,
    "share": share_suite,
    "generate": generate_suite,
    **{name: _without_model(suite) for name, suite in DATA_SUITES.items()},
}


def whole_model(work: Work) -> Row:
    """What workers of the whole model are told."""
    rows, length = work.batch
    return {
        "config": str(work.path),
        "overrides": [],
        "vocab_size": work.config.model.vocab_size,
        "precision": work.precision,
        "device": this_chip().kind,
        "flops": work.config.model.flops_per_token(length) * rows * length,
    }


def whole_case(work: Work, suite: str, name: str, variants: Sequence[Variant]) -> Case:
    """A case whose round is one step of the whole model."""
    flops, (rows, length) = whole_model(work)["flops"], work.batch
    peak = work.machine.peaks[work.precision].flops
    tolerance = 1e-4 if work.precision == "float32" else 1e-2
    return Case(suite, name, tuple(variants), work.about(), rows * length, flops, peak, tolerance)


def ours(work: Work, name: str, overrides: Sequence[str] = (), kind: str = "ours") -> Variant:
    """Our step with some settings changed; skipped when the config refuses them."""
    spec = whole_model(work) | {"overrides": list(overrides), "kind": kind}
    problem = causal_only(work.config) if kind == "bare" else config_problem(work, overrides)
    return Variant(name, command_of(WORKERS / "measure_step.py", spec), skip=problem)


def mlx_lm_variants(work: Work, spec: Row) -> list[Variant]:
    """mlx-lm with OpenBLAS ahead of its own BLAS, as installed, or both; one where MLX needs no OpenBLAS."""
    worker, needs, problem = WORKERS / "measure_mlx_lm.py", (sys.executable, "mlx_lm"), causal_only(work.config)
    peers = [(PEER, True, "openblas"), ("mlx-lm as installed", False, "as-installed")][: 2 if needs_openblas() else 1]
    return [
        Variant(name, command_of(worker, spec | {"openblas": fast}), needs, problem)
        for name, fast, when in peers
        if work.peer_blas in (when, "both") or (fast and not needs_openblas())
    ]


def config_problem(work: Work, overrides: Sequence[str]) -> str | None:
    """Why a config with these values is none; None when it is."""
    try:
        load(work.path, list(overrides))
    except ConfigError as error:
        return error.problems[0]
    return None


def causal_only(config: Config) -> str | None:
    """Why a peer cannot train this, when it cannot."""
    return None if config.objective.type == "causal" else f"only we train objective '{config.objective.type}'"


def plain_llama_only(config: Config) -> str | None:
    """Why PyTorch's model in measure_torch.py is not this one, when it is not."""
    model: Any = config.model
    is_plain = model.type == "llama" and not (model.attention_bias or model.mlp_bias or model.rope_scaling)
    if is_plain and not model.rope_traditional:
        return causal_only(config)
    return "the PyTorch peer is a llama without biases and rope scaling"


def save_model(work: Work) -> Path:
    """The model's weights and config.json, as mlx-lm loads them; written once."""
    folder = work.folder / "model"
    if not folder.exists():
        folder.mkdir()
        pairs: Any = tree_flatten(work.config.model.build(work.config.seed).parameters())
        save_weights(folder, dict(pairs), max_shard_bytes=2**62)
        (folder / "config.json").write_text(json.dumps(work.config.model.to_hf()))
        mx.clear_cache()
    return folder
