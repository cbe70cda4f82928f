"""Actions between raw LIBERO units, a policy's normalised units and the world model's bins.

Raw: six controller deltas in [-1, 1], then the gripper, -1 opens and +1 closes. This is the only
place where actions are normalised or binned.
"""

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from vlarft.errors import DataError, ShapeError

Vector: TypeAlias = Sequence[float] | npt.NDArray[np.floating] | torch.Tensor
EPSILON = 1e-8  # of the official code, in binning and normalisation alike


def binarize_gripper(raw: torch.Tensor) -> torch.Tensor:
    """Actions [..., A] whose last entry is binarised: above 0 closes (+1), else opens (-1).

    Source: spec 11.5.
    """
    gripper = torch.where(raw[..., -1:] > 0, 1.0, -1.0).to(raw.dtype)
    return torch.cat([raw[..., :-1], gripper], dim=-1)


class ActionBinner:
    """Raw actions to bins: floor(bins * clip((a - low) / (high - low + 1e-8), 0, 1)).

    The upper end falls into the last bin. Source: spec 3.4.

    Args:
        low: A lower ends in raw units.
        high: A upper ends in raw units, none below its lower end.
        bins: bins of one dimension, 2 or more.

    Raises:
        DataError: the ends are not finite, of different lengths or in the wrong order.
    """

    def __init__(self, low: Vector, high: Vector, bins: int = 256) -> None:
        self.low, self.high = _range("action binning", low, high)
        if bins < 2:
            raise DataError(f"{bins} action bins; allowed: 2 or more")
        self.count = bins

    def bins(self, raw: torch.Tensor) -> torch.Tensor:
        """Bins of actions; the gripper is binarised first, other entries are clipped to the range.

        Args:
            raw: floating point [..., A] in raw LIBERO units.

        Returns:
            int64 [..., A] in 0 to count-1.

        Raises:
            ShapeError: the last dimension is not A.
            DataError: an action is NaN or infinite.
        """
        _check("bins", raw, self.low)
        if not bool(torch.isfinite(raw).all()):
            raise DataError("bins: an action is NaN or infinite; look at the policy's output")
        low, high = self.low.to(raw.device), self.high.to(raw.device)
        unit = ((binarize_gripper(raw).float() - low) / (high - low + EPSILON)).clamp(0, 1)
        return (unit * self.count).floor().long().clamp(max=self.count - 1)


class ActionNormalizer:
    """Controller deltas to [-1, 1] by quantiles; the gripper (last entry) stays raw (spec 7).

    Args:
        q01: A 1% quantiles of the training actions, raw units.
        q99: A 99% quantiles.

    Raises:
        DataError: the quantiles are not finite, of different lengths or in the wrong order.
    """

    def __init__(self, q01: Vector, q99: Vector) -> None:
        self.q01, self.q99 = _range("action normalisation", q01, q99)
        self._scaled = torch.ones(len(self.q01), dtype=torch.bool)
        self._scaled[-1] = False

    def normalize(self, raw: torch.Tensor) -> torch.Tensor:
        """Raw actions [..., A] to [-1, 1], clipped; a constant dimension gives 0."""
        _check("normalize", raw, self.q01)
        return torch.where(self._scaled.to(raw.device), _to_unit(raw, self.q01, self.q99), raw)

    def denormalize(self, normalized: torch.Tensor) -> torch.Tensor:
        """Normalised actions [..., A] to raw, not clipped; a constant dimension keeps its value."""
        _check("denormalize", normalized, self.q01)
        q01, q99 = self.q01.to(normalized), self.q99.to(normalized)
        raw = torch.where(q99 > q01, 0.5 * (normalized + 1) * (q99 - q01 + EPSILON) + q01, q01)
        return torch.where(self._scaled.to(normalized.device), raw, normalized)


class ProprioceptionNormalizer:
    """Proprioception to [-1, 1] by quantiles, every entry.

    Args:
        q01: 1% quantiles of the training data.
        q99: 99% quantiles.

    Raises:
        DataError: the quantiles are not finite, of different lengths or in the wrong order.
    """

    def __init__(self, q01: Vector, q99: Vector) -> None:
        self.q01, self.q99 = _range("proprioception normalisation", q01, q99)

    def normalize(self, raw: torch.Tensor) -> torch.Tensor:
        """Values [..., 8] in m and rad to [-1, 1], clipped; a constant dimension gives 0."""
        _check("normalize", raw, self.q01)
        return _to_unit(raw, self.q01, self.q99)


def _to_unit(raw: torch.Tensor, q01: torch.Tensor, q99: torch.Tensor) -> torch.Tensor:
    q01, q99 = q01.to(raw), q99.to(raw)
    unit = (2 * (raw - q01) / (q99 - q01 + EPSILON) - 1).clamp(-1, 1)
    return torch.where(q99 > q01, unit, torch.zeros_like(unit))


def _range(what: str, low: Vector, high: Vector) -> tuple[torch.Tensor, torch.Tensor]:
    low, high = (
        torch.as_tensor(low, dtype=torch.float32).cpu(),
        torch.as_tensor(high, dtype=torch.float32).cpu(),
    )
    if low.dim() != 1 or low.shape != high.shape or not len(low):
        raise DataError(
            f"{what}: ends of shape {list(low.shape)} and {list(high.shape)}; "
            "expected two vectors of one length"
        )
    if not bool((torch.isfinite(low) & torch.isfinite(high) & (low <= high)).all()):
        raise DataError(
            f"{what}: from {low.tolist()} to {high.tolist()}; expected finite values, low <= high"
        )
    return low, high


def _check(name: str, values: torch.Tensor, size: torch.Tensor) -> None:
    if not values.dim() or values.shape[-1] != len(size) or not values.is_floating_point():
        raise ShapeError(
            f"{name}: {values.dtype} {list(values.shape)}; "
            f"expected floating point [..., {len(size)}]"
        )
