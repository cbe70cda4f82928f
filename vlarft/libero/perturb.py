"""Perturbations of an episode's start: where things stand, how the arm is bent, how all looks.

The published robustness table names no units and no code; the sizes here are this project's own.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from vlarft.errors import DataError
from vlarft.libero.scene import Float64Array, Scene
from vlarft.libero.starts import Layout, Move

NONE = "none"


@dataclass(frozen=True, slots=True)
class Quantity:
    """What a perturbation changes.

    Attributes:
        what: in words.
        unit: of its amount.
        seen: whether only pictures change.
    """

    what: str
    unit: str
    seen: bool


QUANTITIES = {
    "target": Quantity("the target, with what it stands on, along x and y", "m", seen=False),
    "goal": Quantity("the goal, with what stands on it, along x and y", "m", seen=False),
    "joints": Quantity("each joint of the arm", "rad", seen=False),
    "camera-position": Quantity("the agentview camera along x, y and z", "m", seen=True),
    "camera-turn": Quantity("the agentview camera about each of its axes", "rad", seen=True),
    "light-position": Quantity("each light along x, y and z", "m", seen=True),
    "light-brightness": Quantity("each light and the headlight", "times its brightness", seen=True),
    "surface-colour": Quantity(
        "red, green and blue of floor, walls and table, darker only", "times themselves", seen=True
    ),
}
# The largest change of each quantity; draws are uniform.
PERTURBATIONS: dict[str, dict[str, float]] = {
    "object-minor": {"target": 0.025},
    "object-major": {"target": 0.05},
    "goal-minor": {"goal": 0.025},
    "goal-major": {"goal": 0.05},
    "robot-minor": {"joints": 0.05},
    "robot-major": {"joints": 0.1},
    "combined-minor": {"target": 0.025, "goal": 0.025, "joints": 0.05},
    "combined-major": {"target": 0.05, "goal": 0.05, "joints": 0.1},
    "camera": {"camera-position": 0.03, "camera-turn": 0.05},
    "lighting": {"light-position": 1.0, "light-brightness": 0.5},
    "texture": {"surface-colour": 0.6},
}


def amounts_of(name: str, *, seen: bool) -> dict[str, float]:
    """What a perturbation, or "none", changes of the pictures only, or else of the state."""
    amounts = {} if name == NONE else PERTURBATIONS[name]
    return {key: amount for key, amount in amounts.items() if QUANTITIES[key].seen == seen}


def describe(name: str) -> str:
    """A perturbation in words, with magnitudes and units."""
    parts = []
    for key, amount in PERTURBATIONS[name].items():
        quantity = QUANTITIES[key]
        parts.append(f"{quantity.what}: up to {amount:g} {quantity.unit}")
    return "; ".join(parts)


def perturbed_state(
    scene: Scene,
    initial: Float64Array,
    amounts: Mapping[str, float],
    rng: np.random.Generator,
) -> Float64Array | None:
    """A state with target, goal or arm changed, drawn again until it holds (see `Layout.place`).

    Equal generators draw equal directions whatever the amounts, so levels of a perturbation differ
    in size alone, and "combined" changes each thing as its own perturbation does; unless a
    placement is refused.

    Args:
        scene: of the task.
        initial: the state to change.
        amounts: largest change of "target", "goal" (m) and "joints" (rad).
        rng: draws the changes.

    Returns:
        A state [S]; `initial` when nothing is to change; None when no placement was found.

    Raises:
        DataError: what should move is fixed in this task.
    """
    if not amounts:
        return initial
    for key, name in (("target", scene.target), ("goal", scene.goal)):
        if key in amounts and name not in scene.objects:
            raise DataError(f"the {key} '{name}' is fixed in this task and cannot be moved")
    layout, arm = Layout(scene, initial, apart=True), scene.arm()

    def draw() -> tuple[Float64Array, dict[str, Move]]:
        target, goal = rng.uniform(-1, 1, (2, 2))
        bent = np.array(initial, np.float64)
        bent[arm] += amounts.get("joints", 0.0) * rng.uniform(-1, 1, arm.stop - arm.start)
        moves: dict[str, Move] = {}
        for key, name, direction in (("target", scene.target, target), ("goal", scene.goal, goal)):
            if key in amounts:
                (group,) = (group for group in layout.groups if name in group)
                moves |= dict.fromkeys(group, Move(amounts[key] * direction, 0.0))
        return bent, moves

    return layout.place(draw)
