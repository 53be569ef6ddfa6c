"""Config sections of the run itself: training, evaluation, sampling, checkpoints, logging.

They stand together, apart from the loop, because the config module reads them and the loop reads the config.
To add a setting: it needs two users or a measured difference (otherwise name the place in the code to edit).
"""

import re
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from utils.schema import Section
from utils.units import Duration


class TrainingConfig(Section):
    """How long, in what batches and with what arithmetic."""

    duration: Duration = Duration(1000, "steps")
    """When to stop: `2000 steps`, `500M tokens`, `20 tokens_per_param` or `3 epochs`."""
    batch_size: int | None = Field(default=None, gt=0)
    """Sequences of one optimizer update, over all ranks. 32 when `batch_tokens` is not given either."""
    batch_tokens: int | None = Field(default=None, gt=0)
    """The same in tokens; a multiple of the sequence length."""
    micro_batch_size: Annotated[int, Field(gt=0)] | Literal["auto"] | None = None
    """Sequences one rank computes at once; None: the whole batch; auto: as many as fit into memory. The accumulation
    count is derived."""
    activation_checkpointing: str = "none"
    """`none`, `all`, or `every 2`: recompute every second block in the backward pass instead of keeping it. At most a
    third more time, a fraction of the memory; the same numbers, unless there is dropout, which then draws others."""
    memory_limit: int | None = Field(default=None, gt=0)
    """Bytes the run may take, for example 24G; null: the device's own limit. A run that would need more is refused."""
    gradient_clip: float | None = Field(default=1.0, gt=0)
    """Largest global L2 norm of the gradient; null: no clipping."""
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Arithmetic of the forward and backward pass; weights, moments and norms are always float32."""
    weight_ema: float | None = Field(default=None, gt=0, lt=1)
    """Decay of an exponential moving average of the weights, kept beside them; null: none."""
    max_skipped_updates: int = Field(default=0, ge=0)
    """Updates in a row that may be skipped because loss or gradient was not finite, before the run stops."""
    early_stopping: int | None = Field(default=None, gt=0)
    """Stop after so many evaluations without a better validation loss; null: never."""
    compile: bool = True
    """Compile the step with `mx.compile`; on CPU it needs a C++ compiler."""

    @property
    def recompute_every(self) -> int:
        """n of `every n`; 1 for all, 0 for none."""
        words = {"none": 0, "all": 1}
        text = self.activation_checkpointing
        return words[text] if text in words else int(text.split()[1])

    @field_validator("micro_batch_size", mode="before")
    @classmethod
    def _some_sequences(cls, value: Any) -> Any:
        if isinstance(value, int) and value < 1:
            raise ValueError(f"micro_batch_size is {value}; give some sequences, auto, or null for the whole batch")
        return value

    @field_validator("activation_checkpointing")
    @classmethod
    def _is_none_all_or_every(cls, text: str) -> str:
        if text not in ("none", "all") and not re.fullmatch(r"every [1-9]\d*", text):
            raise ValueError(f"expected none, all or every N (for example 'every 2'), got '{text}'")
        return text

    @model_validator(mode="after")
    def _one_batch_size(self) -> "TrainingConfig":
        if self.batch_size is not None and self.batch_tokens is not None:
            raise ValueError(f"give batch_size ({self.batch_size}) or batch_tokens ({self.batch_tokens}), not both")
        return self


class SamplingConfig(Section):
    """Text to generate while training, to see what is learned."""

    every: Duration | None = None
    """How often; null: never."""
    prompts: tuple[str, ...] = ("",)
    """What to continue."""
    max_tokens: int = Field(default=64, gt=0)
    """Tokens for each prompt."""
    temperature: float = Field(default=0.8, ge=0)
    """0 is greedy."""


class EvaluationConfig(Section):
    """Validation during training, always on the same tokens."""

    every: Duration | None = Duration(250, "steps")
    """How often; null: only at the end."""
    batch_size: int | None = Field(default=None, gt=0)
    """Sequences at once; null: the micro-batch of training."""
    samples: SamplingConfig = SamplingConfig()
    """Text generated while training."""


class CheckpointConfig(Section):
    """What is kept of a run."""

    every: Duration | None = Duration(500, "steps")
    """How often; null: only the last step, which is always saved."""
    keep_last: int = Field(default=3, gt=0)
    """Newest checkpoints kept."""
    keep_best: bool = True
    """Keep the checkpoint of the best validation loss as well."""


class LoggingConfig(Section):
    """What is written about a run."""

    every: Duration = Duration(10, "steps")
    """How often a row of training metrics is written."""
    layers_every: Duration | None = None
    """How often norms of gradient and weights and the update-to-weight ratio of each layer are written; null: never."""
