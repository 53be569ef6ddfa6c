"""An open run: its counters, and the periodic things the loop asks for: record, evaluate, sample, save.

The loop (core/training.py) decides when; this file knows how. Rows of metrics.jsonl are written from values that the
device has finished with, so nothing here makes it wait except an evaluation, a sample or a save. To log another
figure, add it in `Session.record`.
"""

import contextlib
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import mlx.core as mx

from core.assembly import Parts, Progress, averaged_weights, copy_tree, take_snapshot
from core.checkpoint import BackgroundWriter, write_checkpoint
from core.config import Config
from core.diagnostics import Movement, arrange, by_group, combined, layer_figures, movement
from core.evaluation import Evaluation, Evaluator, number, report
from core.generation import generate
from core.plan import due
from core.progress import TrainingProgress
from core.run import Run
from utils.errors import UserError
from utils.metrics import MetricsWriter, Row, drop_rows_after


class NonFiniteError(UserError):
    """Loss or gradient norm was not finite, more often in a row than the config allows."""


class StepOutput(NamedTuple):
    """0-d arrays of one update, read when the device has long gone on."""

    loss: mx.array
    """Nats per token, before the update."""
    grad_norm: mx.array
    """Global L2 norm before clipping."""
    grad_norms: mx.array
    """That of every array, [arrays] in the order of `core.gradients.leaves`."""
    applied: mx.array
    """False when the guard held the update back."""
    skipped: mx.array
    """Updates held back in a row, this one included."""
    metrics: dict[str, mx.array]
    """The objective's further means."""
    counts: dict[str, mx.array]
    """What the optimizer counts, such as preconditioners that had to be damped."""


class Pending(NamedTuple):
    """An update the device may still be working on."""

    step: int
    tokens: int
    given: list[int]
    """(input, target) pairs of each source so far."""
    learning_rates: dict[str, float]
    """Of each group of the optimizer, the first one first."""
    output: StepOutput
    moved: Movement | None
    """Where the layers are logged."""


