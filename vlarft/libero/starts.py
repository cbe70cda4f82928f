"""Where an episode starts: LIBERO's own initial states, and states with moved objects."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vlarft.libero.scene import Float64Array, Scene

STANDARD, MOVED, SWAPPED, SPOILT = "standard", "moved", "swapped", "spoilt"
SHIFT = 0.05  # m, how far objects are moved at most, along x and along y
TURN = 0.3  # rad, how far they are turned at most, the goal excepted
GAP = 0.015  # m between footprints of moved objects
SLIP = 0.01  # m that a placed object may move by itself
PLACEMENTS = 300  # drawn before giving up ...
SIMULATED = 20  # ... and at most this many of them simulated

_ANGLES = np.linspace(0, np.pi, 24, endpoint=False)
_DIRECTIONS = np.stack([np.cos(_ANGLES), np.sin(_ANGLES)])  # [2, 24]


@dataclass(frozen=True, slots=True)
class Move:
    """How an object is displaced: `shift` [2] in m, then `turn` in rad about its own axis."""

    shift: Float64Array
    turn: float


def start_state(
    scene: Scene,
    initial: Float64Array,
    kind: str,
    rng: np.random.Generator,
    shift: float = SHIFT,
) -> Float64Array | None:
    """The state [S] that an episode of a kind starts from.

    Args:
        scene: of the task; physics is stepped unless the kind is "standard".
        initial: one of LIBERO's initial states.
        kind: "standard", "moved" (all objects and the goal moved and turned), "swapped" (moved, and
            the target has traded places with another object) or "spoilt" (moved; the expert then
            grasps beside the target).
        rng: draws the moves.
        shift: largest move along x and along y in m.

    Returns:
        The state, or None when no placement was found.
    """
    if kind == STANDARD:
        return initial
    return moved_state(scene, initial, rng, shift=shift, swap=kind == SWAPPED)


def moved_state(
    scene: Scene,
    initial: Float64Array,
    rng: np.random.Generator,
    *,
    shift: float = SHIFT,
    swap: bool = False,
) -> Float64Array | None:
    """A state whose objects are moved, at rest, apart from each other and not yet solved.

    Objects that stand on one another move together. Placements with footprints closer than `GAP`
    are drawn again before any physics, those that slip or fall after it.

    Args:
        scene: of the task.
        initial: the state to change.
        rng: draws the moves.
        shift: largest move along x and along y in m.
        swap: the target first trades places with a random object other than the goal.

    Returns:
        A state [S] with the robot and the time of `initial`, or None when none was found.
    """
    scene.start(initial)  # LIBERO's initial states hold objects slightly inside the floor
    rest = scene.state()
    footprints = {name: scene.points(name)[:, :2] for name in scene.objects}
    centres = {name: rest[scene.entries(name)][:2] for name in scene.objects}
    groups = _stacks(footprints)
    simulated = 0
    for _ in range(PLACEMENTS):
        moves = _draw_moves(scene, centres, groups, rng, shift, swap)
        if _least_gap(footprints, centres, groups, moves) < GAP:
            continue
        state = _moved(scene, initial, rest, moves)
        solved = scene.start(state)
        if not solved and _slip(scene, state) < SLIP:
            return state
        simulated += 1
        if simulated == SIMULATED:
            break
    return None


def footprint_gap(a: Float64Array, b: Float64Array) -> float:
    """Distance of two sets of points [n, 2] along the direction that separates them best, m.

    Negative when their convex hulls overlap along each of 24 directions.
    """
    a, b = a @ _DIRECTIONS, b @ _DIRECTIONS
    return float(np.maximum(a.min(0) - b.max(0), b.min(0) - a.max(0)).max())


def _stacks(footprints: dict[str, Float64Array]) -> list[list[str]]:
    """Objects in groups whose footprints overlap."""
    groups: list[list[str]] = []
    for name, points in footprints.items():
        touching = [
            group
            for group in groups
            if any(footprint_gap(points, footprints[other]) < 0 for other in group)
        ]
        groups = [group for group in groups if group not in touching]
        groups.append([*(other for group in touching for other in group), name])
    return groups


def _draw_moves(
    scene: Scene,
    centres: dict[str, Float64Array],
    groups: list[list[str]],
    rng: np.random.Generator,
    shift: float,
    swap: bool,
) -> dict[str, Move]:
    moves: dict[str, Move] = {}
    for group in groups:
        move = rng.uniform(-shift, shift, 2)
        alone = len(group) == 1 and group[0] != scene.goal
        turn = float(rng.uniform(-TURN, TURN)) if alone else 0.0
        moves |= {name: Move(move, turn) for name in group}
    others = [name for name in scene.objects if name not in (scene.target, scene.goal)]
    if swap and others:
        other = others[rng.integers(len(others))]
        way = centres[other] - centres[scene.target]
        for name, sign in ((scene.target, 1), (other, -1)):
            moves[name] = Move(moves[name].shift + sign * way, moves[name].turn)
    return moves


def _least_gap(
    footprints: dict[str, Float64Array],
    centres: dict[str, Float64Array],
    groups: Sequence[Sequence[str]],
    moves: dict[str, Move],
) -> float:
    placed = {
        name: _turned(points - centres[name], moves[name].turn) + centres[name] + moves[name].shift
        for name, points in footprints.items()
    }
    stacks = [np.concatenate([placed[name] for name in group]) for group in groups]
    gaps = [footprint_gap(a, b) for i, a in enumerate(stacks) for b in stacks[i + 1 :]]
    return min(gaps, default=np.inf)


def _turned(points: Float64Array, angle: float) -> Float64Array:
    c, s = np.cos(angle), np.sin(angle)
    return np.asarray(points @ np.array([[c, s], [-s, c]]))


def _moved(
    scene: Scene, initial: Float64Array, rest: Float64Array, moves: dict[str, Move]
) -> Float64Array:
    state = np.array(initial, np.float64)
    for name, move in moves.items():
        entries = scene.entries(name)
        pose = rest[entries].copy()
        pose[:2] += move.shift
        pose[3:] = _turned_quaternion(pose[3:], move.turn)
        state[entries] = pose
    return state


def _turned_quaternion(q: Float64Array, angle: float) -> Float64Array:
    """Quaternion w, x, y, z turned about the world's vertical axis."""
    c, s = np.cos(angle / 2), np.sin(angle / 2)
    w, x, y, z = q
    return np.array([c * w - s * z, c * x - s * y, c * y + s * x, c * z + s * w])


def _slip(scene: Scene, state: Float64Array) -> float:
    """Farthest that an object has gone from where `state` put it, along one axis, m."""
    now = scene.state()
    entries = [scene.entries(name) for name in scene.objects]
    return max(float(np.abs(now[e][:3] - state[e][:3]).max()) for e in entries)
