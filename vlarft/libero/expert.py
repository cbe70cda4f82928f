"""Scripted pick and place for LIBERO-Object and LIBERO-Spatial, from the simulator's own state.

The plan is a grasp point and a way over it: hover above the target, descend, close, lift, carry it
over the goal, lower, release. What the gripper can span is taken across its narrowest side, what is
wider (a bowl) by its rim. A missed or lost object is tried again.
"""

from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from vlarft.errors import DataError
from vlarft.libero.scene import Float32Array, Float64Array, Scene

NOISE = 0.06  # standard deviation of the slow noise on the motion, action units
ATTEMPTS = 3
OPENING = 0.076  # m, widest side that the gripper is asked to span
FINGER = 0.045  # m from the grip point to the outside of an open finger
FULL_SPEED = 0.035  # m off the goal that ask for a full action
TURN_UNIT = 0.5  # rad that an action of 1 asks for
LIFTED = 0.03  # m that a grasped target must have risen ...
LIFT = 0.1  # ... when the grip has been lifted by this much at least
DEEP = 0.08  # m, height from which a goal is a basket to drop into and not a plate
OPEN, CLOSED = -1.0, 1.0
DOWN = np.array([0.0, 0.0, -1.0])


class Phase(StrEnum):
    """What the expert is doing."""

    REACH = "reach"
    DESCEND = "descend"
    CLOSE = "close"
    LIFT = "lift"
    CARRY = "carry"
    LOWER = "lower"
    RELEASE = "release"


@dataclass(frozen=True, slots=True)
class Grasp:
    """Where and how to take an object.

    Attributes:
        point: of the grip, [3] in m.
        turn: of the gripper about the vertical, rad, against where it was at the start.
        reach: how far the object's position may lie beside the grip, m along each axis.
    """

    point: Float64Array
    turn: float
    reach: float


def plan_grasp(points: Float64Array, others: Float64Array, closing: float) -> Grasp:
    """The best grasp from above.

    Args:
        points: of the target, [n, 3] in m.
        others: footprints [m, 2] of what stands around it.
        closing: horizontal angle along which the unturned gripper closes, rad.
    """
    low, top = points[:, 2].min(), points[:, 2].max()
    height = max(low + 0.012, top - 0.035)
    band = points[np.abs(points[:, 2] - height) < 0.02]
    side = (band if len(band) >= 8 else points)[:, :2]
    best: Grasp | None = None
    least = span = np.inf
    for turn in np.deg2rad(np.arange(-90, 90, 5)):
        along = _unit(closing + turn)
        across = np.array([-along[1], along[0]])
        a, b = side @ along, side @ across
        width = float(np.ptp(a))
        middle = (a.max() + a.min()) / 2 * along + (b.max() + b.min()) / 2 * across
        clear = min(_distance(others, middle + sign * FINGER * along) for sign in (-1, 1))
        cost = width + 0.02 * abs(turn) + 10 * max(0, width - OPENING) + 2 * max(0, 0.025 - clear)
        if cost < least:
            best, least, span = Grasp(np.append(middle, height), float(turn), 0.03), cost, width
    if best is None or span > OPENING:
        return _plan_rim(points, others, closing)
    return best


def _plan_rim(points: Float64Array, others: Float64Array, closing: float) -> Grasp:
    """A grasp of a round object's rim, away from neighbours and with little turning."""
    flat = points[:, :2]
    centre = (flat.max(0) + flat.min(0)) / 2
    radius = np.linalg.norm(flat - centre, axis=1).max() - 0.006
    candidates = []
    for turn in np.deg2rad(np.arange(-90, 91, 10)):
        for side in (-1, 1):
            out = side * _unit(closing + turn)
            clear = _distance(others, centre + (radius + FINGER) * out)
            cost = abs(turn) + 40 * max(0, 0.03 - clear)
            candidates.append((cost, float(turn), centre + radius * out))
    _, turn, point = min(candidates, key=lambda candidate: candidate[0])
    return Grasp(np.append(point, points[:, 2].max() - 0.02), turn, 0.08)


