"""Facts about each Hugging Face `model_type`, as data: which tensors it has, and what each does.

Names are those that the class picked by `AutoModelForCausalLM` saves, without its base prefix (that
of GPT-NeoX's head differs from its name in memory: transformers renames it on loading); shapes are
symbols that `dimensions` turns into numbers. Linears that share an input can be told from their
roles (attn_q, attn_k, attn_v read what attn_norm wrote). Source: transformers 5.23,
`models/<model_type>/{configuration,modeling}_<model_type>.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Flag = bool | str  # True, False, or the configuration field that decides


@dataclass(frozen=True, slots=True)
class Module:
    """One module with a weight, and perhaps a bias of the weight's first dimension."""

    path: str  # "self_attn.q_proj", below the block where it is in one
    role: str  # one of formats.source.ROLES
    shape: tuple[str, ...]  # canonical, [out, in], in symbols of `dimensions`
    bias: Flag = False
    transposed: bool = False  # stored as [in, out] (GPT-2's Conv1D)


@dataclass(frozen=True, slots=True)
class Expected:
    """One tensor that a checkpoint must hold."""

    name: str  # without the base prefix: "layers.0.self_attn.q_proj.weight"
    full_name: str  # as the model class saves it: "model.layers.0.self_attn.q_proj.weight"
    role: str
    part: Literal["weight", "bias"]
    block: int | None
    shape: tuple[int, ...]
    transposed: bool


@dataclass(frozen=True, slots=True)
class Family:
    """All that is particular to one `model_type`."""

    prefix: str  # of everything but the head: "model."
    block_path: str  # "layers.{}."
    before: tuple[Module, ...]
    block: tuple[Module, ...]
    after: tuple[Module, ...]
    head: Module
    defaults: Mapping[str, Any] = field(
        default_factory=dict
    )  # of sizes and flags that a config may omit
    aliases: Mapping[str, str] = field(default_factory=dict)  # usual name -> this family's name
    ignored: tuple[str, ...] = ()  # patterns of stored names that hold no weights
    norm_offset: float = 0.0  # a norm multiplies by its weight plus this
    qkv_by_head: bool = False  # rows of attn_qkv: q, k, v of the first head, then of the next

    def expected(self, config: Mapping[str, Any], *, head: bool) -> Iterator[Expected]:
        """Every tensor in the order of computation; `head` says whether one is stored."""
        sizes = dimensions(config)
        for module in self.before:
            yield from _tensors(module, "", None, self.prefix, sizes, config)
        for index in range(sizes["blocks"]):
            path = self.block_path.format(index)
            for module in self.block:
                yield from _tensors(module, path, index, self.prefix, sizes, config)
        for module in self.after:
            yield from _tensors(module, "", None, self.prefix, sizes, config)
        if head:
            yield from _tensors(self.head, "", None, "", sizes, config)


@dataclass(frozen=True, slots=True)
class Wrapper:
    """A model type of several parts, of which the text model is taken."""

    text_type: str  # model_type of the text part, where its own config names none
    dropped: tuple[str, ...]  # patterns of stored names that belong to the other parts


def _tensors(
    module: Module,
    path: str,
    block: int | None,
    prefix: str,
    sizes: Mapping[str, int],
    config: Mapping[str, Any],
) -> Iterator[Expected]:
    shape = tuple(sizes[symbol] for symbol in module.shape)
    name = f"{path}{module.path}"
    yield Expected(
        f"{name}.weight",
        f"{prefix}{name}.weight",
        module.role,
        "weight",
        block,
        shape,
        module.transposed,
    )
    biased = config.get(module.bias) if isinstance(module.bias, str) else module.bias
    if biased:
        yield Expected(
            f"{name}.bias", f"{prefix}{name}.bias", module.role, "bias", block, shape[:1], False
        )


def pattern(name: str) -> str:
    """A tensor's name with its numbers open: `model.layers.*.mlp.up_proj.weight`."""
    return re.sub(r"(?<=\.)\d+(?=\.)", "*", name)


def dimensions(config: Mapping[str, Any]) -> dict[str, int]:
    """The symbols of `Module.shape` in numbers. `config` has passed `config_problems`."""
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    kv_heads = config.get("num_key_value_heads") or heads
    head = config.get("head_dim") or hidden // heads
    ffn = config.get("intermediate_size") or 4 * hidden
    return {
        "blocks": config["num_hidden_layers"],
        "vocab": config["vocab_size"],
        "positions": config.get("max_position_embeddings") or 0,
        "hidden": hidden,
        "head": head,
        "q": heads * head,
        "kv": kv_heads * head,
        "qkv": (heads + 2 * kv_heads) * head,
        "ffn": ffn,
        "gate_up": 2 * ffn,
    }


