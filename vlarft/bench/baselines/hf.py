"""`hf`: transformers' own model and growing cache, as in its `generate`; what users have today.

The whole batch of P N rows at once, each with its own copy of the prompt; the cache is kept across
frames, actions are appended as a chunk, logits are computed for the last token only.
"""

from typing import Any

import transformers
from transformers import DynamicCache

from vlarft.bench.baselines.kv_store import KeyValueStore, set_layer
from vlarft.bench.baselines.loop import TokenLoop, model_in
from vlarft.bench.baselines.memory import require_cache
from vlarft.bench.measure import Context, Prepared


class DynamicLoop(TokenLoop):
    """Generation with `DynamicCache`, which concatenates at every pass."""

    def fresh(self) -> Any:
        """An empty cache."""
        return DynamicCache(config=self.model.config)

    def at(self, store: KeyValueStore, length: int) -> Any:
        """Views of the store; the next pass concatenates, as it always does."""
        cache = DynamicCache(config=self.model.config)
        for layer, keys, values in zip(cache.layers, store.keys, store.values, strict=True):
            set_layer(layer, keys[:, :, :length], values[:, :, :length])
        return cache


def prepare(context: Context, kind: type[DynamicLoop]) -> Prepared:
    """Prepare a loop of this kind.

    Raises:
        Skip: its cache does not fit in memory.
    """
    model = model_in(context)
    loop = kind(context, model)
    require_cache(model, loop.rows, loop.schedule.total, copies=2)
    loop.decide()
    return Prepared(loop, notes={"transformers": transformers.__version__, "attention": "sdpa"})


def build(context: Context) -> Prepared:
    """Prepare it; raises as `prepare`."""
    return prepare(context, DynamicLoop)
