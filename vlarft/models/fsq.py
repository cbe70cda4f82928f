"""Finite scalar quantisation (arXiv 2309.15505): codes are digits, no codebook is learned."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

OFFICIAL_LEVELS = {
    12: (7, 5, 5, 5, 5)
}  # the official configuration names level sets by log2 of their size
_SHRINK = 1e-3  # keeps tanh's extremes from rounding to one level too many


class FSQ:
    """Levels L_d (odd) and the mixed-radix numbering of their codes.

    Args:
        levels: number of values of each dimension, all odd and at least 3; the first is the
            least significant digit of an index.
    """

    def __init__(self, levels: Sequence[int]) -> None:
        self.levels = tuple(levels)
        self.size = math.prod(self.levels)
        self.basis = tuple(math.prod(self.levels[:d]) for d in range(len(self.levels)))

    def quantize(self, z: Tensor) -> Tensor:
        """Round `z` [..., D] to codes in [-1, 1] with a straight-through gradient.

        bound(z) = tanh(z) (L - 1) (1 + 1e-3) / 2, code = round(bound) / (L // 2), in float32.
        """
        half = self._tensor(z.device, torch.float32) // 2
        bounded = torch.tanh(z.float()) * (half * (1 + _SHRINK))
        return (bounded + (bounded.round() - bounded).detach()) / half

    def indices(self, codes: Tensor) -> Tensor:
        """Codes in [-1, 1] [..., D] -> int64 indices [...]."""
        half = self._tensor(codes.device, torch.float32) // 2
        digits = (codes.float() * half + half).round().long()
        return (digits * torch.tensor(self.basis, device=codes.device)).sum(-1)

    def codes(self, indices: Tensor) -> Tensor:
        """Int64 indices [...] -> codes in [-1, 1], float32 [..., D].

        An index above the codebook's size is read digit by digit, so the official offset of
        context tokens (a multiple of every level) changes nothing.
        """
        levels = self._tensor(indices.device, torch.int64)
        basis = torch.tensor(self.basis, device=indices.device)
        digits = torch.div(indices.unsqueeze(-1), basis, rounding_mode="floor") % levels
        half = levels // 2
        return (digits - half).float() / half.float()

    def _tensor(self, device: torch.device, dtype: torch.dtype) -> Tensor:
        return torch.tensor(self.levels, device=device, dtype=dtype)
