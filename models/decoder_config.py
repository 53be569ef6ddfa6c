"""`DecoderConfig`: the sizes and switches of the one decoder, checked against each other when a config is read.

Llama and Qwen3 are subclasses that differ in a few class variables. Counting is done from `parameter_shapes`, the
one list of what the model holds, so a 32B model is counted without allocating. To add a switch: a field here, its
use in models/decoder.py, its shape here, its key in models/huggingface.py.
"""

from math import prod
from typing import Annotated, Any, ClassVar, Self

import mlx.core as mx
import mlx.nn as nn
from pydantic import Field, model_validator

from models import huggingface
from models.attention.auto_attention import AutoAttentionConfig
from models.attention.base import AttentionConfig
from models.attention.flash_attention import flash_warnings
from models.base import ModelConfig
from models.decoder import Decoder
from models.initialise import initialise
from models.layers import RopeScalingConfig
from utils.schema import Misfits, OneOf

LONGEST_ASKED = 8192
"""Positions for which the plan counts the blocks of attention; for more it would take seconds."""


class DecoderConfig(ModelConfig):
    """Sizes and switches of a decoder."""

    qk_norm: ClassVar[bool] = False
    """Whether queries and keys are normalised per head."""
    architecture: ClassVar[str]
    """The class name in transformers, for config.json."""
    hf_defaults: ClassVar[dict[str, Any]] = {}
    """What transformers assumes for keys that a config.json leaves out, where that differs from the defaults here."""

    hidden_size: int = Field(default=512, gt=0)
    """Width of the residual stream."""
    intermediate_size: int = Field(default=1408, gt=0)
    """Width of the feed-forward layer."""
    num_hidden_layers: int = Field(default=8, gt=0)
    """Blocks of attention and feed-forward."""
    num_attention_heads: int = Field(default=8, gt=0)
    """Query heads."""
    num_key_value_heads: int | None = Field(default=None, gt=0)
    """Key/value heads, a divisor of num_attention_heads; null: as many."""
    head_dim: int | None = Field(default=None, gt=0)
    """Width of one head, even; null: hidden_size / num_attention_heads."""
    max_position_embeddings: int = Field(default=2048, gt=0)
    """Longest sequence."""
    rms_norm_eps: float = Field(default=1e-5, gt=0)
    """Added to the mean square in every norm."""
    rope_theta: float = Field(default=10000.0, gt=0)
    """Base of the rotary wavelengths."""
    rope_traditional: bool = False
    """Rotate neighbouring coordinates instead of the two halves of a head."""
    rope_scaling: RopeScalingConfig | None = None
    """Stretch the positions; null: not."""
    attention_bias: bool = False
    """Biases in the four attention projections."""
    mlp_bias: bool = False
    """Biases in the feed-forward layer."""
    tie_word_embeddings: bool = True
    """The output layer is the embedding."""
    final_logit_softcapping: float | None = Field(default=None, gt=0)
    """c: logits become c * tanh(logits / c), so that none is beyond c (Gemma 2); null: they stay as they are."""
    initializer_range: float = Field(default=0.02, gt=0)
    """Standard deviation of the initial weights."""
    residual_dropout: float = Field(default=0.0, ge=0, lt=1)
    """Probability of dropping an output of attention or feed-forward, in training."""
    attention_dropout: float = Field(default=0.0, ge=0, lt=1)
    """Probability of dropping an attention weight, in training."""
    embedding_dropout: float = Field(default=0.0, ge=0, lt=1)
    """Probability of dropping a coordinate of an embedding, in training."""
    attention_sinks: bool = False
    """One more logit for each head, learned, that takes attention weight and gives nothing (GPT-OSS)."""
    attention: Annotated[AttentionConfig, OneOf("models.attention:ATTENTION", "attention", "auto")] = Field(
        default_factory=AutoAttentionConfig
    )
    """How attention is computed; changes the result only where it has mods."""

    @model_validator(mode="after")
    def _sizes_fit(self) -> Self:
        misfits = list(head_misfits(self))
        try:
            self.attention.check(self)
        except Misfits as error:
            misfits += [(f"attention.{path}", reason) for path, reason in error.misfits]
        except ValueError as error:
            misfits.append(("attention.type", str(error)))
        if misfits:
            raise Misfits(*misfits)
        return self

    @property
    def head_size(self) -> int:
        """`head_dim`, or what it stands for."""
        return self.head_dim or self.hidden_size // self.num_attention_heads

    @property
    def num_groups(self) -> int:
        """`num_key_value_heads`, or what it stands for."""
        return self.num_key_value_heads or self.num_attention_heads

    def build(self, seed: int) -> nn.Module:
        """The decoder with float32 weights that depend on `seed` and each parameter's name only; all still lazy."""
        model = Decoder(self, self.known_vocab_size())
        initialise(model, seed, self.initializer_range, self.num_hidden_layers)
        return model

    def num_params(self) -> int:
        """Sum over `parameter_shapes`."""
        return sum(prod(shape) for shape in parameter_shapes(self).values())

    def flops_per_token(self, sequence_length: int) -> int:
        """6 P + 12 * num_hidden_layers * num_attention_heads * head_dim * sequence_length.

        P counts the weights of every matrix product, the output layer included (tied or not); a multiplication and an
        addition are 2 operations, the backward pass costs twice the forward. Attention counts its two products over
        the full square, also when causal. Left out: the embedding look-up, norms, biases, rotation, softmax, SiLU.
        """
        shapes = parameter_shapes(self)
        matrices = sum(prod(shape) for name, shape in shapes.items() if len(shape) == 2 and "embed" not in name)
        tied_head = self.known_vocab_size() * self.hidden_size if self.tie_word_embeddings else 0
        width = self.num_attention_heads * self.head_size
        return 6 * (matrices + tied_head) + 12 * self.num_hidden_layers * width * sequence_length

    def explain_kernels(self, sequence_length: int) -> str | None:
        """See `ModelConfig.explain_kernels`."""
        line, can_ask = self.attention.explain(self.attention_dropout), sequence_length <= LONGEST_ASKED
        blocks = self.attention.computed_blocks(self.num_attention_heads, sequence_length) if can_ask else None
        if blocks is None:
            return line
        return f"{line}; {blocks[0]} of {blocks[1]} blocks are computed"

    def warnings(self, sequence_length: int, precision: str, document_mask: bool = False) -> list[str]:
        """See `ModelConfig.warnings`."""
        device = "cuda" if mx.cuda.is_available() else "metal" if mx.metal.is_available() else "cpu"
        kind, found = self.attention.kernel_mask(sequence_length), self.attention.warnings(sequence_length)
        if kind == "own":
            return found
        missed = flash_warnings(self.head_size, sequence_length, precision, device, document_mask or kind == "array")
        return missed + found

    def beyond_mlx_lm(self) -> list[str]:
        """See `ModelConfig.beyond_mlx_lm`."""
        found = self.attention.beyond_plain(self.max_position_embeddings)
        cap = self.final_logit_softcapping
        found += [f"final_logit_softcapping {cap:g}"] if cap is not None else []
        return found + (["attention_sinks"] if self.attention_sinks else [])

    def to_hf(self) -> dict[str, Any]:
        """`config.json` as mlx-lm and transformers read it. Raises ConfigError while vocab_size is not known."""
        return huggingface.to_hf(self)

    @classmethod
    def from_hf(cls, hf: dict[str, Any]) -> Self:
        """The config of a `config.json`; keys that do not change the model are ignored. Raises ValueError."""
        return huggingface.from_hf(cls, hf)


