"""What `python -m core.smoke` checks with MLX: that the device is the one paid for, computes what a CPU computes, and
that its arrays survive a file.

Kernels are held against float64 by core/self_test.py, on a CPU too; added here are the loss with its gradients, some
updates of the real training step beside the same updates on the CPU, streams that wait for each other, and the ways in
which arrays reach files and come back. Each check takes what it tests as an argument, and returns a `Report`; one that
raises has failed as well. To add a check, write a function here and a row in `CHECKS` of core/smoke.py.

Shapes: T = tokens, D = hidden size, V = vocabulary.
"""

import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten
from safetensors.numpy import load_file

from core.assembly import Parts
from core.config import Config, build_section
from core.guard import initial_guard
from core.objectives.linear_cross_entropy import LossSums, linear_cross_entropy
from core.plan import make_plan
from core.precision import DTYPES, resolve_precision
from core.self_test import (
    OPERATIONS,
    REMEDIES,
    TOLERANCES,
    Operations,
    attention_errors,
    errors_of,
    host,
    largest,
    rounded,
    row_error,
)
from core.smoke import nvidia_gpus
from core.training import StepOutput, make_step
from data.batch import Batch
from distributed.group import SingleConfig
from models.weights import SINGLE, save_weights
from utils.chips import this_chip
from utils.memory import format_bytes, memory_limit

HEAD_DIMS = (64, 128)
NUM_TOKENS, HIDDEN_SIZE, VOCAB_SIZE, CHUNK_SIZE = 200, 64, 1000, 72
Z_LOSS = 1e-3
# A loss is one product and a mean over tokens, its gradients one more product: see TOLERANCES.
LOSS_TOLERANCES = {
    name: TOLERANCES[like]
    for where in ("", " in chunks")
    for name, like in ((f"loss{where}", "matmul"), (f"gradient{where}", "attention"))
}
LOSS_REMEDY = "set objective.chunk_size: null"
NUM_UPDATES = 6
# The updates round differently on two devices, and what they have rounded adds up.
STEP_TOLERANCES = {"loss": TOLERANCES["matmul"], "gradient norm": TOLERANCES["attention"]}
LARGE = 50_000
"""Elements: more than any writer buffers."""

Shape = tuple[int, ...]
Loss = Callable[..., LossSums]
Arrays = dict[str, mx.array]


class Report(NamedTuple):
    """What a check found."""

    text: str
    """For a line, when nothing is wrong."""
    figures: dict[str, Any]
    problems: tuple[str, ...] = ()


def tested_precisions() -> list[str]:
    """float32 and what a run computes in here."""
    return list(dict.fromkeys(("float32", resolve_precision("auto"))))


def describe_device() -> Report:
    """The device of MLX's choice, which must be the GPU when the driver shows one."""
    chip, info = this_chip(), mx.device_info(mx.default_device())
    memory, precision = memory_limit(), resolve_precision("auto")
    figures = {"device": chip.name, "backend": chip.kind, "memory_bytes": memory, "precision": precision}
    figures["architecture"] = str(info.get("architecture", ""))
    gpus = nvidia_gpus() if chip.kind == "cpu" else []
    problems = [
        f"MLX computes on the CPU, and the driver shows {gpu}: install mlx[cuda12] or mlx[cuda13] in place of mlx[cpu]"
        for gpu in gpus[:1]
    ]
    text = f"{chip.name}, {chip.kind} {figures['architecture']}, {format_bytes(memory)} to use, computes in {precision}"
    return Report(text, figures, tuple(problems))


def check_streams(add: Callable[..., mx.array] = mx.add) -> Report:
    """A sum whose terms are added in turn by two streams of the device and one of the CPU, exact in whole numbers."""
    device = mx.default_device()
    streams = [mx.default_stream(device), mx.new_stream(device), mx.default_stream(mx.cpu)]
    terms = np.random.default_rng(0).integers(-9, 9, (24, LARGE)).astype(np.int32)
    total = mx.zeros(LARGE, mx.int32)
    for number, term in enumerate(terms):
        total = add(total, mx.array(term), stream=streams[number % len(streams)])
    mx.async_eval(total)
    for stream in streams:
        mx.synchronize(stream)
    num_wrong = int(np.count_nonzero(np.array(total) != terms.sum(axis=0)))
    problems = (f"{num_wrong} of {LARGE} sums are wrong when streams wait for each other",) if num_wrong else ()
    return Report(f"{len(terms)} terms, {len(streams)} streams, exact", {"wrong": num_wrong}, problems)


