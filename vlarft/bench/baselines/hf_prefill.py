"""`hf` of the stage prefill: transformers' forward over the prompts, one row a scene.

Only what is needed later is kept: keys and values. Transformers computes the last layer to its end.
"""

from dataclasses import dataclass

import torch
import transformers
from torch import Tensor
from transformers import DynamicCache, LlamaForCausalLM

from vlarft.bench.baselines.kv_store import CACHE
from vlarft.bench.baselines.loop import model_in
from vlarft.bench.measure import Context, Prepared, Timed


@dataclass(frozen=True)
class Forward:
    """Transformers' decoder without its head.

    Attributes:
        model: in the dtype that is measured.
        prompt: int64 [P,S].
    """

    model: LlamaForCausalLM
    prompt: Tensor

    def __call__(self) -> None:
        """Prefill once."""
        with torch.inference_mode():
            cache = DynamicCache(config=self.model.config)
            self.model.model(input_ids=self.prompt, use_cache=True, **{CACHE: cache})


def build(context: Context) -> Prepared:
    """Prepare it and warm it up."""
    material = context.material
    prompt = material.world.prompt_ids(material.context, material.first)
    forward = Forward(model_in(context), prompt)
    forward()
    return Prepared(Timed(forward), notes={"transformers": transformers.__version__})
