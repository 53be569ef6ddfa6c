"""`config.json` to our config and back. The field names are Hugging Face's already; this holds what differs.

Written so that mlx-lm and transformers both load it: every key that changes the model is written out, defaults too.
Read: keys that do not change the model are ignored; what we cannot represent is refused with the reason, all at once.
Transformers 5 nests the rotary keys in `rope_parameters`; older files have `rope_theta` and `rope_scaling`.
"""

from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import ValidationError

from models.layers import RopeScalingConfig

if TYPE_CHECKING:
    from models.decoder_config import DecoderConfig

Kind = TypeVar("Kind", bound="DecoderConfig")

REQUIRED = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
PLAIN = (
    "max_position_embeddings",
    "rms_norm_eps",
    "rope_theta",
    "rope_traditional",
    "attention_bias",
    "mlp_bias",
    "tie_word_embeddings",
    "initializer_range",
    "attention_dropout",
)
HEADS = ("num_key_value_heads", "head_dim")
ROPE_KEYS = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")


def to_hf(config: "DecoderConfig") -> dict[str, Any]:
    """Every key that mlx-lm or transformers reads to build the model."""
    scaling = config.rope_scaling
    return {
        "architectures": [config.architecture],
        "model_type": config.type,
        "vocab_size": config.known_vocab_size(),
        **{key: getattr(config, key) for key in REQUIRED[1:] + PLAIN},
        "num_key_value_heads": config.num_groups,
        "head_dim": config.head_size,
        "hidden_act": "silu",
        "rope_scaling": None if scaling is None else scaling.model_dump(exclude_none=True),
        "use_cache": True,
    }


def from_hf(kind: type[Kind], hf: dict[str, Any]) -> Kind:
    """A config of class `kind`. Raises ValueError, `; ` between the problems."""
    problems = find_problems(kind, hf)
    if problems:
        raise ValueError("; ".join(problems))
    given = {key: hf[key] for key in (*REQUIRED, *HEADS, *PLAIN) if hf.get(key) is not None}
    try:
        return kind(**(kind.hf_defaults | given | read_rope(hf)))
    except ValidationError as error:
        reasons = [f"{'.'.join(map(str, row['loc']))}: {row['msg']}".lstrip(": ") for row in error.errors()]
        raise ValueError("; ".join(reasons)) from None


def find_problems(kind: "type[DecoderConfig]", hf: dict[str, Any]) -> list[str]:
    """What in this `config.json` cannot be represented, one line each."""
    expected = kind.model_fields["type"].default
    problems = [f"{key} is missing" for key in REQUIRED if hf.get(key) is None]
    if hf.get("model_type", expected) != expected:
        problems.append(f"model_type is '{hf['model_type']}', not '{expected}'")
    if hf.get("hidden_act", "silu") not in ("silu", "swish"):
        problems.append(f"hidden_act '{hf['hidden_act']}' is not supported, only silu")
    if "quantization" in hf or "quantization_config" in hf:
        problems.append("the weights are quantized; use the folder they were made from")
    if hf.get("use_sliding_window") or set(hf.get("layer_types") or ()) - {"full_attention"}:
        problems.append("sliding-window layers are not supported")
    if (hf.get("partial_rotary_factor") or 1.0) != 1.0:
        problems.append(f"partial_rotary_factor {hf['partial_rotary_factor']} is not supported, only 1")
    rope_type = rope_type_of(rope_section(hf))
    if rope_type not in ("default", "linear", "llama3"):
        problems.append(f"rope_type '{rope_type}' is not supported, only linear and llama3")
    return problems


def rope_section(hf: dict[str, Any]) -> dict[str, Any]:
    """The scaling section under either of its names; empty when there is none."""
    return hf.get("rope_scaling") or hf.get("rope_parameters") or {}


def rope_type_of(section: dict[str, Any]) -> str:
    """`default`, `linear`, `llama3` or another; older files call the key `type`."""
    return section.get("rope_type") or section.get("type") or "default"


def read_rope(hf: dict[str, Any]) -> dict[str, Any]:
    """Our `rope_theta` and `rope_scaling`, as far as the file gives them. Raises ValidationError."""
    section = rope_section(hf)
    theta = hf.get("rope_theta") or section.get("rope_theta") or (hf.get("rope_parameters") or {}).get("rope_theta")
    found: dict[str, Any] = {} if theta is None else {"rope_theta": theta}
    rope_type = rope_type_of(section)
    if rope_type != "default":
        names = ROPE_KEYS if rope_type == "llama3" else ROPE_KEYS[:1]
        values = {name: section[name] for name in names if section.get(name) is not None}
        found["rope_scaling"] = RopeScalingConfig(rope_type=rope_type, **values)  # pyright: ignore[reportArgumentType]
    return found
