"""The one training loop: pre-training, fine-tuning, any objective, any number of ranks.

`python -m core.training --config X.yaml [--resume] [--overwrite] [--dry-run [--plot-schedule PNG]] [section.key=x ...]`

`train` builds the parts, then steps; after each step at most four periodic things happen: log, evaluate, sample,
checkpoint. The step is one compiled function over explicit state. Its outputs are read two steps late, so that the
device never waits for Python. To change the loss, edit core/objectives/; to change what an update is, edit
`make_step`; there are no callbacks.

Shapes: M = micro-batches, B = rows of a micro-batch, L = positions.
"""

import argparse
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np
from mlx.utils import tree_map

from core.agreement import together
from core.assembly import HERE, Parts, Progress, Supplies, average_warnings, build_parts, kernel_warnings, restore
from core.checkpoint import newest_valid, point_at, put_back, read_checkpoint
from core.config import Config, load_with_notes
from core.dry_run import dry_run
from core.evaluation import Evaluation
from core.gradients import clip_factor, leaves, norms
from core.guard import decide
from core.objectives.base import Loss
from core.plan import compiler_warning, disk_warning, due, rows
from core.precision import cast
from core.progress import TrainingProgress, show_rows
from core.run import Run, StopSignal, explain_disk, open_run
from core.session import Session, StepOutput
from data.batch import Batch
from data.tokenizer import Tokenizer
from utils.cli import Parser, run_command, warn
from utils.matmul import matmul_gflops
from utils.memory import set_limits

MAX_STEPS_IN_FLIGHT = 2


def make_step(parts: Parts, group: Any, config: Config) -> Callable[[Batch], StepOutput]:
    """The update as one function of `Batch` with arrays [M, B, L], compiled over explicit state."""
    model, optimizer, objective, guard = parts.model, parts.optimizer, parts.objective, parts.guard
    training, precision = config.training, parts.plan.precision
    ema = {} if parts.ema is None else parts.ema
    state = [model.state, optimizer.state, guard, ema, mx.random.state]

    # float16 overflows at 65504, so there the scale multiplies a mean; elsewhere the sum stays as it is, to the bit.
    unit = 1.0 / (parts.plan.micro_batch_size * parts.plan.sequence_length) if precision == "float16" else 1.0

    def scaled_loss(parameters: Any, batch: Batch) -> tuple[mx.array, Loss]:
        model.update(cast(parameters, precision))
        loss = objective(model, batch)
        return loss.total * (guard["loss_scale"] * unit), loss

    def step(micro_batches: Batch) -> StepOutput:
        masters = model.trainable_parameters()
        sums = None
        for index in range(micro_batches.tokens.shape[0]):
            batch = Batch(*(array[index] for array in micro_batches))
            if sums is not None:
                # Without the order, every micro-batch's activations would be alive at once.
                batch = Batch(*mx.depends(list(batch), leaves(sums)))
            (_, loss), gradients = mx.value_and_grad(scaled_loss)(masters, batch)
            sums = (gradients, loss) if sums is None else tree_map(mx.add, sums, (gradients, loss))
        gradients, loss = group.reduce(sums)
        divisor = loss.weight * (guard["loss_scale"] * unit)
        norm, grad_norms = (of_sums / divisor for of_sums in norms(gradients))
        # A stack is not fused, so the kernels below read the factor instead of computing it for each element.
        factor = mx.stack([clip_factor(norm, training.gradient_clip) / divisor])[0]
        gradients = tree_map(lambda gradient: gradient * factor, gradients)
        mean = loss.total / loss.weight
        finite = mx.logical_and(mx.isfinite(mean), mx.isfinite(norm))
        applied, next_guard = decide(guard, finite, training.max_skipped_updates, precision == "float16")
        weights = optimizer.apply_gradients(gradients, masters, applied)
        if parts.ema is not None:
            decay = ema_decay(training.weight_ema, optimizer.state["step"])
            assign(ema, average(ema, weights, decay, applied))
        model.update(weights)
        guard.update(next_guard)
        metrics = {name: total / loss.weight for name, total in loss.metrics.items()}
        return StepOutput(mean, norm, grad_norms, applied, next_guard["skipped"], metrics, optimizer.counts())

    return mx.compile(step, inputs=state, outputs=state) if training.compile else step


def ema_decay(decay: float | None, num_updates: mx.array) -> mx.array:
    """min(decay, (1 + t) / (10 + t)) after t updates, so that the first weights are soon forgotten.

    Source: `num_updates` of TensorFlow's ExponentialMovingAverage.
    """
    assert decay is not None
    updates = num_updates.astype(mx.float32)
    return mx.minimum(decay, (1.0 + updates) / (10.0 + updates))


def average(ema: Any, weights: Any, decay: mx.array, applied: mx.array) -> Any:
    """decay * ema + (1 - decay) * weights, where the update was applied."""
    return tree_map(lambda old, new: mx.where(applied, decay * old + (1 - decay) * new, old), ema, weights)