REQUIRED_SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
OPTIONAL_SIZES = (
    "num_key_value_heads", "head_dim", "intermediate_size", "max_position_embeddings",
)  # fmt: skip


LARGEST = 2**31 - 1
MOST_BLOCKS = 10_000
"""More than any model has: a wrong number must not fill the memory with expected names."""


def config_problems(config: Mapping[str, Any]) -> list[str]:
    """What is wrong with the sizes in a configuration; empty when `dimensions` can be trusted."""
    problems = []
    for name in REQUIRED_SIZES + OPTIONAL_SIZES:
        value = config.get(name)
        if value is None and name in OPTIONAL_SIZES:
            continue
        if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= LARGEST:
            problems.append(f"{name} is {value!r}, not a positive whole number")
    if problems:
        return problems
    if config["num_hidden_layers"] > MOST_BLOCKS:
        return [f"num_hidden_layers is {config['num_hidden_layers']}: more than {MOST_BLOCKS}"]
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    kv_heads = config.get("num_key_value_heads") or heads
    if not config.get("head_dim") and hidden % heads:
        problems.append(f"hidden_size {hidden} is not a multiple of num_attention_heads {heads}")
    if heads % kv_heads:
        problems.append(
            f"num_attention_heads {heads} is not a multiple of num_key_value_heads {kv_heads}"
        )
    return problems


_EMBEDDING = Module("embed_tokens", "embedding", ("vocab", "hidden"))
_NORM = Module("norm", "final_norm", ("hidden",))
_HEAD = Module("lm_head", "head", ("vocab", "hidden"))


def _attention(qkv_bias: Flag, o_bias: Flag) -> tuple[Module, ...]:
    return (
        Module("self_attn.q_proj", "attn_q", ("q", "hidden"), qkv_bias),
        Module("self_attn.k_proj", "attn_k", ("kv", "hidden"), qkv_bias),
        Module("self_attn.v_proj", "attn_v", ("kv", "hidden"), qkv_bias),
        Module("self_attn.o_proj", "attn_o", ("hidden", "q"), o_bias),
    )


def _gated_mlp(bias: Flag = False) -> tuple[Module, ...]:
    return (
        Module("mlp.gate_proj", "ffn_gate", ("ffn", "hidden"), bias),
        Module("mlp.up_proj", "ffn_up", ("ffn", "hidden"), bias),
        Module("mlp.down_proj", "ffn_down", ("hidden", "ffn"), bias),
    )


_ATTN_NORM = Module("input_layernorm", "attn_norm", ("hidden",))
_FFN_NORM = Module("post_attention_layernorm", "ffn_norm", ("hidden",))
_QK_NORMS = (
    Module("self_attn.q_norm", "attn_q_norm", ("head",)),
    Module("self_attn.k_norm", "attn_k_norm", ("head",)),
)
_AROUND_MLP = (
    Module("post_attention_layernorm", "attn_post_norm", ("hidden",)),
    Module("pre_feedforward_layernorm", "ffn_norm", ("hidden",)),
    *_gated_mlp(),
    Module("post_feedforward_layernorm", "ffn_post_norm", ("hidden",)),
)
"""Gemma's second half of a block, with a norm on what attention and MLP give back."""
_INV_FREQ = ("layers.*.self_attn.rotary_emb.inv_freq", "rotary_emb.inv_freq")


def _llama_like(*block: Module, norm_offset: float = 0.0, **defaults: Any) -> Family:
    """A family with Llama's names outside the blocks."""
    return Family(
        "model.",
        "layers.{}.",
        (_EMBEDDING,),
        block,
        (_NORM,),
        _HEAD,
        defaults={"tie_word_embeddings": False, **defaults},
        ignored=_INV_FREQ,
        norm_offset=norm_offset,
    )


