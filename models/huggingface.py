"""`config.json` to our config and back. The field names are Hugging Face's already; this holds what differs.

Written so that mlx-lm and transformers both load it: every key that changes the model is written out, defaults too.
A model that computes what neither has (attention mods, a soft cap on logits) gets a `model_type` of ours, which they
refuse, instead of one with which they would silently compute something else; mlx-lm's llama has windows, but only
beside layers without. Such a file reads back here as it was.
Read: keys that do not change the model are ignored; what we cannot represent is refused with the reason, all at once.
Transformers 5 nests the rotary keys in `rope_parameters`; older files have `rope_theta` and `rope_scaling`.
"""

from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from pydantic import ValidationError

from models.attention.base import AttentionConfig
from models.layers import RopeScalingConfig
from utils.coercion import build
from utils.schema import OneOf
from utils.yaml_file import Place, node_of

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
OWN_PREFIX = "pippin_"
ATTENTION, SOFT_CAP, SINKS = "pippin_attention", "final_logit_softcapping", "attention_sinks"
HEADS = ("num_key_value_heads", "head_dim")
ROPE_KEYS = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")


def to_hf(config: "DecoderConfig") -> dict[str, Any]:
    """Every key that mlx-lm or transformers reads to build the model."""
    scaling = config.rope_scaling
    ours = extra_keys(config)
    return {
        "architectures": [("Pippin" if ours else "") + config.architecture],
        "model_type": (OWN_PREFIX if ours else "") + config.type,
        "vocab_size": config.known_vocab_size(),
        **{key: getattr(config, key) for key in REQUIRED[1:] + PLAIN},
        "num_key_value_heads": config.num_groups,
        "head_dim": config.head_size,
        "hidden_act": "silu",
        "rope_scaling": None if scaling is None else scaling.model_dump(exclude_none=True),
        "use_cache": True,
        **ours,
    }


def extra_keys(config: "DecoderConfig") -> dict[str, Any]:
    """What makes the model another one than mlx-lm's; nothing when it is the same."""
    if not config.beyond_mlx_lm():
        return {}
    return {
        ATTENTION: config.attention.model_dump(mode="json", serialize_as_any=True),
        SOFT_CAP: config.final_logit_softcapping,
        SINKS: config.attention_sinks,
    }


def base_type(model_type: str) -> str:
    """The row of `models.MODELS` for a `model_type`: `llama` for `pippin_llama` too."""
    return model_type.removeprefix(OWN_PREFIX)


def from_hf(kind: type[Kind], hf: dict[str, Any]) -> Kind:
    """A config of class `kind`. Raises ValueError, `; ` between the problems."""
    problems = find_problems(kind, hf)
    if problems:
        raise ValueError("; ".join(problems))
    given = {key: hf[key] for key in (*REQUIRED, *HEADS, *PLAIN) if hf.get(key) is not None}
    if hf.get("model_type", "").startswith(OWN_PREFIX):
        attention = read_attention(hf.get(ATTENTION) or {"type": "auto"})
        given |= {"attention": attention, SOFT_CAP: hf.get(SOFT_CAP), SINKS: hf.get(SINKS, False)}
    try:
        return kind(**(kind.hf_defaults | given | read_rope(hf)))
    except ValidationError as error:
        reasons = [f"{'.'.join(map(str, row['loc']))}: {row['msg']}".lstrip(": ") for row in error.errors()]
        raise ValueError("; ".join(reasons)) from None


def find_problems(kind: "type[DecoderConfig]", hf: dict[str, Any]) -> list[str]:
    """What in this `config.json` cannot be represented, one line each."""
    expected = kind.model_fields["type"].default
    problems = [f"{key} is missing" for key in REQUIRED if hf.get(key) is None]
    if base_type(hf.get("model_type", expected)) != expected:
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


def read_attention(values: dict[str, Any]) -> Any:
    """The attention section that `extra_keys` wrote. Raises ValueError, for example when a mod cannot be imported."""
    problems: list[str] = []
    section = Annotated[AttentionConfig, OneOf("models.attention:ATTENTION", "attention", "auto")]
    attention = build(section, node_of(values, Place(ATTENTION)), problems)
    if problems:
        raise ValueError("; ".join(problems))
    return attention


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