def assign(destination: Any, source: Any) -> None:
    """Write the arrays of `source` into the containers of `destination`, which a compiled function holds."""
    keys = destination.keys() if isinstance(destination, dict) else range(len(destination))
    for key in keys:
        if isinstance(destination[key], dict | list):
            assign(destination[key], source[key])
        else:
            destination[key] = source[key]


def to_micro_batches(batch: Batch, micro_batch_size: int) -> Batch:
    """[rows, ...] NumPy to [M, B, ...] MLX."""
    return Batch(*(mx.array(array.reshape(-1, micro_batch_size, *array.shape[1:])) for array in batch))


class Result(NamedTuple):
    """How a run ended."""

    folder: Path
    step: int
    evaluation: Evaluation | None
    exit_code: int
    """0, or 130 / 143 when a signal ended it after saving."""
    is_main: bool = True
    """Whether this process wrote the folder."""


def train(
    config: Config,
    *,
    resume: bool = False,
    overwrite: bool = False,
    supplies: Supplies = HERE,
    say: Callable[[str], None] = print,
) -> Result:
    """Train as `config` says, from the start or from the newest whole checkpoint.

    Raises:
        UserError: something a person can fix; what was saved before is untouched.
    """
    group = config.distributed.build()
    say = say if group.is_main else lambda line: None
    with together(group):
        run = open_run(config, resume=resume, overwrite=overwrite, is_main=group.is_main)
    try:
        with together(group):
            if resume and run.is_main:
                put_back(run.checkpoints)
            checkpoint = newest_valid(run.checkpoints, warn if group.is_main else lambda line: None) if resume else None
            tokenizer = run_tokenizer(run) if resume else None
        parts = build_parts(config, group, tokenizer, say, initialise=checkpoint is None, supplies=supplies)
        set_limits(parts.plan.memory_limit, parts.plan.memory.peak)
        with together(group):
            run.start(config, overwrite=overwrite, precision=parts.plan.precision)
            progress = continue_from(run, parts, checkpoint, say)
            announce(parts, run, config, say)
            show = TrainingProgress(parts.plan.total_steps, progress.step, enabled=group.is_main)
            session = Session(config, parts, run, progress, show)
        with group.reporting_loss():
            return loop(session, config, group)
    except OSError as error:
        explained = explain_disk(error, run.folder)
        if explained is None:
            raise
        raise explained from error
    finally:
        run.close()


def run_tokenizer(run: Run) -> Tokenizer | None:
    """The tokenizer of a run that was started before."""
    return Tokenizer.load(run.tokenizer) if (run.tokenizer / "tokenizer.json").exists() else None


def continue_from(run: Run, parts: Parts, checkpoint: Path | None, say: Callable[[str], None]) -> Progress:
    """Restore a checkpoint; None: step 0. The tokenizer is kept in the run."""
    if run.is_main and not (run.tokenizer / "tokenizer.json").exists():
        run.keep_tokenizer(parts.dataset.tokenizer)
    if checkpoint is None:
        return Progress()
    progress = restore(parts, read_checkpoint(checkpoint))
    if run.is_main:
        point_at(checkpoint, is_best=progress.best_step == progress.step)
    say(f"resuming from {checkpoint}")
    if progress.step >= parts.plan.total_steps:
        say(f"step {progress.step} of {parts.plan.total_steps} is done: to go on, raise training.duration")
    # Nothing had happened at step 0 but perhaps an evaluation, whose row metrics.jsonl then lacks.
    return progress if progress.step else Progress()


def announce(parts: Parts, run: Run, config: Config, say: Callable[[str], None]) -> None:
    """Print and log the plan, and warn when the disk is too small for it."""
    text = show_rows(rows(parts.plan, run.folder, parts.dataset.summary(), matmul_gflops(512, num_repeats=2)))
    say(f"plan of {run.folder}\n{text}")
    run.log(f"plan\n{text}")
    slow = kernel_warnings(config, parts.model_config, parts.plan.precision)
    slow += average_warnings(parts.optimizer.groups, config.schedule)
    for line in (disk_warning(parts.plan, run.folder), compiler_warning(config.training.compile), *slow):
        if line and run.is_main:
            warn(line)


