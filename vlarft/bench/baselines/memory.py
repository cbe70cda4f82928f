"""Refusal of a baseline whose cache does not fit, before it takes any."""

from transformers import LlamaForCausalLM

from vlarft.bench.baselines.kv_store import KeyValueStore
from vlarft.bench.measure import Skip
from vlarft.engine.plan import free_memory, readable


def require_cache(model: LlamaForCausalLM, rows: int, length: int, copies: int) -> None:
    """Refuse when `copies` caches of all rows do not fit.

    Raises:
        Skip: naming what it takes and what is free.
    """
    need = copies * KeyValueStore.bytes(model, rows, length)
    free = free_memory(model.device)
    if need > free:
        raise Skip(f"its caches take {readable(need)}, {readable(free)} are free")
