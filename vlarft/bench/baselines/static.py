"""`static`: transformers' preallocated cache with the model compiled by torch.

Passes of one token are compiled, prefill and border chunks run eagerly (two more compilations would
serve 8 of 512 passes). Where compilation fails (no compiler on the machine), it runs uncompiled and
the result says why.
"""

import warnings
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import LlamaForCausalLM, StaticCache

from vlarft.bench.baselines.kv_store import CACHE, KeyValueStore
from vlarft.bench.baselines.loop import TokenLoop, model_in, schedule_of
from vlarft.bench.baselines.memory import require_cache
from vlarft.bench.clock import now
from vlarft.bench.measure import Context, Prepared


class StaticLoop(TokenLoop):
    """Generation with one `StaticCache` that is used again and again.

    Args:
        context: the case.
        model: in the dtype that is measured.
    """

    def __init__(self, context: Context, model: LlamaForCausalLM) -> None:
        super().__init__(context, model)
        self.single: Any = model
        self.cache = StaticCache(config=model.config, max_cache_len=self.schedule.total)
        rows, heads, _, dim = KeyValueStore.shape(model, self.rows, 1)
        self.cache.early_initialization(rows, heads, dim, model.dtype, model.device)
        self.filled: KeyValueStore | None = None

    def fresh(self) -> Any:
        """The same memory, taken as empty."""
        return self._as_long(0)

    def at(self, store: KeyValueStore, length: int) -> Any:
        """The store is copied once; a sampled pass rewrites its own position with equal values."""
        layer: Any
        if self.filled is not store:
            for layer, keys, values in zip(
                self.cache.layers, store.keys, store.values, strict=True
            ):
                layer.keys[:, :, : keys.shape[2]].copy_(keys)
                layer.values[:, :, : values.shape[2]].copy_(values)
            self.filled = store
        return self._as_long(length)

    def forward(self, ids: Tensor, cache: Any) -> Tensor:
        """One pass; a prefill of fewer rows than the cache has takes a cache of its own."""
        if len(ids) != self.rows:
            cache = StaticCache(config=self.model.config, max_cache_len=self.schedule.total)
        model = self.single if ids.shape[1] == 1 else self.model
        out = model(input_ids=ids, use_cache=True, logits_to_keep=1, **{CACHE: cache})
        logits: Tensor = out.logits[:, -1, : self.codes].float()
        return logits

    def _as_long(self, length: int) -> StaticCache:
        layer: Any
        for layer in self.cache.layers:
            layer.cumulative_length.fill_(length)
        return self.cache

    def compile(self) -> tuple[float, str]:
        """Compile the pass of one token; returns its seconds and, when it failed, why."""
        start = now()
        try:
            with warnings.catch_warnings(), torch.inference_mode():
                warnings.simplefilter("ignore")  # of the compiler about itself
                self.single = torch.compile(self.model, dynamic=False)
                for length in (self.schedule.prompt, self.schedule.prompt + 1):
                    self.forward(self.given.tokens[:, 0, :1], self._as_long(length))
            reason = ""
        except Exception as error:
            self.single = self.model
            reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        return now() - start, reason


def build(context: Context) -> Prepared:
    """Prepare and compile it.

    Raises:
        Skip: its cache does not fit in memory.
    """
    model = model_in(context)
    rows = context.material.case.trajectories
    require_cache(model, rows, schedule_of(context).total, copies=2)
    loop = StaticLoop(context, model)
    seconds, reason = loop.compile()
    loop.decide()
    notes = {"transformers": transformers.__version__, "compiled": not reason}
    if reason:
        notes["not_compiled_because"] = reason
    return Prepared(loop, 0.0 if reason else seconds, notes)