class Expert:
    """Acts in one episode; made once the scene has settled.

    Args:
        scene: read at every step, never written.
        rng: of the noise.
        noise: standard deviation of slowly varying noise on the motion, action units; also varies
            speed and heights. 0 makes every episode as direct as possible.
        spoil: grasp this far beside the target, m: an episode that is meant to fail.

    Raises:
        DataError: the task is not about placing an object in or on another one.
    """

    def __init__(
        self, scene: Scene, rng: np.random.Generator, noise: float = NOISE, spoil: float = 0.0
    ) -> None:
        self._scene, self._rng, self._noise, self._spoil = scene, rng, noise, spoil
        for name in (scene.target, scene.goal):
            if name not in scene.objects:
                raise DataError(
                    f"'{name}' is no movable object; the scripted expert picks objects up and "
                    "places them in or on others (libero_object, libero_spatial)"
                )
        now = scene.sense()
        self._upright = _pointing_down(now["rotation"])
        self._closing = float(np.arctan2(now["closing"][1], now["closing"][0]))
        self._speed = rng.uniform(0.75, 1.0) if noise else 1.0
        self._drift = np.zeros(6)
        self.attempts = 0
        self._plan(now)

    def act(self) -> Float32Array:
        """The next action [7], raw LIBERO units."""
        now = self._scene.sense()
        self._steps += 1
        self._advance(now)
        action = np.append(self._motion(now), self._gripper())
        if self._noise:
            scale = np.array([1, 1, 1, 0.3, 0.3, 0.3])
            self._drift = 0.85 * self._drift + self._rng.normal(0, self._noise, 6) * scale
            calm = 0.3 if self.phase in (Phase.DESCEND, Phase.CLOSE) else 1.0
            action[:6] += calm * self._drift
        return np.asarray(np.clip(action, -1, 1), np.float32)

    def _plan(self, now: dict[str, Float64Array]) -> None:
        points = self._scene.points(self._scene.target)
        goal = self._scene.points(self._scene.goal)
        grasp = plan_grasp(points, self._surroundings(), self._closing)
        low, top = float(points[:, 2].min()), float(points[:, 2].max())
        rim = float(goal[:, 2].max())
        below = grasp.point[2] - low  # the object's lowest point under the grip
        hover = self._rng.uniform(0.06, 0.12) if self._noise else 0.08
        lift = self._rng.uniform(0.03, 0.07) if self._noise else 0.05
        self._grasp: Float64Array = grasp.point + np.append(self._aside(), 0)
        self._reach = grasp.reach
        self._rotation = _turned(grasp.turn) @ self._upright
        self._hover_z = max(min(top + hover, now["position"][2] + 0.05), top + 0.04)
        self._carry_z = max(rim + below + lift, grasp.point[2] + LIFT)
        self._drop = (goal[:, :2].max(0) + goal[:, :2].min(0)) / 2
        self._deep = rim - float(goal[:, 2].min()) > DEEP
        self._release_z = max(rim + below - 0.04, rim + 0.02) if self._deep else rim + below + 0.005
        self._rest_z = float(now["target"][2])
        self.attempts += 1
        self._enter(Phase.REACH)

    def _surroundings(self) -> Float64Array:
        names = [name for name in self._scene.objects if name != self._scene.target]
        return np.concatenate([self._scene.points(name)[:, :2] for name in names])

    def _aside(self) -> Float64Array:
        if self._spoil:
            return self._spoil * _unit(self._rng.uniform(0, 2 * np.pi))
        return self._rng.normal(0, 0.002, 2) if self._noise else np.zeros(2)

    def _enter(self, phase: Phase) -> None:
        self.phase, self._steps = phase, 0

    def _advance(self, now: dict[str, Float64Array]) -> None:
        """Go on to the next phase when this one has reached its end, or taken too long."""
        steps, z = self._steps, float(now["position"][2])
        match self.phase:
            case Phase.REACH:
                aligned = np.abs(self._turn_left(now)).max() < 0.08
                near = self._off(now) < 0.012 and abs(z - self._hover_z) < 0.03
                if (near and aligned) or steps > 90:
                    self._enter(Phase.DESCEND)
            case Phase.DESCEND:
                if (self._off(now) < 0.008 and abs(z - self._grasp[2]) < 0.006) or steps > 40:
                    self._enter(Phase.CLOSE)
            case Phase.CLOSE:
                if steps > 9:
                    self._enter(Phase.LIFT)
            case Phase.LIFT:
                if z > self._carry_z - 0.03 or steps > 60:
                    if self._risen(now):
                        self._enter(Phase.CARRY)
                    else:
                        self._try_again(now)
            case Phase.CARRY:
                if not self._risen(now):
                    self._try_again(now)
                elif self._off(now) < 0.015 or steps > 90:
                    self._enter(Phase.LOWER)
            case Phase.LOWER:
                near_z, limit = (0.015, 12) if self._deep else (0.006, 60)
                if abs(z - self._release_z) < near_z or steps > limit:
                    self._enter(Phase.RELEASE)
            case Phase.RELEASE:
                if steps > 30:  # it did not land where it should
                    self._try_again(now)

    def _try_again(self, now: dict[str, Float64Array]) -> None:
        if self.attempts < ATTEMPTS or self._spoil:
            self._plan(now)

    def _risen(self, now: dict[str, Float64Array]) -> bool:
        return bool(now["target"][2] - self._rest_z > LIFTED)

    def _goal(self, now: dict[str, Float64Array]) -> Float64Array:
        """Where the grip should go, [3] in m."""
        match self.phase:
            case Phase.REACH:
                return np.append(self._grasp[:2], self._hover_z)
            case Phase.DESCEND | Phase.CLOSE:
                return self._grasp
            case Phase.LIFT:
                return np.append(self._grasp[:2], self._carry_z)
            case Phase.CARRY:
                return np.append(self._over_goal(now), self._carry_z)
            case Phase.LOWER:
                return np.append(self._over_goal(now), self._release_z)
        rise = 0.01 if self._steps > 4 else 0.0
        return np.asarray(now["position"] + np.array([0, 0, rise]))

    def _over_goal(self, now: dict[str, Float64Array]) -> Float64Array:
        """Where the grip must be for the held object to be over the goal's middle, [2]."""
        held = (now["target"] - now["position"])[:2]
        return np.asarray(self._drop - np.clip(held, -self._reach, self._reach))

    def _off(self, now: dict[str, Float64Array]) -> float:
        """Horizontal distance to the phase's goal, m."""
        return float(np.linalg.norm((now["position"] - self._goal(now))[:2]))

    def _turn_left(self, now: dict[str, Float64Array]) -> Float64Array:
        return _axis_angle(np.asarray(self._rotation @ now["rotation"].T))

    def _motion(self, now: dict[str, Float64Array]) -> Float64Array:
        gain = 0.8 if self.phase is Phase.DESCEND else 1.0
        shift = gain * (self._goal(now) - now["position"]) / FULL_SPEED
        shift *= self._speed / max(1.0, np.abs(shift).max())
        turn = np.clip(1.5 * self._turn_left(now) / TURN_UNIT, -0.5, 0.5)
        return np.concatenate([shift, turn])

    def _gripper(self) -> float:
        return OPEN if self.phase in (Phase.REACH, Phase.DESCEND, Phase.RELEASE) else CLOSED