FAMILIES: dict[str, Family] = {
    "llama": _llama_like(
        _ATTN_NORM,
        *_attention("attention_bias", "attention_bias"),
        _FFN_NORM,
        *_gated_mlp("mlp_bias"),
    ),
    "mistral": _llama_like(
        _ATTN_NORM, *_attention(False, False), _FFN_NORM, *_gated_mlp(), num_key_value_heads=8
    ),
    "qwen2": _llama_like(_ATTN_NORM, *_attention(True, False), _FFN_NORM, *_gated_mlp()),
    "qwen3": _llama_like(
        _ATTN_NORM,
        *_attention("attention_bias", "attention_bias"),
        *_QK_NORMS,
        _FFN_NORM,
        *_gated_mlp(),
        head_dim=128,
    ),
    "smollm3": _llama_like(
        _ATTN_NORM,
        *_attention("attention_bias", "attention_bias"),
        _FFN_NORM,
        *_gated_mlp("mlp_bias"),
        tie_word_embeddings=True,
        num_key_value_heads=4,
    ),
    "gemma": _llama_like(
        _ATTN_NORM,
        *_attention("attention_bias", "attention_bias"),
        _FFN_NORM,
        *_gated_mlp(),
        norm_offset=1.0,
        tie_word_embeddings=True,
        head_dim=256,
    ),
    "gemma2": _llama_like(
        _ATTN_NORM,
        *_attention("attention_bias", "attention_bias"),
        *_AROUND_MLP,
        norm_offset=1.0,
        tie_word_embeddings=True,
        head_dim=256,
    ),
    "gemma3_text": _llama_like(
        _ATTN_NORM,
        *_attention("attention_bias", "attention_bias"),
        *_QK_NORMS,
        *_AROUND_MLP,
        norm_offset=1.0,
        # The text_config of a multimodal Gemma 3 holds only what differs from the class.
        tie_word_embeddings=True,
        vocab_size=262_208,
        hidden_size=2304,
        intermediate_size=9216,
        num_hidden_layers=26,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=256,
    ),
    "phi3": _llama_like(
        _ATTN_NORM,
        Module("self_attn.qkv_proj", "attn_qkv", ("qkv", "hidden")),
        Module("self_attn.o_proj", "attn_o", ("hidden", "q")),
        _FFN_NORM,
        Module("mlp.gate_up_proj", "ffn_gate_up", ("gate_up", "hidden")),
        Module("mlp.down_proj", "ffn_down", ("hidden", "ffn")),
    ),
    "gpt_neox": Family(
        "gpt_neox.",
        "layers.{}.",
        (Module("embed_in", "embedding", ("vocab", "hidden")),),
        (
            Module("input_layernorm", "attn_norm", ("hidden",), True),
            Module("attention.query_key_value", "attn_qkv", ("qkv", "hidden"), "attention_bias"),
            Module("attention.dense", "attn_o", ("hidden", "q"), "attention_bias"),
            Module("post_attention_layernorm", "ffn_norm", ("hidden",), True),
            Module("mlp.dense_h_to_4h", "ffn_up", ("ffn", "hidden"), True),
            Module("mlp.dense_4h_to_h", "ffn_down", ("hidden", "ffn"), True),
        ),
        (Module("final_layer_norm", "final_norm", ("hidden",), True),),
        Module("embed_out", "head", ("vocab", "hidden")),
        defaults={
            "tie_word_embeddings": False,
            "attention_bias": True,
        },
        ignored=(
            "layers.*.attention.rotary_emb.inv_freq",
            "layers.*.attention.bias",  # the causal mask
            "layers.*.attention.masked_bias",
        ),
        qkv_by_head=True,
    ),
    "gpt2": Family(
        "transformer.",
        "h.{}.",
        (
            Module("wte", "embedding", ("vocab", "hidden")),
            Module("wpe", "position", ("positions", "hidden")),
        ),
        (
            Module("ln_1", "attn_norm", ("hidden",), True),
            Module("attn.c_attn", "attn_qkv", ("qkv", "hidden"), True, transposed=True),
            Module("attn.c_proj", "attn_o", ("hidden", "q"), True, transposed=True),
            Module("ln_2", "ffn_norm", ("hidden",), True),
            Module("mlp.c_fc", "ffn_up", ("ffn", "hidden"), True, transposed=True),
            Module("mlp.c_proj", "ffn_down", ("hidden", "ffn"), True, transposed=True),
        ),
        (Module("ln_f", "final_norm", ("hidden",), True),),
        _HEAD,
        defaults={"tie_word_embeddings": True},
        aliases={
            "hidden_size": "n_embd",
            "num_hidden_layers": "n_layer",
            "num_attention_heads": "n_head",
            "max_position_embeddings": "n_positions",
            "intermediate_size": "n_inner",
        },
        ignored=("h.*.attn.bias", "h.*.attn.masked_bias"),  # the causal mask
    ),
}

WRAPPERS: dict[str, Wrapper] = {
    "gemma3": Wrapper(
        "gemma3_text", ("*vision_tower.*", "*multi_modal_projector.*", "*vision_model.*")
    ),
}

PREFIXES = ("language_model.", "model.", "transformer.", "gpt_neox.")
"""What may stand before a name, by the class that a checkpoint was saved from."""