def loop(session: Session, config: Config, group: Any) -> Result:
    """Step until the plan is done, a signal came, or early stopping decides; always save the last step."""
    parts, plan = session.parts, session.parts.plan
    stop = StopSignal()
    step = make_step(parts, group, config)
    loader = parts.dataset.batches(
        plan.batch_size,
        start=session.progress.data,
        rank=group.rank,
        world_size=group.size,
        micro_batch_size=plan.micro_batch_size,
    )
    try:
        if due(plan.periods.evaluate, session.progress.step):
            session.evaluate(stop.requested)
        while session.progress.step < plan.total_steps:
            batch, data_state = next(loader)  # Before the ranks agree, since it may fail on one of them alone.
            if group.any(stop.requested() or session.should_stop_early()):
                break
            rates = parts.optimizer.follow(config.schedule, session.progress.step, plan.timeline)
            refreshed = parts.optimizer.refresh(session.progress.step)
            old_weights = session.weights_to_compare()
            mx.random.seed(noise_seed(config.seed, session.progress.step, group.rank))
            try:
                output = step(to_micro_batches(batch, plan.micro_batch_size))
                parts.optimizer.install(refreshed)
                mx.async_eval(output, parts.model.state, parts.optimizer.state, parts.guard, parts.ema or {})
            except RuntimeError as error:
                if not stop.requested() or "compile" not in str(error) and "C++" not in str(error):
                    raise
                # The compiler that MLX runs in the first steps got the same Ctrl-C; they are not worth a save.
                return ended(session, stop)
            session.advance(data_state, output, rates, old_weights)
            del old_weights  # So that the next update can have their memory.
            now = session.progress.step
            session.read(in_flight=MAX_STEPS_IN_FLIGHT)
            if due(plan.periods.sample, now):
                session.sample()
            if due(plan.periods.evaluate, now):
                session.evaluate(stop.requested)
            if due(plan.periods.checkpoint, now):
                session.save()
        stop.settle(group)
        with together(group):
            finish(session, stop)
            session.close()
    finally:
        loader.close()
        try:
            session.close()
        finally:
            stop.restore()
    return ended(session, stop)


def ended(session: Session, stop: StopSignal) -> Result:
    """What `train` returns."""
    code = 0 if stop.received is None else 128 + stop.received
    return Result(session.run.folder, session.progress.step, session.evaluation, code, session.run.is_main)


def noise_seed(seed: int, step: int, rank: int) -> int:
    """A key for dropout that depends on seed, step and rank only: nothing to save, nothing to lose on resume."""
    words = np.random.SeedSequence((seed, step, rank)).generate_state(1, np.uint64)
    return int(words[0])


def finish(session: Session, stop: StopSignal) -> None:
    """Read what is in flight; evaluate a run that is done, and say how good it is; save the last step."""
    session.read(in_flight=0)
    if stop.received is None:
        session.evaluate(stop.requested)
    session.save()
    if stop.received is None:
        session.explain_early_stop()
        session.show_result()


def next_commands(folder: Path, can_generate: bool) -> str:
    """What to try after a run, with the Python that runs now."""
    run, here = shlex.quote(str(folder)), Path.cwd()
    executable = Path(sys.executable)
    python = str(executable.relative_to(here)) if executable.is_relative_to(here) else "python"
    generation = [f'{python} -m core.generation --run {run} --prompt "def"']
    export = [f"{python} tools/convert-to-mlx-lm.py --run {run} --out-path {run}/mlx-lm"]
    commands = [
        *(generation if can_generate else []),
        f"{python} -m core.evaluation --run {run}",
        f"{python} tools/plot-logs.py {run}",
        *(export if can_generate else []),
    ]
    return "\n  ".join(["try next:", *commands])


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line of `core.training`."""
    parser = Parser("Train a model as a YAML file says.", prog="python -m core.training")
    parser.add_argument("--config", required=True, type=Path, help="the YAML file")
    parser.add_argument("--resume", action="store_true", help="continue an existing run from its last checkpoint")
    parser.add_argument("--overwrite", action="store_true", help="delete an existing run of this name first")
    parser.add_argument("--dry-run", action="store_true", help="check everything and print the plan; train nothing")
    parser.add_argument("--plot-schedule", type=Path, metavar="PNG", help="with --dry-run: draw the learning rates")
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="data prepared elsewhere from this data section")
    parser.add_argument("--init-from", type=Path, metavar="FOLDER", help="where this machine holds init_from")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="values that win over the file")
    namespace = parser.parse_intermixed_args(arguments)
    if namespace.resume and namespace.overwrite:
        parser.error("--resume and --overwrite exclude each other")
    if namespace.plot_schedule and not namespace.dry_run:
        parser.error("--plot-schedule goes with --dry-run: add it, or draw a run with tools/plot-logs.py")
    if namespace.plot_schedule and namespace.plot_schedule.suffix.lower() != ".png":
        parser.error(f"--plot-schedule writes a PNG: expected a name that ends in .png, got {namespace.plot_schedule}")
    return namespace


def main(arguments: Sequence[str] | None = None) -> int:
    """`python -m core.training`."""
    options = parse_arguments(arguments)
    loaded = load_with_notes(options.config, options.overrides)
    config: Config = loaded.config
    for note in loaded.notes:
        print(f"note: {note}", flush=True)
    if options.dry_run:
        return dry_run(config, options.plot_schedule)
    overwrite = options.overwrite or (loaded.overwrite and not options.resume)
    supplies = Supplies(options.data, options.init_from)
    result = train(config, resume=options.resume, overwrite=overwrite, supplies=supplies)
    if result.exit_code and result.is_main:
        print(f"stopped after step {result.step}; --resume goes on from the last checkpoint")
    elif result.is_main:
        print(next_commands(result.folder, can_generate=config.objective.cannot_generate is None))
    return result.exit_code


if __name__ == "__main__":
    run_command(main)