@dataclass(frozen=True, eq=False)
class Rollout:
    """What the expert did.

    Attributes:
        states: float64 [L+1, S]; states[i] is before actions[i].
        actions: float32 [L, 7].
        success: whether the task was solved.
        attempts: grasps that were tried.
    """

    states: Float64Array
    actions: Float32Array
    success: bool
    attempts: int


def play_expert(
    scene: Scene,
    state: Float64Array,
    rng: np.random.Generator,
    *,
    noise: float = NOISE,
    spoil: float = 0.0,
    max_steps: int = 280,
) -> Rollout:
    """An episode of the expert, until the task is solved or its steps are used up.

    Args:
        scene: of the task.
        state: to start from.
        rng: of the noise.
        noise: see `Expert`, like `spoil`.
        spoil: see `noise`.
        max_steps: most actions.
    """
    scene.start(state)
    expert = Expert(scene, rng, noise, spoil)
    states, success = [scene.state()], False
    actions: list[Float32Array] = []
    while not success and len(actions) < max_steps:
        action = expert.act()
        success = scene.step(action)
        actions.append(action)
        states.append(scene.state())
    return Rollout(np.array(states), np.array(actions), success, expert.attempts)


def _unit(angle: float) -> Float64Array:
    return np.array([np.cos(angle), np.sin(angle)])


def _distance(points: Float64Array, place: Float64Array) -> float:
    return float(np.linalg.norm(points - place, axis=1).min())


def _turned(angle: float) -> Float64Array:
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])


def _pointing_down(rotation: Float64Array) -> Float64Array:
    """The nearest rotation whose approach axis, the third column, points straight down."""
    x = rotation[:, 0] - (rotation[:, 0] @ DOWN) * DOWN
    x /= np.linalg.norm(x)
    return np.stack([x, np.cross(DOWN, x), DOWN], 1)


def _axis_angle(rotation: Float64Array) -> Float64Array:
    """Axis times angle [3] of a rotation, rad; 0 for none."""
    angle = np.arccos(np.clip((np.trace(rotation) - 1) / 2, -1, 1))
    axis = np.array(
        [
            rotation[2, 1] - rotation[1, 2],
            rotation[0, 2] - rotation[2, 0],
            rotation[1, 0] - rotation[0, 1],
        ]
    )
    length = np.linalg.norm(axis)
    return np.asarray(axis / length * angle if length > 1e-8 else np.zeros(3))
