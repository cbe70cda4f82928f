"""`summary.json`: relative changes with their intervals."""

from typing import Any

import torch
from torch import Tensor

from vlarft.rft.evaluation import Change, Evaluation, paired_interval


def before_after(before: list[Evaluation], after: list[Evaluation]) -> dict[str, Any]:
    """Distances and action errors before and after, one evaluation a seed."""
    episodes = before[0].episode

    def both(name: str) -> tuple[Tensor, Tensor, Change]:
        b, a = (torch.stack([getattr(e, name) for e in part]) for part in (before, after))
        return b, a, paired_interval(b, a, episodes)

    distance, action = both("distance"), both("action_l1")
    return {
        "distance_before": float(distance[0].mean()),
        "distance_after": float(distance[1].mean()),
        "distance_change": distance[2].to_dict(),
        "action_l1_before": float(action[0].mean()),
        "action_l1_after": float(action[1].mean()),
        "action_l1_change": action[2].to_dict(),
    }
