"""A worker of tools/benchmark.py: one training step of PyTorch, eager or compiled, on the weights of our model.

The same llama written plainly with what PyTorch offers for it: fused RMSNorm and attention, the fused AdamW, clipping
by the global norm, autocast over float32 masters where ours casts. It reads our `model.safetensors` by name, so a
parameter that differs is an error and the first loss equals ours. Imports nothing of ours but the worker protocol,
hence runs in any environment that has torch.
"""

# pyright: reportMissingImports=false
import json
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.nn import functional

from utils.benchmarking import Row, random_tokens, serve

DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def rotate(x_BHLK: Tensor, cos_LK: Tensor, sin_LK: Tensor) -> Tensor:
    """Rotary positions over the two halves of a head."""
    left, right = x_BHLK.chunk(2, dim=-1)
    return x_BHLK * cos_LK + torch.cat((-right, left), dim=-1) * sin_LK


class Attention(nn.Module):
    """Grouped-query attention by PyTorch's fused kernel."""

    def __init__(self, hf: Row) -> None:
        super().__init__()
        self.num_heads, self.num_groups, self.head_dim = (
            hf["num_attention_heads"],
            hf["num_key_value_heads"],
            hf["head_dim"],
        )
        hidden = hf["hidden_size"]
        self.q_proj = nn.Linear(hidden, self.num_heads * self.head_dim, bias=False)
        self.k_proj = nn.Linear(hidden, self.num_groups * self.head_dim, bias=False)
        self.v_proj = nn.Linear(hidden, self.num_groups * self.head_dim, bias=False)
        self.o_proj = nn.Linear(self.num_heads * self.head_dim, hidden, bias=False)

    def forward(self, x_BLD: Tensor, cos_LK: Tensor, sin_LK: Tensor) -> Tensor:
        B, L, _ = x_BLD.shape
        q = self.q_proj(x_BLD).view(B, L, self.num_heads, self.head_dim).transpose(1, 2)
        k = self.k_proj(x_BLD).view(B, L, self.num_groups, self.head_dim).transpose(1, 2)
        v = self.v_proj(x_BLD).view(B, L, self.num_groups, self.head_dim).transpose(1, 2)
        q, k = rotate(q, cos_LK, sin_LK).to(v.dtype), rotate(k, cos_LK, sin_LK).to(v.dtype)
        is_grouped = self.num_groups != self.num_heads
        out = functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=is_grouped)
        return self.o_proj(out.transpose(1, 2).reshape(B, L, -1))