def check_products(operations: Operations = OPERATIONS, precisions: Iterable[str] | None = None) -> Report:
    """Matrix products and reductions."""
    found = {each: errors_of(operations, each, None) for each in precisions or tested_precisions()}
    return judge(worst(found), TOLERANCES, REMEDIES)


def check_attention(operations: Operations = OPERATIONS, precisions: Iterable[str] | None = None) -> Report:
    """The fused attention and its gradients."""

    def errors(precision: str) -> Iterator[tuple[str, float]]:
        random = np.random.default_rng(0)
        for head_dim in HEAD_DIMS:
            yield from attention_errors(operations.attention, random, precision, head_dim)

    found = {each: errors(each) for each in precisions or tested_precisions()}
    return judge(worst(found), TOLERANCES, REMEDIES)


def check_loss(loss: Loss = linear_cross_entropy, precisions: Iterable[str] | None = None) -> Report:
    """Cross-entropy over the vocabulary, whole and in chunks, and its gradients."""
    found = {each: loss_errors(loss, each) for each in precisions or tested_precisions()}
    return judge(worst(found), LOSS_TOLERANCES, {name: LOSS_REMEDY for name in LOSS_TOLERANCES if "chunks" in name})


def worst(errors: Mapping[str, Iterable[tuple[str, float]]]) -> dict[str, dict[str, float]]:
    """The largest error of each operation, by precision."""
    found: dict[str, dict[str, float]] = {}
    for precision, pairs in errors.items():
        for name, error in pairs:
            row = found.setdefault(name, {})
            row[precision] = max(error, row.get(precision, 0.0))
    return found


def judge(
    errors: Mapping[str, Mapping[str, float]],
    tolerances: Mapping[str, Mapping[str, float]],
    remedies: Mapping[str, str],
) -> Report:
    """Errors by operation and precision against what rounding explains."""
    problems = tuple(
        f"{name} in {precision} is wrong: its error is {error:.2g}, rounding explains {tolerances[name][precision]:.0e}"
        + (f"; {remedies[name]}" if name in remedies else "")
        for name, row in errors.items()
        for precision, error in row.items()
        if not error <= tolerances[name][precision]
    )
    shown = ", ".join(f"{name} {' / '.join(f'{error:.0e}' for error in row.values())}" for name, row in errors.items())
    precisions = " / ".join(next(iter(errors.values())))
    return Report(f"errors in {precisions}: {shown}", {name: dict(row) for name, row in errors.items()}, problems)


def loss_errors(loss: Loss, precision: str) -> Iterator[tuple[str, float]]:
    """Errors of the loss, relative, and of both gradients; the last chunk is smaller, some tokens are padding."""
    random = np.random.default_rng(0)
    hidden_TD = rounded(random, precision, (NUM_TOKENS, HIDDEN_SIZE))
    head_VD = (rounded(random, precision, (VOCAB_SIZE, HIDDEN_SIZE)) * HIDDEN_SIZE**-0.5).astype(DTYPES[precision])
    targets_T = random.integers(0, VOCAB_SIZE, NUM_TOKENS).astype(np.int32)
    weights_T = (random.random(NUM_TOKENS) < 0.9).astype(np.float32)
    total, *gradients = loss_reference(host(hidden_TD), host(head_VD), targets_T, weights_T)
    for chunk_size, where in ((None, ""), (CHUNK_SIZE, " in chunks")):
        options = {"chunk_size": chunk_size, "z_loss": Z_LOSS}
        function = partial(loss, targets_T=mx.array(targets_T), weights_T=mx.array(weights_T), **options)
        value, found = mx.value_and_grad(lambda *inputs, f=function: f(*inputs).total, argnums=(0, 1))(
            hidden_TD, head_VD
        )
        yield f"loss{where}", largest(host(value) / total - 1.0)
        for gradient, expected in zip(found, gradients, strict=True):
            yield f"gradient{where}", row_error(gradient, expected)


