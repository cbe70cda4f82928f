"""The engine: encode > imagine > decode > compare, and all four as `rollout`."""

from vlarft.engine.compare import Distances
from vlarft.engine.imagine import Imagined
from vlarft.engine.plan import Plan
from vlarft.engine.rollout import RolloutEngine, RolloutResult
from vlarft.engine.sampling import Sampling
from vlarft.engine.scenes import Scenes

__all__ = [
    "Distances",
    "Imagined",
    "Plan",
    "RolloutEngine",
    "RolloutResult",
    "Sampling",
    "Scenes",
]
