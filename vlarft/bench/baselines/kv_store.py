"""Keys and values of a whole rollout, from which a cache of any length is cut."""

from dataclasses import dataclass
from inspect import signature
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, LlamaForCausalLM, LlamaModel

_ROWS_AT_ONCE = 4

CACHE = next(
    name
    for name in ("cache", "past_key_values")
    if name in signature(LlamaModel.forward).parameters
)
"""What transformers calls the argument that takes a cache: another name since version 5.24."""


@dataclass(frozen=True)
class KeyValueStore:
    """One tensor a layer, [R,Hkv,L,D].

    Attributes:
        keys: of every layer.
        values: of every layer.
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]

    @staticmethod
    def shape(model: LlamaForCausalLM, rows: int, length: int) -> tuple[int, int, int, int]:
        """Shape of one layer's keys."""
        config = model.config
        heads = int(config.num_key_value_heads or config.num_attention_heads)
        dim = int(config.head_dim or config.hidden_size // config.num_attention_heads)
        return rows, heads, length, dim

    @staticmethod
    def bytes(model: LlamaForCausalLM, rows: int, length: int) -> int:
        """Memory of all layers."""
        shape = KeyValueStore.shape(model, rows, length)
        elements = 2 * model.config.num_hidden_layers * shape[0] * shape[1] * shape[2] * shape[3]
        return int(elements) * model.dtype.itemsize

    @staticmethod
    def zeros(model: LlamaForCausalLM, rows: int, length: int) -> "KeyValueStore":
        """Zeros that take no memory: all layers are one broadcast number."""
        shape = KeyValueStore.shape(model, rows, length)
        layer = torch.zeros(1, dtype=model.dtype, device=model.device).expand(shape)
        layers = (layer,) * model.config.num_hidden_layers
        return KeyValueStore(layers, layers)

    @staticmethod
    def of(model: LlamaForCausalLM, prompt: Tensor, suffix: Tensor) -> "KeyValueStore":
        """What the model computes for given ids: int64 [R,S] and [R,L-S].

        Rows with equal prompts (neighbours, by construction) share one prefill.
        """
        length = prompt.shape[1] + suffix.shape[1]
        shape = KeyValueStore.shape(model, len(prompt), length)
        layers = range(model.config.num_hidden_layers)

        def empty() -> tuple[Tensor, ...]:
            return tuple(torch.empty(shape, dtype=model.dtype, device=model.device) for _ in layers)

        keys, values = empty(), empty()
        scenes, scene = prompt.unique_consecutive(dim=0, return_inverse=True)
        with torch.inference_mode():
            for number, ids in enumerate(scenes):
                first = DynamicCache(config=model.config)
                shared: Any
                own: Any
                model.model(input_ids=ids[None], use_cache=True, **{CACHE: first})
                members = (scene == number).nonzero()[:, 0]
                for rows in members.split(_ROWS_AT_ONCE):
                    cache = DynamicCache(config=model.config)
                    for own, shared in zip(cache.layers, first.layers, strict=True):
                        set_layer(
                            own,
                            shared.keys.expand(len(rows), -1, -1, -1),
                            shared.values.expand(len(rows), -1, -1, -1),
                        )
                    model.model(input_ids=suffix[rows], use_cache=True, **{CACHE: cache})
                    for i, own in enumerate(cache.layers):
                        keys[i][rows], values[i][rows] = own.keys, own.values
        return KeyValueStore(keys, values)


def set_layer(layer: object, keys: Tensor, values: Tensor) -> None:
    """Fill one layer of transformers' DynamicCache without copying."""
    vars(layer).update(
        dtype=keys.dtype, device=keys.device, keys=keys, values=values, is_initialized=True
    )
