"""Which attention implementation a transformers model uses, chosen by name and never replaced."""

import importlib
import importlib.util
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import flash_attention_mask

from vlarft.errors import BackendError, ConfigError

Attention = Literal["sdpa", "flash-attn", "xformers"]
ATTENTIONS: tuple[Attention, ...] = get_args(Attention)
_PACKAGE = {"flash-attn": "flash_attn", "xformers": "xformers"}
_TRANSFORMERS_NAME = {
    "sdpa": "sdpa",
    "flash-attn": "flash_attention_2",
    "xformers": "vlarft_xformers",
}


def attention_reasons(
    name: str, device: torch.device | str | None = None, dtype: torch.dtype | None = None
) -> list[str]:
    """Why an implementation cannot run here; empty when it can.

    Args:
        name: `sdpa`, `flash-attn` or `xformers`.
        device: where it is to run; None asks about the installation only.
        dtype: type of queries, keys and values; None likewise.

    Raises:
        ConfigError: no implementation of that name.
    """
    if name not in ATTENTIONS:
        raise ConfigError(f"attention '{name}' is unknown; allowed: {', '.join(ATTENTIONS)}")
    if name == "sdpa":
        return []
    reasons = []
    package = _PACKAGE[name]
    if importlib.util.find_spec(package) is None:
        extra = "flash" if name == "flash-attn" else "xformers"
        reasons.append(f"package {package} is not installed (pip install 'vlarft[{extra}]')")
    if device is None:
        if not torch.cuda.is_available():
            reasons.append("this machine has no CUDA GPU")
    elif torch.device(device).type != "cuda":
        reasons.append(f"it runs on CUDA only, the model is on {torch.device(device)}")
    half = (torch.float16, torch.bfloat16)
    if name == "flash-attn" and dtype is not None and dtype not in half:
        reasons.append(f"it takes float16 or bfloat16, the model is {str(dtype).split('.')[-1]}")
    return reasons


def require_attention(
    name: str, device: torch.device | str | None = None, dtype: torch.dtype | None = None
) -> str:
    """The name by which transformers knows an implementation.

    Raises:
        BackendError: it cannot run here; the message names it, says why and what else there is.
        ConfigError: no implementation of that name.
    """
    reasons = attention_reasons(name, device, dtype)
    if reasons:
        raise BackendError(f"attention '{name}' is not available: {'; '.join(reasons)}; use 'sdpa'")
    if name == "xformers":
        _register_xformers()
    return _TRANSFORMERS_NAME[name]


def _register_xformers() -> None:
    # Without padding the mask is None and causality comes from the layer, as for flash attention.
    AttentionInterface.register(_TRANSFORMERS_NAME["xformers"], _xformers_attention)
    AttentionMaskInterface.register(_TRANSFORMERS_NAME["xformers"], flash_attention_mask)


def _xformers_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attention as transformers calls it, over [B, heads, L, D]; returns [B, L, heads, D]."""
    if attention_mask is not None:
        raise BackendError("attention 'xformers': padded batches are not supported; use 'sdpa'")
    ops = importlib.import_module("xformers.ops")
    causal = options.get("is_causal")
    if causal is None:
        causal = getattr(module, "is_causal", False)
    repeat = query.shape[1] // key.shape[1]
    packed = (
        x.repeat_interleave(r, dim=1).transpose(1, 2)
        for x, r in ((query, 1), (key, repeat), (value, repeat))
    )
    # With a cache there are fewer queries than keys; the last query must meet the last key.
    offset = key.shape[2] - query.shape[2]
    bias = None
    if causal and query.shape[2] > 1:
        bias = ops.LowerTriangularFromBottomRightMask() if offset else ops.LowerTriangularMask()
    mixed: Tensor = ops.memory_efficient_attention(
        *packed, attn_bias=bias, p=dropout, scale=scaling
    )
    return mixed, None