class Session:
    """Counters and output of a run between two steps."""

    def __init__(self, config: Config, parts: Parts, run: Run, progress: Progress, show: TrainingProgress) -> None:
        self.config, self.parts, self.run, self.show = config, parts, run, show
        self.progress = progress
        self.evaluation: Evaluation | None = None
        self.pending: deque[Pending] = deque()
        self.metrics: MetricsWriter | None = None
        if run.is_main:
            self.metrics = MetricsWriter(run.metrics, resume_step=progress.step, is_stale=self._will_be_repeated)
            drop_rows_after(run.samples, progress.step)
        keep_last = config.checkpoint.keep_last
        self._writer = BackgroundWriter(
            lambda snapshot: write_checkpoint(run.checkpoints, snapshot, run.tokenizer, keep_last)
        )
        self._evaluator = Evaluator(
            parts.model, parts.objective, parts.plan.precision, compiled=config.training.compile
        )
        self._saved: Progress | None = progress._replace(seconds=0.0) if progress.step else None
        group_of = {name: group.name for group in parts.optimizer.groups for name in group.decay}
        self._arrangement = arrange(parts.model.trainable_parameters(), group_of.__getitem__)
        self._start = time.monotonic()
        self._paused = 0.0
        self._reads: deque[tuple[int, float]] = deque(maxlen=max(16, parts.plan.periods.log + 1))

    def _will_be_repeated(self, row: Row) -> bool:
        """Whether a row is of an evaluation that the checkpoint does not know of."""
        return "eval/loss" in row and row["step"] > self.progress.evaluated_step

    def weights_to_compare(self) -> Any | None:
        """The weights before an update whose layers are logged, for `advance`; None: they need not be kept."""
        is_due = due(self.parts.plan.periods.layers, self.progress.step + 1)
        return self.parts.model.trainable_parameters() if is_due and self.run.is_main else None

    def advance(
        self,
        data_state: dict[str, Any],
        output: StepOutput,
        learning_rates: dict[str, float],
        old_weights: Any | None = None,
    ) -> None:
        """Count one update; `old_weights`: what `weights_to_compare` gave."""
        plan, before = self.parts.plan, self.progress
        self.progress = before._replace(
            step=before.step + 1, tokens=before.tokens + plan.tokens_per_step, data=data_state
        )
        moved = None if old_weights is None else movement(old_weights, self.parts.model.trainable_parameters())
        given = data_state["tokens"]
        self.pending.append(Pending(self.progress.step, self.progress.tokens, given, learning_rates, output, moved))

    def read(self, in_flight: int) -> None:
        """Record finished updates until at most `in_flight` are left."""
        while len(self.pending) > in_flight:
            self.record(self.pending.popleft())

    def record(self, pending: Pending) -> None:
        """Read one update's figures, log them when due, stop the run when they are not finite too often."""
        output = pending.output
        mx.eval(output)
        self._read_clock(pending.step)
        if not number(output.applied):
            self._held_back(pending)
        figures: dict[str, float] = {}
        if due(self.parts.plan.periods.log, pending.step) or pending.step == self.parts.plan.total_steps:
            figures = self._figures(pending)
        if pending.moved is not None:
            figures |= layer_figures(self._arrangement, output.grad_norms, pending.moved)
        if figures:
            self.write_row(pending.step, pending.tokens, figures)
        self.show.update(pending.step, figures, self._remaining(pending.step))

    def _figures(self, pending: Pending) -> dict[str, float]:
        """What every row of training holds."""
        output, rates = pending.output, pending.learning_rates
        grad_norms = combined(output.grad_norms, self._arrangement.groups)
        return {
            "train/loss": number(output.loss),
            **by_group("optim/learning_rate", next(iter(rates.values())), rates),
            **by_group("optim/grad_norm", number(output.grad_norm), grad_norms),
            **self._speed(),
            "memory/peak_bytes": mx.get_peak_memory(),
            **{f"optim/{name}": number(value) for name, value in output.counts.items()},
            **{f"train/{name}": number(value) for name, value in output.metrics.items()},
            **self._mixture(pending.given),
        }

    def _mixture(self, given: list[int]) -> dict[str, float]:
        """The share of each source in what was trained on since the last row; nothing when there is one source."""
        reported = self.progress.reported or [0] * len(given)
        since = [now - before for now, before in zip(given, reported, strict=True)]
        self.progress = self.progress._replace(reported=given)
        shares = zip(self.parts.dataset.source_names, since, strict=True)
        return {f"data/share/{name}": tokens / max(1, sum(since)) for name, tokens in shares} if len(given) > 1 else {}

    def _held_back(self, pending: Pending) -> None:
        self.progress = self.progress._replace(skipped_updates=self.progress.skipped_updates + 1)
        output = pending.output
        what = f"step {pending.step}: loss {number(output.loss)}, gradient norm {number(output.grad_norm)}"
        if number(output.skipped) > self.config.training.max_skipped_updates:
            raise NonFiniteError(
                f"{what}: the update was not made and the run stops; look at the data, lower optimizer.learning_rate "
                f"in a new run, or go on from the last checkpoint with --resume and training.max_skipped_updates=10"
            )
        self.show.warn(f"{what}: the update was skipped")

    def write_row(self, step: int, tokens: int, figures: dict[str, float]) -> None:
        """One row of metrics.jsonl."""
        if self.metrics is not None:
            self.metrics.write({"step": step, "tokens": tokens, "time": self.seconds(), **figures})

    def seconds(self) -> float:
        """Seconds of the run so far, over all starts."""
        return self.progress.seconds + time.monotonic() - self._start

    def _read_clock(self, step: int) -> None:
        self._reads.append((step, time.monotonic() - self._start - self._paused))

    def _seconds_per_step(self) -> float | None:
        """Over the last updates read, evaluations left out; several can be ready at once, so one is no measure."""
        (first_step, first), (last_step, last) = self._reads[0], self._reads[-1]
        return (last - first) / (last_step - first_step) if last_step > first_step else None

    def _speed(self) -> dict[str, float]:
        seconds = self._seconds_per_step()
        return {"speed/tokens_per_second": self.parts.plan.tokens_per_step / seconds} if seconds else {}

    def _remaining(self, step: int) -> float | None:
        seconds = self._seconds_per_step()
        return None if seconds is None else seconds * (self.parts.plan.total_steps - step)

    def evaluate(self, should_stop: Callable[[], bool]) -> None:
        """Evaluate on the validation set, with the averaged weights when the run has them; save when best."""
        dataset = self.parts.dataset
        self.read(in_flight=0)
        if self.progress.evaluated_step == self.progress.step or not dataset.validation_bytes:
            return
        began = time.monotonic()
        batch_size = self.config.evaluation.batch_size or self.parts.plan.micro_batch_size
        with self.averaged():
            batches = dataset.validation_batches(batch_size)
            evaluation = self._evaluator.run(batches, dataset.validation_bytes, should_stop)
        self._paused += time.monotonic() - began
        if evaluation is None:
            return
        self.evaluation = evaluation
        self.progress = self.progress._replace(evaluated_step=self.progress.step)
        figures = evaluation.as_metrics()
        self.write_row(self.progress.step, self.progress.tokens, figures)
        self.show.update(self.progress.step, figures)
        self._judge(evaluation.loss)

    def _judge(self, loss: float) -> None:
        best = self.progress.best_loss
        if math.isnan(loss) or (best is not None and loss >= best):
            self.progress = self.progress._replace(evaluations_since_best=self.progress.evaluations_since_best + 1)
            return
        self.progress = self.progress._replace(best_loss=loss, evaluations_since_best=0)
        if self.config.checkpoint.keep_best and self.progress.step > 0:
            self.progress = self.progress._replace(best_step=self.progress.step)
            self.save(is_best=True)

    def show_result(self) -> None:
        """Say how good the run is, beside what compressors make of the same text."""
        if self.evaluation is None or not self.run.is_main:
            return
        text = self.parts.dataset.validation_text()
        lines = "\n".join(f"  {line}" for line in report(self.evaluation, text))
        self.run.log(f"result\n{lines}")
        self.show.say(f"result at step {self.progress.step}\n{lines}")

    def should_stop_early(self) -> bool:
        """Whether the validation loss has not improved for as long as the config allows."""
        patience = self.config.training.early_stopping
        return patience is not None and self.progress.evaluations_since_best >= patience

    def explain_early_stop(self) -> None:
        """Say that, and why, a run ended before its last step."""
        progress, total = self.progress, self.parts.plan.total_steps
        if progress.step >= total or not self.should_stop_early():
            return
        line = (
            f"stopped early at step {progress.step} of {total} (training.early_stopping): "
            f"{progress.evaluations_since_best} evaluations brought no better loss than {progress.best_loss}"
        )
        self.run.log(line)
        self.show.say(line)

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """The model with its averaged weights, when the run has them: what generation and export take too."""
        model = self.parts.model
        raw = model.trainable_parameters()
        averaged = averaged_weights(self.parts)
        if averaged is not None:
            model.update(copy_tree(averaged))
        try:
            yield
        finally:
            model.update(raw)

    def sample(self) -> None:
        """Continue the configured prompts and keep the text in samples.jsonl."""
        if not self.run.is_main:
            return
        self.read(in_flight=0)
        began = time.monotonic()
        settings = self.config.evaluation.samples
        for prompt, text in zip(settings.prompts, self.generate(settings.prompts), strict=True):
            self.run.add_sample({"step": self.progress.step, "prompt": prompt, "text": text})
            self.show.say(f"sample at step {self.progress.step}: {prompt}{text}")
        self._paused += time.monotonic() - began

    def generate(self, prompts: Sequence[str]) -> list[str]:
        """Continuations of `prompts`, of the length and temperature of `evaluation.samples`."""
        settings = self.config.evaluation.samples
        with self.averaged():
            completions = generate(
                self.parts.model,
                self.parts.dataset.tokenizer,
                list(prompts),
                max_tokens=settings.max_tokens,
                temp=settings.temperature,
                seed=self.config.seed,
                context=self.parts.model_config.max_position_embeddings,
            )
        return [completion.text for completion in completions]

    def save(self, *, is_best: bool = False) -> None:
        """Hand this step to the background writer; again when an evaluation has added to it since."""
        self.read(in_flight=0)
        if not self.run.is_main:
            return
        now = self.progress._replace(seconds=0.0)
        if self._saved == now:
            return
        self._saved = now
        progress = self.progress._replace(seconds=self.seconds())
        self._writer.submit(take_snapshot(self.parts, progress, seed=self.config.seed, is_best=is_best))

    def close(self) -> None:
        """Wait for the save in flight; raise what it failed with."""
        self.show.close()
        try:
            self._writer.wait()
        finally:
            if self.metrics is not None:
                self.metrics.close()
