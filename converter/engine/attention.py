"""What attention does with values: the mixing matrices that tell how errors of v add up.

A head's output at position t is sum_j a_tj v_j. An error D of the weights of v, which reads x_j,
therefore comes out as D (sum_j a_tj x_j): what matters for v is the second moment of the *mixed*
inputs, not of the inputs. Errors that differ from token to token average out in attention, and
those that tokens have in common - or that sit on a token which everything attends to - do not.
Own work; measured in docs/calibration.md.

transformers lets an attention function be registered by name; ours computes what `sdpa` does and,
while somebody listens in this thread, tells of its queries, keys and values.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

NAME = "qconvert"

Ear = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None, float | None], None]
_ears = threading.local()


def register() -> None:
    """Make `attn_implementation=NAME` known to transformers. May be called again."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
    from transformers.modeling_utils import AttentionInterface

    def attend(
        module: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        **settings: Any,
    ) -> Any:
        ear: Ear | None = getattr(_ears, "ear", None)
        if ear is not None:
            ear(query, key, value, attention_mask, settings.get("scaling"))
        cap = settings.get("softcap")
        if cap is not None:
            scaling = settings.get("scaling")
            return capped(query, key, value, attention_mask, scaling, cap), None
        return sdpa_attention_forward(module, query, key, value, attention_mask, **settings)

    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, sdpa_mask)


@contextmanager
def listening(ear: Ear) -> Iterator[None]:
    """Attention in this thread tells `ear(query, key, value, mask, scaling)`: keys after RoPE and
    values [1, key heads, length, head], as they enter a cache."""
    _ears.ear = ear
    try:
        yield
    finally:
        _ears.ear = None


def capped(
    query: torch.Tensor,  # [1, heads, length, head]
    key: torch.Tensor,  # [1, key heads, length, head]
    value: torch.Tensor,  # [1, key heads, length, head]
    mask: torch.Tensor | None,  # as in `mixing`
    scaling: float | None,
    cap: float,
) -> torch.Tensor:
    """Attention whose scores are cap * tanh(score / cap), which `sdpa` cannot compute (Gemma 2):
    [1, length, heads, head]."""
    heads, length, size = query.shape[1:]
    shared = heads // key.shape[1]
    key, value = (one.repeat_interleave(shared, dim=1) for one in (key, value))
    scores = query @ key.transpose(2, 3) * (size**-0.5 if scaling is None else scaling)
    scores = torch.tanh(scores / cap) * cap
    if mask is None:
        mask = torch.ones(length, length, dtype=torch.bool, device=query.device).tril()
    if mask.dtype == torch.bool:
        scores = scores.masked_fill(~mask, -torch.inf)
    else:
        scores = scores + mask
    weights = scores.softmax(-1, dtype=torch.float32).to(query.dtype)
    return (weights @ value).transpose(1, 2).contiguous()


def mixing(
    query: torch.Tensor,  # [1, heads, length, head]
    key: torch.Tensor,  # [1, key heads, length, head]
    mask: torch.Tensor | None,  # [1, 1, length, length] bool or added; None: causal
    scaling: float | None,
) -> torch.Tensor:
    """M [length, length], the mean over heads of A'A, A the attention of a head [to, from]: x' M x
    are the products of the inputs x as the heads mix them. Of all heads together: to tell key heads
    apart was measured to gain nothing. Products of A may run in a narrower type, sums are float32.
    """
    heads, length, size = query.shape[1:]
    key_heads = key.shape[1]
    scale = size**-0.5 if scaling is None else scaling
    if mask is None:
        mask = torch.ones(length, length, dtype=torch.bool, device=query.device).tril()
    mask = mask.reshape(length, length)
    found = torch.zeros(length, length, device=query.device)
    for head in range(heads):
        scores = (query[0, head] @ key[0, head * key_heads // heads].t()).float() * scale
        if mask.dtype == torch.bool:
            scores = scores.masked_fill(~mask, -torch.inf)
        else:
            scores = scores + mask
        weights = scores.softmax(-1)
        found += weights.t() @ weights
    return found / heads
