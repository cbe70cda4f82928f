"""`published`: for every frame the whole token list is submitted again, as the authors' code does.

Their worker gives vLLM one request a row and frame with every token so far; rows are repeated, not
shared. Within a frame the cache is kept.
"""

import torch
import transformers
from torch import Tensor

from vlarft.bench.baselines.hf import DynamicLoop
from vlarft.bench.baselines.loop import model_in
from vlarft.bench.baselines.memory import require_cache
from vlarft.bench.measure import Context, Prepared


class RepeatedPrefillLoop(DynamicLoop):
    """Generation that starts every frame from an empty cache."""

    def opening(self, frame: int, tokens: Tensor) -> tuple[Tensor, bool]:
        """Prompt, all actions and tokens so far, and the frame's actions."""
        past = torch.cat((self.given.actions.transpose(0, 1), tokens), dim=2)[:, :frame]
        parts = (self.given.prompt, past.flatten(1), self.given.actions[frame])
        return torch.cat(parts, dim=1), True


def build(context: Context) -> Prepared:
    """Prepare it.

    Raises:
        Skip: its cache does not fit in memory.
    """
    model = model_in(context)
    loop = RepeatedPrefillLoop(context, model)
    require_cache(model, loop.rows, loop.schedule.total, copies=2)
    loop.decide()
    return Prepared(loop, notes={"transformers": transformers.__version__, "attention": "sdpa"})
