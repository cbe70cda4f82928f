"""`published`: for every frame the whole token list is submitted again, as the authors' code does.

Their worker gives vLLM one request a row and frame with every token so far; rows are repeated, not
shared. Within a frame the cache is kept.
"""

import torch
from torch import Tensor

from vlarft.bench.baselines.hf import DynamicLoop, prepare
from vlarft.bench.measure import Context, Prepared


class RepeatedPrefillLoop(DynamicLoop):
    """Generation that starts every frame from an empty cache."""

    def opening(self, frame: int, tokens: Tensor) -> tuple[Tensor, bool]:
        """Prompt, all actions and tokens so far, and the frame's actions."""
        past = torch.cat((self.given.actions.transpose(0, 1), tokens), dim=2)[:, :frame]
        parts = (self.given.prompt, past.flatten(1), self.given.actions[frame])
        return torch.cat(parts, dim=1), True


def build(context: Context) -> Prepared:
    """Prepare it; raises as `prepare`."""
    return prepare(context, RepeatedPrefillLoop)
