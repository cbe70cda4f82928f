"""Causal attention of the prompt's prefill, by the kernel of one's choice.

A choice that cannot run here is refused with the reason; nothing is swapped in its place.
"""

from collections.abc import Callable
from importlib import import_module

import torch
from torch import Tensor
from torch.nn import functional as F

from vlarft.errors import BackendError
from vlarft.models.attention import attention_reasons

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(q [B,Hq,S,D], k, v [B,Hkv,S,D]) -> [B,Hq,S,D]; causal, scores not scaled."""


def causal_attention(name: str, device: torch.device, dtype: torch.dtype) -> Attention:
    """Resolve `sdpa`, `flash-attn` or `xformers`.

    Raises:
        ConfigError: unknown name.
        BackendError: the named kernel cannot run here; the message lists every reason.
    """
    reasons = attention_reasons(name, device, dtype)
    if reasons:
        raise BackendError(
            f"prefill attention '{name}' is not available: {'; '.join(reasons)}; use 'sdpa'"
        )
    return {"sdpa": _sdpa, "flash-attn": _flash, "xformers": _xformers}[name]


def _sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    grouped = q.shape[1] != k.shape[1]
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=1.0, enable_gqa=grouped)


def _flash(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    flash = import_module("flash_attn").flash_attn_func
    rows = (x.transpose(1, 2) for x in (q, k, v))  # flash-attn wants [B,S,H,D] and takes groups
    out: Tensor = flash(*rows, causal=True, softmax_scale=1.0)
    return out.transpose(1, 2)


def _xformers(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    ops = import_module("xformers.ops")
    repeats = q.shape[1] // k.shape[1]
    rows = (x.transpose(1, 2) for x in (q, *(y.repeat_interleave(repeats, 1) for y in (k, v))))
    causal = ops.LowerTriangularMask()
    out: Tensor = ops.memory_efficient_attention(*rows, attn_bias=causal, scale=1.0)
    return out.transpose(1, 2)
