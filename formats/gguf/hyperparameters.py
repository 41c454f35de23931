"""Sizes and switches of a model, read from config.json and held against what llama.cpp can do."""

from __future__ import annotations

from dataclasses import dataclass

from qconvert.formats.gguf.architecture import GELU_TANH, Architecture
from qconvert.formats.settings import Settings

MAX_BLOCKS = 512  # LLAMA_MAX_LAYERS of llama.cpp


@dataclass(frozen=True, slots=True)
class Hyperparameters:
    """What the metadata and the layout need. `sliding` names the blocks that attend locally."""

    hidden: int
    blocks: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    context: int
    vocab: int
    norm_eps: float
    window: int | None
    sliding: tuple[bool, ...]
    parallel_residual: bool | None
    soft_cap: float | None
    notes: tuple[str, ...]

    @property
    def grouped(self) -> int:
        """Query heads per key head."""
        return self.heads // self.kv_heads

    def is_wide(self, arch: Architecture) -> bool:
        """True for what llama.cpp's mixes call a 70B model."""
        grouped = self.heads != self.kv_heads or not arch.wide_when_grouped
        return self.blocks == arch.wide_blocks and grouped


def read_hyperparameters(settings: Settings, arch: Architecture) -> Hyperparameters:
    """Sizes and switches; what llama.cpp would ignore or cannot do is noted in `settings`."""
    hidden, heads = settings.count("hidden_size"), settings.count("num_attention_heads")
    kv_heads = settings.count("num_key_value_heads", fallback=heads)
    blocks = settings.count("num_hidden_layers")
    head_dim = settings.count("head_dim", fallback=max(1, hidden // heads))
    _check_sizes(settings, arch, hidden, heads, kv_heads, head_dim, blocks)
    _check_switches(settings, arch)
    sliding = _sliding_blocks(settings, arch, min(blocks, MAX_BLOCKS))
    window = settings.count("sliding_window") if any(sliding) else None
    context, notes = _context(settings, arch, window)
    _check_attention_scale(settings, arch, hidden, heads, head_dim, blocks)
    return Hyperparameters(
        hidden=hidden,
        blocks=blocks,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        ffn=settings.count("intermediate_size", fallback=4 * hidden),
        context=context,
        vocab=settings.count("vocab_size"),
        norm_eps=settings.number("norm_eps" if "norm_eps" in arch.keys else "rms_norm_eps"),
        window=window,
        sliding=sliding,
        parallel_residual=_parallel_residual(settings, arch),
        soft_cap=_soft_cap(settings, arch),
        notes=(*notes, *_activation_note(settings)),
    )


def _check_sizes(
    settings: Settings,
    arch: Architecture,
    hidden: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    blocks: int,
) -> None:
    if heads % kv_heads:
        settings.refuse(f"{heads} heads cannot share {kv_heads} key and value heads evenly")
    if blocks > MAX_BLOCKS:
        settings.refuse(f"{blocks} blocks: llama.cpp holds at most {MAX_BLOCKS}")
    if head_dim % 2 and arch.ropes:
        settings.refuse(f"head size {head_dim} is odd: rotary positions need an even one")
    if not arch.free_head_dim and heads * head_dim != hidden:
        settings.refuse(
            f"{heads} heads of {head_dim} do not make the hidden size {hidden}: "
            f"llama.cpp's {arch.name} needs them to",
        )


def _check_switches(settings: Settings, arch: Architecture) -> None:
    for key, allowed in arch.only.items():
        value = settings.get(key)
        if not isinstance(value, bool | int | float | str | None) or value not in allowed:
            settings.refuse(
                f"config.json: {key} is {value!r}, which llama.cpp's {arch.name} would ignore",
                f"it computes {key} = {' or '.join(sorted(map(repr, allowed)))} only",
            )
    activation = settings.get("hidden_act")
    allowed_names = arch.activations | ({"gelu"} if arch.activations == GELU_TANH else set())
    if activation not in allowed_names:
        settings.refuse(
            f"config.json: the activation is {activation!r}",
            f"llama.cpp's {arch.name} computes {' or '.join(sorted(allowed_names))} only",
        )
    pattern, interval = settings.get("no_rope_layers"), settings.get("no_rope_layer_interval")
    if isinstance(pattern, list) and pattern:
        ropes = [int((block + 1) % 4 != 0) for block in range(len(pattern))]
        if [int(bool(value)) for value in pattern] != ropes:
            settings.refuse("config.json: no_rope_layers is not every fourth block")
    elif interval not in (None, 4):
        settings.refuse(f"config.json: no_rope_layer_interval is {interval!r}, not 4")


def _activation_note(settings: Settings) -> tuple[str, ...]:
    if settings.get("hidden_act") != "gelu":
        return ()
    return ("activation gelu: llama.cpp computes its tanh form (it differs by up to 0.0005)",)


def _sliding_blocks(settings: Settings, arch: Architecture, blocks: int) -> tuple[bool, ...]:
    """Which blocks attend to a window, by the family's own rules."""
    if arch.windows == "none" or settings.get("sliding_window") is None:
        return (False,) * blocks
    if arch.windows == "all":
        return (True,) * blocks
    if arch.windows == "by_layer" and not settings.get("use_sliding_window"):
        return (False,) * blocks
    named = settings.get("layer_types")
    if named is not None:
        known = {"sliding_attention", "full_attention"}
        if not isinstance(named, list) or len(named) != blocks or not set(named) <= known:
            settings.refuse(f"config.json: layer_types is not {blocks} times one of {known}")
            return (False,) * blocks
        return tuple(name == "sliding_attention" for name in named)
    if arch.windows == "by_layer":
        first = settings.get("max_window_layers")
        return tuple(block >= int(first or 0) for block in range(blocks))
    period = settings.count("sliding_window_pattern", fallback=6)
    return tuple((block + 1) % period != 0 for block in range(blocks))


def _context(
    settings: Settings, arch: Architecture, window: int | None
) -> tuple[int, tuple[str, ...]]:
    """Context length. Where llama.cpp has no window, the file promises no more than one."""
    context = settings.count("max_position_embeddings")
    if window is None or arch.windows == "pattern" or window >= context:
        return context, ()
    note = (
        f"llama.cpp's {arch.name} has no sliding window: context length is {window} (the window) "
        f"instead of {context}, inside which both agree"
    )
    return window, (note,)


def _check_attention_scale(
    settings: Settings, arch: Architecture, hidden: int, heads: int, head_dim: int, blocks: int
) -> None:
    """Gemma: llama.cpp scales by the head size, or for 62 blocks by the hidden size."""
    scalar = settings.get("query_pre_attn_scalar")
    implied = hidden // heads if blocks == 62 else head_dim
    if scalar is not None and scalar != implied and "query_pre_attn_scalar" in arch.defaults:
        settings.refuse(
            f"config.json: query_pre_attn_scalar is {scalar!r}",
            f"llama.cpp's {arch.name} computes with {implied} here",
        )


def _parallel_residual(settings: Settings, arch: Architecture) -> bool | None:
    if "use_parallel_residual" not in arch.defaults:
        return None
    return bool(settings.get("use_parallel_residual"))


def _soft_cap(settings: Settings, arch: Architecture) -> float | None:
    if not arch.soft_cap or settings.get("final_logit_softcapping") is None:
        return None
    return settings.number("final_logit_softcapping")
