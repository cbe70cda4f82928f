"""Quantiles and ranges of actions and proprioception: what models need to know of the data."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from vlarft.data.actions import ActionNormalizer, ProprioceptionNormalizer
from vlarft.data.libero import ORIENTATION, Episode
from vlarft.errors import DataError

__all__ = ["ActionNormalizer", "ProprioceptionNormalizer", "Statistics", "compute_statistics"]


@dataclass(frozen=True)
class Statistics:
    """What a model must know about the data it was trained on.

    Attributes:
        action_q01: 1% quantile of each action entry, raw LIBERO units.
        action_q99: 99% quantile.
        action_min: lower end for binning; the gripper's is -1 (spec 11.6).
        action_max: upper end for binning; the gripper's is 1.
        proprioception_q01: 1% quantile of each of the 8 entries, m and rad.
        proprioception_q99: 99% quantile.
        episodes: number of episodes seen.
        steps: number of actions seen.
        orientation: how frames were turned; models refuse frames of another orientation.
    """

    action_q01: tuple[float, ...]
    action_q99: tuple[float, ...]
    action_min: tuple[float, ...]
    action_max: tuple[float, ...]
    proprioception_q01: tuple[float, ...]
    proprioception_q99: tuple[float, ...]
    episodes: int
    steps: int
    orientation: str = ORIENTATION

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in asdict(self).items()
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Statistics":
        """Inverse of `to_dict`.

        Raises:
            DataError: a key is missing or unknown.
        """
        known = {field.name for field in fields(cls)}
        if known != set(values):
            wrong = sorted(known.symmetric_difference(values))
            raise DataError(
                f"statistics: keys {', '.join(wrong)} missing or unknown; "
                f"known: {', '.join(sorted(known))}"
            )
        arguments: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in values.items()
        }
        return cls(**arguments)


def compute_statistics(episodes: Sequence[Episode]) -> Statistics:
    """Statistics over every step of the episodes; give the training split only.

    Raises:
        DataError: no episodes.
    """
    if not episodes:
        raise DataError("statistics of no episodes; read at least one")
    actions = np.concatenate([episode.actions for episode in episodes]).astype(np.float64)
    proprioception = np.concatenate([episode.proprioception for episode in episodes]).astype(
        np.float64
    )
    low, high = actions.min(axis=0), actions.max(axis=0)
    low[-1], high[-1] = -1.0, 1.0
    return Statistics(
        action_q01=tuple(np.quantile(actions, 0.01, axis=0).tolist()),
        action_q99=tuple(np.quantile(actions, 0.99, axis=0).tolist()),
        action_min=tuple(low.tolist()),
        action_max=tuple(high.tolist()),
        proprioception_q01=tuple(np.quantile(proprioception, 0.01, axis=0).tolist()),
        proprioception_q99=tuple(np.quantile(proprioception, 0.99, axis=0).tolist()),
        episodes=len(episodes),
        steps=len(actions),
    )
