"""The one decoder behind llama and qwen3: pre-norm blocks of grouped-query attention with rotary positions and SwiGLU.

Attributes are named so that the parameter tree is that of a Hugging Face checkpoint. Dropout runs only in train mode
and draws its keys in models/noise.py. Switches are fields of `DecoderConfig`; a new one is used here.
Legend: B rows, L positions, S keys, D hidden size, H query heads, G key/value heads, K head size, V vocabulary.
"""

from typing import TYPE_CHECKING

import mlx.core as mx
import mlx.nn as nn

from models.attention.mask import Mask
from models.cache import KVCache
from models.checkpointing import recomputed
from models.elementary import tanh
from models.layers import Embedding, Linear, RMSNorm, Rotary, swiglu
from models.noise import drop

if TYPE_CHECKING:
    from models.decoder_config import DecoderConfig

Cache = list[KVCache]


class Attention(nn.Module):
    """Grouped-query self-attention: H query heads share G key/value heads."""

    def __init__(self, config: "DecoderConfig") -> None:
        super().__init__()
        self.num_heads, self.num_groups, self.head_size = (
            config.num_attention_heads,
            config.num_groups,
            config.head_size,
        )
        hidden, bias = config.hidden_size, config.attention_bias
        self.q_proj = Linear(hidden, self.num_heads * self.head_size, bias)
        self.k_proj = Linear(hidden, self.num_groups * self.head_size, bias)
        self.v_proj = Linear(hidden, self.num_groups * self.head_size, bias)
        self.o_proj = Linear(self.num_heads * self.head_size, hidden, bias)
        self.has_qk_norm, self.has_sinks = config.qk_norm, config.attention_sinks
        if config.attention_sinks:
            self.sinks = mx.zeros((self.num_heads,))
        if config.qk_norm:
            self.q_norm = RMSNorm(self.head_size, config.rms_norm_eps)
            self.k_norm = RMSNorm(self.head_size, config.rms_norm_eps)
        self.rotary = Rotary(self.head_size, config.rope_theta, config.rope_traditional, config.rope_scaling)
        self.attend = config.attention.build()
        self.attend_in_training = config.attention.build(config.attention_dropout, training=True)

    def __call__(self, x_BLD: mx.array, mask: Mask, cache: KVCache | None) -> mx.array:
        B, L, _ = x_BLD.shape
        q = self.q_proj(x_BLD).reshape(B, L, self.num_heads, self.head_size)
        k = self.k_proj(x_BLD).reshape(B, L, self.num_groups, self.head_size)
        v = self.v_proj(x_BLD).reshape(B, L, self.num_groups, self.head_size)
        if self.has_qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        q_BHLK, k_BGSK, v_BGSK = (x.transpose(0, 2, 1, 3) for x in (q, k, v))
        offset = 0 if cache is None else cache.offset
        q_BHLK, k_BGSK = self.rotary(q_BHLK, offset), self.rotary(k_BGSK, offset)
        if cache is not None:
            k_BGSK, v_BGSK = cache.update_and_fetch(k_BGSK, v_BGSK)
        attend = self.attend_in_training if self.training else self.attend
        extra = {"sinks_H": self.sinks} if self.has_sinks else {}
        out_BHLK = attend(q_BHLK, k_BGSK, v_BGSK, mask, self.head_size**-0.5, **extra)
        return self.o_proj(out_BHLK.transpose(0, 2, 1, 3).reshape(B, L, -1))


class MLP(nn.Module):
    """The gated feed-forward layer."""

    def __init__(self, config: "DecoderConfig") -> None:
        super().__init__()
        hidden, inner, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        self.gate_proj = Linear(hidden, inner, bias)
        self.up_proj = Linear(hidden, inner, bias)
        self.down_proj = Linear(inner, hidden, bias)

    def __call__(self, x_BLD: mx.array) -> mx.array:
        return self.down_proj(swiglu(self.gate_proj(x_BLD), self.up_proj(x_BLD)))


class Block(nn.Module):
    """Attention, then feed-forward, each on a normalised copy of the residual stream and added to it."""

    def __init__(self, config: "DecoderConfig") -> None:
        super().__init__()
        self.self_attn = Attention(config)
        self.mlp = MLP(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.dropout = config.residual_dropout

    def __call__(self, x_BLD: mx.array, mask: Mask, cache: KVCache | None) -> mx.array:
        probability = self.dropout if self.training else 0.0
        x_BLD = x_BLD + drop(self.self_attn(self.input_layernorm(x_BLD), mask, cache), probability)
        return x_BLD + drop(self.mlp(self.post_attention_layernorm(x_BLD)), probability)


class Backbone(nn.Module):
    """Embedding, blocks and the last norm: everything but the output layer."""

    def __init__(self, config: "DecoderConfig", vocab_size: int) -> None:
        super().__init__()
        self.embed_tokens = Embedding(vocab_size, config.hidden_size)
        self.layers = [Block(config) for _ in range(config.num_hidden_layers)]
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.dropout = config.embedding_dropout
        self.recompute_every = 0

    def __call__(self, tokens_BL: mx.array, mask: Mask, cache: Cache | None) -> mx.array:
        x_BLD = drop(self.embed_tokens(tokens_BL), self.dropout if self.training else 0.0)
        for i, layer in enumerate(self.layers):
            if self.training and self.recompute_every and i % self.recompute_every == 0:
                x_BLD = recomputed(layer, x_BLD, mask, None)
            else:
                x_BLD = layer(x_BLD, mask, None if cache is None else cache[i])
        return self.norm(x_BLD)


class Decoder(nn.Module):
    """A language model: `model(tokens_BL, mask, cache=None) -> logits_BLV`."""

    def __init__(self, config: "DecoderConfig", vocab_size: int) -> None:
        super().__init__()
        self.model = Backbone(config, vocab_size)
        if not config.tie_word_embeddings:
            self.lm_head = Linear(config.hidden_size, vocab_size, bias=False)
        self.logit_soft_cap = config.final_logit_softcapping
        self.needs_segments = config.attention.needs_segments
        self.num_lookahead = config.attention.num_lookahead

    def __call__(self, tokens_BL: mx.array, mask: Mask, cache: Cache | None = None) -> mx.array:
        """Logits [B, L, V] of integer tokens [B, L]; with a cache the tokens follow those it holds."""
        return self.head(self.backbone(tokens_BL, mask, cache))

    def backbone(self, tokens_BL: mx.array, mask: Mask, cache: Cache | None = None) -> mx.array:
        """The normalised hidden states [B, L, D], for a loss that never holds all logits."""
        return self.model(tokens_BL, mask, cache)

    def head(self, hidden_BLD: mx.array) -> mx.array:
        """Logits of hidden states."""
        logits_BLV = hidden_BLD @ self.head_weight.T
        cap = self.logit_soft_cap
        return logits_BLV if cap is None else cap * tanh(logits_BLV / cap)

    @property
    def head_weight(self) -> mx.array:
        """The output layer [V, D], for a loss that multiplies by it itself: its own, or the embedding when tied."""
        return self.lm_head.weight if "lm_head" in self else self.model.embed_tokens.weight

    def recompute(self, every: int) -> None:
        """Activation checkpointing of every `every`-th block in training; 0: of none."""
        self.model.recompute_every = every

    def make_cache(self) -> Cache:
        """An empty cache for each layer."""
        return [KVCache() for _ in self.model.layers]
