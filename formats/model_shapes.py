"""Kinds of values in the files of a model folder, as far as anything here reads them.

Keys as transformers 5 and tokenizers 0.22 know them. What else the files say may be anything.
"""

from __future__ import annotations

from qconvert.formats.shapes import (
    COUNT,
    FLAG,
    NUMBER,
    TEXT,
    TEXTS,
    WHOLE,
    Each,
    Either,
    Keys,
    Plain,
    Shape,
    Values,
    maybe,
)

MOST_TOKENS = 1 << 22
"""More than any vocabulary has: a wrong id must not fill the memory with tokens between."""
FEW = Plain("a whole number, up to 10,000", (int,), 0, 10_000)
"""Of what transformers makes a list: layers of any part, labels."""
ID = Plain(f"a token's number, below {MOST_TOKENS:,}", (int,), 0, MOST_TOKENS - 1)
SPECIAL = maybe(TEXT, Keys({"content": TEXT}))
_IDS = maybe(WHOLE, Each(WHOLE))

_rope: dict[str, Shape] = {}
ROPE = Keys(_rope)
_rope |= {
    **dict.fromkeys(("type", "rope_type"), maybe(TEXT)),
    **dict.fromkeys(
        ("rope_theta", "factor", "original_max_position_embeddings", "attention_factor",
         "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "partial_rotary_factor",
         "low_freq_factor", "high_freq_factor"),
        maybe(NUMBER),
    ),
    **dict.fromkeys(("long_factor", "short_factor"), maybe(Each(NUMBER))),
    **dict.fromkeys(("full_attention", "sliding_attention"), maybe(ROPE)),
    "truncate": maybe(FLAG),
}  # fmt: skip

CONFIG = Keys({
    **dict.fromkeys(("hidden_act", "hidden_activation", "activation_function"), maybe(TEXT)),
    **dict.fromkeys(
        ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_eps", "rope_theta",
         "rotary_emb_base", "rotary_pct", "rope_local_base_freq", "partial_rotary_factor",
         "attn_logit_softcapping", "final_logit_softcapping", "query_pre_attn_scalar",
         "original_max_position_embeddings"),
        maybe(NUMBER),
    ),
    **dict.fromkeys(
        ("sliding_window", "max_window_layers", "sliding_window_pattern",
         "no_rope_layer_interval"),
        maybe(COUNT),
    ),
    **dict.fromkeys(
        ("tie_word_embeddings", "attention_bias", "mlp_bias", "use_sliding_window",
         "use_parallel_residual", "qkv_bias", "scale_attn_weights",
         "scale_attn_by_inverse_layer_idx", "reorder_and_upcast_attn"),
        maybe(FLAG),
    ),
    **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), _IDS),
    **dict.fromkeys(("rope_parameters", "rope_scaling"), maybe(ROPE)),
    "num_labels": maybe(FEW), "id2label": maybe(Keys()), "label2id": maybe(Keys()),
    "no_rope_layers": maybe(Each(Either((WHOLE, FLAG)))), "layer_types": maybe(TEXTS),
})  # fmt: skip
"""config.json, of the text model."""
_PART = Keys(dict.fromkeys(
    ("num_hidden_layers", "num_layers", "encoder_layers", "decoder_layers", "depth", "num_labels",
     "num_experts", "num_local_experts"),
    maybe(FEW),
))  # fmt: skip
WHOLE_CONFIG = Keys({
    **_PART.keys,
    **dict.fromkeys(("text_config", "vision_config", "audio_config"), maybe(_PART)),
})  # fmt: skip
"""config.json as it is: transformers makes the other parts of a wrapper, too."""

GENERATION = Keys(dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), _IDS))
"""generation_config.json."""

TEMPLATES = maybe(
    TEXT, Values(TEXT), Each(Keys({"name": TEXT, "template": TEXT}, ("name", "template")))
)
_TOKEN: dict[str, Shape] = {
    "content": TEXT,
    **dict.fromkeys(("special", "lstrip", "rstrip", "single_word", "normalized"), maybe(FLAG)),
}
SETTINGS = Keys({
    **dict.fromkeys(("bos_token", "eos_token", "unk_token", "pad_token", "sep_token"), SPECIAL),
    **dict.fromkeys(("add_bos_token", "add_eos_token"), maybe(FLAG)),
    "added_tokens_decoder": maybe(Values(Keys(_TOKEN, ("content",)))),
    "chat_template": TEMPLATES,
})  # fmt: skip
"""tokenizer_config.json and special_tokens_map.json."""

_step: dict[str, Shape] = {}
STEP = Keys(_step)
_STEPS = maybe(Each(STEP))
_step |= {
    "type": TEXT,
    **dict.fromkeys(("normalizers", "pretokenizers", "processors", "decoders"), _STEPS),
    **dict.fromkeys(("prepend", "replacement", "prepend_scheme", "content"), maybe(TEXT)),
    **dict.fromkeys(("add_prefix_space", "use_regex", "split", "individual_digits", "invert"),
                    maybe(FLAG)),
    **dict.fromkeys(("start", "stop"), maybe(WHOLE)),
    "pattern": maybe(Keys({"String": TEXT, "Regex": TEXT})),
    **dict.fromkeys(("cls", "sep"), maybe(Each(Either((TEXT, ID)), 2))),
    "single": maybe(Each(Keys({
        "SpecialToken": Keys({"id": TEXT}, ("id",)), "Sequence": Keys(),
    }))),
    "special_tokens": maybe(Values(Keys({"ids": Each(ID)}, ("ids",)))),
}  # fmt: skip
TOKENIZER = Keys({
    "model": Keys({
        **dict.fromkeys(("type", "unk_token", "continuing_subword_prefix", "end_of_word_suffix"),
                        maybe(TEXT)),
        **dict.fromkeys(("byte_fallback", "ignore_merges", "fuse_unk"), maybe(FLAG)),
        "dropout": maybe(NUMBER),
        "vocab": Either((Values(ID), Each(Each(Either((TEXT, NUMBER)), 2)))),
        "merges": maybe(TEXTS, Each(Each(TEXT, 2))),
    }, ("vocab",)),
    "added_tokens": maybe(Each(Keys({"id": ID, **_TOKEN}, ("id", "content")))),
    **dict.fromkeys(("normalizer", "pre_tokenizer", "post_processor", "decoder"), maybe(STEP)),
}, ("model",))  # fmt: skip
"""tokenizer.json. The library that reads it asks for more."""

ADDED = Values(ID)
"""added_tokens.json."""