class MLP(nn.Module):
    """SwiGLU."""

    def __init__(self, hf: Row) -> None:
        super().__init__()
        hidden, inner = hf["hidden_size"], hf["intermediate_size"]
        self.gate_proj = nn.Linear(hidden, inner, bias=False)
        self.up_proj = nn.Linear(hidden, inner, bias=False)
        self.down_proj = nn.Linear(inner, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    """Attention and feed-forward, each behind a norm and added to the residual stream."""

    def __init__(self, hf: Row) -> None:
        super().__init__()
        self.self_attn, self.mlp = Attention(hf), MLP(hf)
        self.input_layernorm = nn.RMSNorm(hf["hidden_size"], hf["rms_norm_eps"])
        self.post_attention_layernorm = nn.RMSNorm(hf["hidden_size"], hf["rms_norm_eps"])

    def forward(self, x: Tensor, cos_LK: Tensor, sin_LK: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos_LK, sin_LK)
        return x + self.mlp(self.post_attention_layernorm(x))


class Llama(nn.Module):
    """The whole model; a tied output layer is the embedding."""

    def __init__(self, hf: Row, length: int) -> None:
        super().__init__()
        self.model = nn.ModuleDict(
            {
                "embed_tokens": nn.Embedding(hf["vocab_size"], hf["hidden_size"]),
                "layers": nn.ModuleList(Block(hf) for _ in range(hf["num_hidden_layers"])),
                "norm": nn.RMSNorm(hf["hidden_size"], hf["rms_norm_eps"]),
            }
        )
        self.lm_head = None
        if not hf["tie_word_embeddings"]:
            self.lm_head = nn.Linear(hf["hidden_size"], hf["vocab_size"], bias=False)
        frequencies = hf["rope_theta"] ** (-torch.arange(0, hf["head_dim"], 2) / hf["head_dim"])
        angles = torch.outer(torch.arange(length), frequencies).repeat(1, 2)
        self.register_buffer("cos_LK", angles.cos(), persistent=False)
        self.register_buffer("sin_LK", angles.sin(), persistent=False)

    def forward(self, tokens_BL: Tensor, targets_BL: Tensor) -> Tensor:
        """The mean cross-entropy, in float32."""
        embedding = self.model["embed_tokens"]
        x = embedding(tokens_BL)
        for block in self.model["layers"]:  # pyright: ignore[reportGeneralTypeIssues]
            x = block(x, self.cos_LK, self.sin_LK)
        head = embedding.weight if self.lm_head is None else self.lm_head.weight
        logits = functional.linear(self.model["norm"](x), head)  # pyright: ignore[reportArgumentType]
        return functional.cross_entropy(logits.float().flatten(0, 1), targets_BL.flatten())


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Every array of a safetensors file: a length, a JSON header, the bytes."""
    content = bytearray(path.read_bytes())
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    header.pop("__metadata__", None)
    buffer = memoryview(content)[start:]
    return {
        name: torch.frombuffer(buffer[slice(*entry["data_offsets"])], dtype=DTYPES[entry["dtype"]]).view(entry["shape"])
        for name, entry in header.items()
    }


def pick_device(backend: str) -> str:
    """PyTorch's name of the device that MLX runs on; the CPU when this PyTorch cannot use it."""
    if backend == "cuda" and torch.cuda.is_available():
        return "cuda"
    return "mps" if backend == "metal" and torch.backends.mps.is_available() else "cpu"


def memory(device: str) -> Row:
    """The CUDA allocator's counters; PyTorch's others know no peak."""
    if device != "cuda":
        return {}
    active, reserved = torch.cuda.memory_allocated(), torch.cuda.memory_reserved()
    peak = torch.cuda.max_memory_allocated()
    return {"peak_bytes": peak, "active_bytes": active, "cache_bytes": reserved - active}


def prepare(spec: Row) -> tuple[Row, Callable[[], Row]]:
    """Build the model and load our weights; a round is one step."""
    device = pick_device(spec["device"])
    torch.set_float32_matmul_precision("high")
    folder = Path(spec["folder"])
    model = Llama(json.loads((folder / "config.json").read_text()), spec["length"])
    model.load_state_dict(read_safetensors(folder / "model.safetensors"))
    model.to(device)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, (0.9, 0.95), 1e-8, 0.1, fused=True)
    tokens = torch.tensor(random_tokens(spec["num_rows"], spec["length"] + 1, spec["vocab_size"]), device=device)
    loss_of = torch.compile(model) if spec["kind"] == "compile" else model

    def step() -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, getattr(torch, spec["precision"]), enabled=spec["precision"] != "float32"):
            loss = loss_of(tokens[:, :-1], tokens[:, 1:])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss.detach()

    losses: list[float] = []

    def measure() -> Row:
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        start = time.perf_counter()
        losses.append(step().item())
        if device == "cuda":
            torch.cuda.synchronize()
        row = {"seconds": time.perf_counter() - start} | memory(device)
        num_graphs = counters["stats"]["unique_graphs"] if spec["kind"] == "compile" else None
        return row | {"compiled_variants": num_graphs, "value": losses[0]}

    facts = {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "attention": "scaled_dot_product_attention",
        "blas": f"torch on {device}, {torch.get_num_threads()} threads",
        "versions": {"torch": torch.__version__},
    }
    return facts, measure


if __name__ == "__main__":
    serve(prepare)