def head_misfits(config: DecoderConfig) -> list[tuple[str, str]]:
    """(key, reason) for each size that does not fit another."""
    misfits = []
    heads, groups = config.num_attention_heads, config.num_groups
    if config.head_dim is None and config.hidden_size % heads:
        misfits.append(
            (
                "num_attention_heads",
                f"hidden_size {config.hidden_size} is not a multiple of num_attention_heads {heads};"
                f" use {config.hidden_size // heads * heads or heads} or {(config.hidden_size // heads + 1) * heads},"
                " or give head_dim",
            )
        )
    elif config.head_size % 2:
        misfits.append(("head_dim", f"the head width {config.head_size} must be even: positions turn pairs"))
    if heads % groups:
        fitting = ", ".join(str(n) for n in range(1, heads + 1) if heads % n == 0)
        misfits.append(
            ("num_key_value_heads", f"{groups} does not divide num_attention_heads {heads}; there are {fitting}")
        )
    return misfits


def parameter_shapes(config: DecoderConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every parameter, as mlx-lm and transformers name them. The names' order is the model's."""
    vocab_size, hidden = config.known_vocab_size(), config.hidden_size
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocab_size, hidden)}
    block = _block_shapes(config)
    for i in range(config.num_hidden_layers):
        shapes |= {f"model.layers.{i}.{name}": shape for name, shape in block.items()}
    shapes["model.norm.weight"] = (hidden,)
    if not config.tie_word_embeddings:
        shapes["lm_head.weight"] = (vocab_size, hidden)
    return shapes


def _block_shapes(config: DecoderConfig) -> dict[str, tuple[int, ...]]:
    hidden, inner, head = config.hidden_size, config.intermediate_size, config.head_size
    queries, keys = config.num_attention_heads * head, config.num_groups * head
    attention = {"q_proj": (queries, hidden), "k_proj": (keys, hidden), "v_proj": (keys, hidden)}
    attention["o_proj"] = (hidden, queries)
    mlp = {"gate_proj": (inner, hidden), "up_proj": (inner, hidden), "down_proj": (hidden, inner)}
    shapes = _with_biases("self_attn", attention, config.attention_bias)
    shapes |= _with_biases("mlp", mlp, config.mlp_bias)
    shapes |= {"input_layernorm.weight": (hidden,), "post_attention_layernorm.weight": (hidden,)}
    if config.attention_sinks:
        shapes |= {"self_attn.sinks": (config.num_attention_heads,)}
    if config.qk_norm:
        shapes |= {"self_attn.q_norm.weight": (head,), "self_attn.k_norm.weight": (head,)}
    return shapes


def _with_biases(prefix: str, weights: dict[str, tuple[int, int]], bias: bool) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {f"{prefix}.{name}.weight": shape for name, shape in weights.items()}
    if bias:
        shapes |= {f"{prefix}.{name}.bias": shape[:1] for name, shape in weights.items()}
    return shapes
