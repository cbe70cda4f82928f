"""Scenes: start states as tokens, with what was computed once for each."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vlarft.engine.native import Prompts
from vlarft.errors import DataError, DtypeError, ShapeError
from vlarft.models.autoencoder import KeyValue
from vlarft.models.tokenizer import DecoderFeatures
from vlarft.reference.imagine import Prefix


class Scenes:
    """P start states; slicing and concatenation keep keys and everything computed so far.

    Attributes:
        context: context tokens, int64 [P,K0].
        first: tokens of the first frame, int64 [P,K].
        keys: scene keys of the addressed noise, int64 [P], each in [0, 2^32).
    """

    def __init__(self, context: Tensor, first: Tensor, keys: Tensor) -> None:
        self.context, self.first, self.keys = context, first, keys
        # Filled by the engine that owns the weights they were computed with.
        self.owner: object | None = None
        self.prefix: Prefix | Prompts | None = None
        self.decoder_features: DecoderFeatures | None = None

    def __len__(self) -> int:
        return self.context.shape[0]

    def __repr__(self) -> str:
        return f"Scenes({len(self)} scenes, keys {self.keys.tolist()})"

    def __getitem__(self, index: int | slice | Sequence[int] | Tensor) -> Scenes:
        """Some scenes; an integer gives one scene."""
        if isinstance(index, int):
            if not -len(self) <= index < len(self):
                raise IndexError(f"scene {index} of {len(self)}")
            index = slice(index % len(self), index % len(self) + 1)
        rows = index if isinstance(index, slice) else torch.as_tensor(index).to(self.keys.device)
        out = Scenes(self.context[rows], self.first[rows], self.keys[rows])
        out.owner = self.owner
        out.prefix = self.prefix and self.prefix.select(rows)
        out.decoder_features = self.decoder_features and self.decoder_features.select(rows)
        return out

    def with_keys(self, keys: Tensor | Sequence[int]) -> Scenes:
        """The same scenes under other noise keys [P]."""
        out = self[:]
        out.keys = scene_keys(keys, len(self), self.keys.device)
        return out

    @staticmethod
    def concatenate(parts: Sequence[Scenes]) -> Scenes:
        """Join scenes in order.

        What one part has computed and another has not is computed again when first needed.
        """
        if not parts:
            raise ShapeError("Scenes.concatenate: no scenes given; give at least one")
        out = Scenes(
            torch.cat([p.context for p in parts]),
            torch.cat([p.first for p in parts]),
            torch.cat([p.keys for p in parts]),
        )
        if parts[0].owner is None or any(p.owner is not parts[0].owner for p in parts):
            return out
        out.owner = parts[0].owner
        prefixes = [p.prefix for p in parts if isinstance(p.prefix, Prefix)]
        prompts = [p.prefix for p in parts if isinstance(p.prefix, Prompts)]
        if len(prefixes) == len(parts):
            keys, values = [p.keys for p in prefixes], [p.values for p in prefixes]
            out.prefix = Prefix(torch.cat(keys, dim=1), torch.cat(values, dim=1))
        elif len(prompts) == len(parts):
            out.prefix = Prompts.concatenate(prompts)
        features = [p.decoder_features for p in parts if p.decoder_features is not None]
        if len(features) == len(parts):
            out.decoder_features = concatenate_features(features)
        return out

    def release(self) -> None:
        """Drop what was computed; it is computed again when needed."""
        self.owner = self.prefix = self.decoder_features = None


def concatenate_features(parts: Sequence[DecoderFeatures]) -> DecoderFeatures:
    """Join decoder features along the batch."""
    keys, values = [p.attended.key for p in parts], [p.attended.value for p in parts]
    return DecoderFeatures(KeyValue(torch.cat(keys), torch.cat(values)))


def scene_keys(keys: Tensor | Sequence[int] | None, scenes: int, device: torch.device) -> Tensor:
    """Checked noise keys, int64 [P]; None gives 0 .. P-1.

    Raises:
        ShapeError, DtypeError, DataError: not P integers in [0, 2^32).
    """
    if keys is None:
        return torch.arange(scenes, device=device)
    out = torch.as_tensor(keys)
    if out.shape != (scenes,):
        raise ShapeError(f"keys must be [{scenes}], one a scene, got {list(out.shape)}")
    if out.is_floating_point() or out.dtype == torch.bool:
        raise DtypeError(f"keys must be integers, got {out.dtype}")
    out = out.to(device, torch.int64)
    if bool(((out < 0) | (out >= 2**32)).any()):
        raise DataError(f"keys must lie in [0, 2^32), got {out.tolist()}")
    return out