def loss_reference(
    hidden_TD: np.ndarray, head_VD: np.ndarray, targets_T: np.ndarray, weights_T: np.ndarray
) -> tuple[Any, np.ndarray, np.ndarray]:
    """Total and gradients of weighted cross-entropy and z-loss, in the dtype of the inputs."""
    logits_TV = hidden_TD @ head_VD.T
    largest_T1 = logits_TV.max(axis=1, keepdims=True)
    powers_TV = np.exp(logits_TV - largest_T1)
    sums_T1 = powers_TV.sum(axis=1, keepdims=True)
    normalizer_T = (largest_T1 + np.log(sums_T1))[:, 0]
    at_target = (np.arange(len(targets_T)), targets_T)
    total = np.sum(weights_T * (normalizer_T - logits_TV[at_target] + Z_LOSS * normalizer_T**2))
    change_TV = powers_TV / sums_T1 * (1.0 + 2.0 * Z_LOSS * normalizer_T)[:, None]
    change_TV[at_target] -= 1.0
    change_TV *= weights_T[:, None]
    return total, change_TV @ head_VD, change_TV.T @ hidden_TD


def check_training_step(make: Callable[..., Any] = make_step, precision: str | None = None) -> Report:
    """Some updates of one layer beside the same updates in float32 on the CPU.

    Compiled, unless the device is the CPU itself, for which MLX's compiler needs g++ and half a minute.
    """
    precision, device = precision or resolve_precision("auto"), mx.default_device()
    compiled = device.type != mx.DeviceType.cpu
    found, unchanged = train_a_little(make, precision, compiled=compiled)
    mx.set_default_device(mx.cpu)
    try:
        expected, _ = train_a_little(make_step, "float32", compiled=False)
    finally:
        mx.set_default_device(device)
    problems = [f"the updates leave {', '.join(unchanged)} as they were"] if unchanged else []
    for index, name in enumerate(STEP_TOLERANCES):
        pairs = [(ours[index], theirs[index]) for ours, theirs in zip(found, expected, strict=True)]
        wrong = [abs(ours / theirs - 1.0) > STEP_TOLERANCES[name][precision] or ours != ours for ours, theirs in pairs]
        if any(wrong):
            first = wrong.index(True)
            problems.append(f"{name} of update {first + 1} is {pairs[first][0]:.5g}, on the CPU {pairs[first][1]:.5g}")
    losses = [loss for loss, _ in found]
    if not losses[-1] < losses[0]:
        problems.append(f"the loss does not fall: {losses[0]:.5g}, after {NUM_UPDATES - 1} updates {losses[-1]:.5g}")
    return Report(
        f"loss {losses[0]:.4g} to {losses[-1]:.4g} in {NUM_UPDATES} {'compiled ' if compiled else ''}updates "
        f"in {precision}; on the CPU {expected[0][0]:.4g} to {expected[-1][0]:.4g}",
        {
            "losses": losses,
            "gradient_norms": [norm for _, norm in found],
            "losses_on_cpu": [row[0] for row in expected],
        },
        tuple(problems),
    )


def train_a_little(
    make: Callable[..., Any], precision: str, *, compiled: bool
) -> tuple[list[tuple[float, float]], list[str]]:
    """(loss, gradient norm) of each update on one batch, and the parameters that did not move."""
    config, parts = small_parts(precision, compiled)
    before = host_weights(parts)
    step, batch, figures = make(parts, SingleConfig().build(), config), random_batch(), []
    for number in range(NUM_UPDATES):
        parts.optimizer.follow(config.schedule, number, parts.plan.timeline)
        output: StepOutput = step(batch)
        mx.eval(output, parts.model.state, parts.optimizer.state, parts.guard)
        figures.append((float(host(output.loss)), float(host(output.grad_norm))))
    after = host_weights(parts)
    return figures, [name for name, array in before.items() if np.array_equal(array, after[name])]


