"""Choosing a token: temperature, top-k, top-p, Gumbel-max."""

import torch
from torch import Tensor


def kept_ids(logits: Tensor, top_k: int | None, top_p: float) -> Tensor:
    """Which ids may be sampled.

    Ids are ordered by (probability descending, id ascending). Top-k keeps the first k. Top-p then
    keeps an id while the mass before it, of the ids that top-k kept, is < p: the id that crosses p
    is kept, and the first one always is.

    Args:
        logits: float32 [..., C], after temperature.
        top_k: number of ids to keep, None for all.
        top_p: mass in (0, 1].

    Returns:
        bool [..., C].
    """
    ordered, ids = torch.softmax(logits, dim=-1).sort(dim=-1, descending=True, stable=True)
    if top_k is not None:
        ordered, ids = ordered[..., :top_k], ids[..., :top_k]
    if top_p < 1:
        mass = ordered.double()
        mass = mass / mass.sum(-1, keepdim=True)
        kept = mass.cumsum(-1) - mass < top_p
        kept[..., 0] = True  # the mass before the first id is 0 by definition, not by rounding
    else:
        kept = torch.ones_like(ids, dtype=torch.bool)
    return torch.zeros_like(logits, dtype=torch.bool).scatter_(-1, ids, kept)


def sample(
    logits: Tensor,
    noise: Tensor | None,
    *,
    temperature: float,
    top_k: int | None,
    top_p: float,
) -> Tensor:
    """Sample one id per row: argmax of logits / temperature + Gumbel noise over the kept ids.

    Args:
        logits: float32 [..., C] of the allowed ids.
        noise: float32, broadcastable to `logits`; unused (may be None) at temperature 0.
        temperature: >= 0; 0 takes the largest logit, the lowest id on ties.
        top_k: ids to keep, None for all.
        top_p: mass to keep in (0, 1].

    Returns:
        int64 [...].
    """
    if temperature == 0 or noise is None:
        return logits.argmax(-1)
    logits = logits / temperature
    scores = logits + noise
    if top_p < 1 or (top_k is not None and top_k < logits.shape[-1]):
        scores = scores.masked_fill(~kept_ids(logits, top_k, top_p), float("-inf"))
    return scores.argmax(-1)