def small_parts(precision: str, compiled: bool) -> tuple[Config, Parts]:
    """A llama of one layer with heads of the common width, its loss in chunks, and the default optimizer."""
    model = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 1, "num_attention_heads": 2}
    model |= {"num_key_value_heads": 1, "vocab_size": 512, "max_position_embeddings": 64}
    config: Config = build_section(
        Config,
        {
            "model": {"type": "llama", **model},
            "objective": {"type": "causal", "chunk_size": 128},
            "optimizer": {"type": "adamw", "learning_rate": 3e-3},
            "schedule": {"type": "constant"},
            "data": {"type": "text", "sources": [{"type": "stdlib"}], "sequence_length": 64},
            "training": {"duration": f"{NUM_UPDATES} steps", "batch_size": 4, "compile": compiled},
        },
    )
    built = config.model.build(seed=0)
    mx.eval(built.parameters())
    optimizer = config.optimizer.build(built.trainable_parameters())
    objective = config.objective.build(512)
    plan = make_plan(config, config.model, precision=precision, optimizer_bytes=8 * config.model.num_params())
    return config, Parts(None, config.model, built, objective, optimizer, initial_guard(precision), None, plan)


def random_batch() -> Batch:
    """One micro-batch [1, 4, 64] of random tokens."""
    tokens = np.random.default_rng(0).integers(0, 512, (1, 4, 65)).astype(np.int32)
    ones = mx.ones((1, 4, 64))
    inputs, targets = mx.array(tokens[..., :-1]), mx.array(tokens[..., 1:])
    return Batch(inputs, targets, ones, ones.astype(mx.int32), mx.zeros((1, 4, 2), mx.uint32))


def host_weights(parts: Parts) -> dict[str, np.ndarray]:
    """Copies of the parameters by dotted name."""
    return {name: np.array(array) for name, array in tree_flatten(parts.model.trainable_parameters())}


def through_mlx(folder: Path, arrays: Arrays) -> Arrays:
    """Written and read by MLX, as weights are exported and loaded."""
    save_weights(folder, arrays)
    loaded: Any = mx.load(str(folder / SINGLE))
    return loaded


def through_numpy(folder: Path, arrays: Arrays) -> Arrays:
    """Written from the device's own memory and read by the safetensors library, as checkpoints are."""
    save_weights(folder, {name: np.asarray(array) for name, array in without_bfloat16(arrays).items()})
    return {name: mx.array(array) for name, array in load_file(folder / SINGLE).items()}


def through_memory_map(folder: Path, arrays: Arrays) -> Arrays:
    """Written from the device's own memory and mapped, as token shards are."""
    back = {}
    for name, array in without_bfloat16(arrays).items():
        view = np.asarray(array)
        view.tofile(folder / name)
        back[name] = mx.array(np.memmap(folder / name, view.dtype, "r", shape=view.shape))
    return back


def without_bfloat16(arrays: Arrays) -> Arrays:
    """What NumPy has a type for."""
    return {name: array for name, array in arrays.items() if array.dtype != mx.bfloat16}


Route = Callable[[Path, Arrays], Arrays]
ROUTES: dict[str, Route] = {"MLX": through_mlx, "NumPy": through_numpy, "memory map": through_memory_map}


def check_files(routes: Mapping[str, Route] = ROUTES) -> Report:
    """Arrays that the device has computed come back from a file bit for bit."""
    numbers = np.random.default_rng(0).integers(0, 2**31, LARGE).astype(np.int32)
    computed = mx.array(numbers) ^ 1
    arrays = {"int32": computed, "float32": computed.view(mx.float32), "bfloat16": computed.view(mx.bfloat16)}
    arrays = {name: mx.contiguous(array) for name, array in arrays.items()}
    mx.eval(arrays)
    expected, problems = (numbers ^ 1).tobytes(), []
    for route, travel in routes.items():
        with tempfile.TemporaryDirectory() as folder:
            try:
                back = travel(Path(folder), arrays)
                names = [*without_bfloat16(arrays), *(name for name in back if name in arrays)]
                wrong = [name for name in dict.fromkeys(names) if name not in back or bits(back[name]) != expected]
            except Exception as error:  # The other routes are still worth knowing about.
                problems.append(f"by way of {route}: {type(error).__name__}: {error}")
            else:
                problems += [f"by way of {route}, {', '.join(wrong)} came back with other bits"] if wrong else []
    return Report(f"equal to the bit by way of {', '.join(routes)}", {"routes": list(routes)}, tuple(problems))


def bits(array: mx.array) -> bytes:
    """The bytes of an array of any dtype."""
    return np.array(array.view(mx.uint8)).tobytes()
