"""Where an episode starts: LIBERO's own initial states, and states with moved objects."""

from collections.abc import Callable
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
    layout = Layout(scene, initial)

    def draw() -> tuple[Float64Array, dict[str, Move]]:
        return initial, _draw_moves(scene, layout, rng, shift, swap)

    return layout.place(draw)


class Layout:
    """Where the objects of a state stand once they are at rest.

    Args:
        scene: of the task; its physics is stepped.
        initial: the state.
        apart: target and goal are never of one group, even when they touch.

    Attributes:
        centres: position [2] of each object.
        groups: objects that stand on one another.
    """

    def __init__(self, scene: Scene, initial: Float64Array, *, apart: bool = False) -> None:
        scene.start(initial)  # LIBERO's initial states hold objects slightly inside the floor
        self._scene, self._rest = scene, scene.state()
        self._footprints = {name: scene.points(name)[:, :2] for name in scene.objects}
        self.centres = {name: self._rest[scene.entries(name)][:2] for name in scene.objects}
        self.groups = (
            _stacks_apart(self._footprints, scene.target, scene.goal)
            if apart
            else _stacks(self._footprints)
        )

    def place(
        self, draw: Callable[[], tuple[Float64Array, dict[str, Move]]]
    ) -> Float64Array | None:
        """The first drawn state that is at rest, not solved, and keeps what moved apart.

        Args:
            draw: a state, and moves of objects from where they rest; the others stay in the state.

        Returns:
            The state [S] with its objects moved, or None when none was found.
        """
        simulated = 0
        for _ in range(PLACEMENTS):
            state, moves = draw()
            if self._least_gap(moves) < GAP:
                continue
            state = self._moved(state, moves)
            solved = self._scene.start(state)
            if not solved and self._slip(moves) < SLIP:
                return state
            simulated += 1
            if simulated == SIMULATED:
                break
        return None

    def _least_gap(self, moves: dict[str, Move]) -> float:
        """Least gap of two groups of which at least one moves, m."""
        stacks = [
            (np.concatenate([self._placed(name, moves) for name in group]), group[0] in moves)
            for group in self.groups
        ]
        gaps = [
            footprint_gap(a, b)
            for i, (a, a_moves) in enumerate(stacks)
            for b, b_moves in stacks[i + 1 :]
            if a_moves or b_moves
        ]
        return min(gaps, default=np.inf)

    def _placed(self, name: str, moves: dict[str, Move]) -> Float64Array:
        centre, points = self.centres[name], self._footprints[name]
        if name not in moves:
            return points
        return _turned(points - centre, moves[name].turn) + centre + moves[name].shift

    def _moved(self, state: Float64Array, moves: dict[str, Move]) -> Float64Array:
        state = np.array(state, np.float64)
        for name, move in moves.items():
            entries = self._scene.entries(name)
            pose = self._rest[entries].copy()
            pose[:2] += move.shift
            pose[3:] = _turned_quaternion(pose[3:], move.turn)
            state[entries] = pose
        return state

    def _slip(self, moves: dict[str, Move]) -> float:
        """Farthest that an object is from where it should rest, along one axis, m."""
        now, wanted = self._scene.state(), self._moved(self._rest, moves)
        entries = [self._scene.entries(name) for name in self._scene.objects]
        return max(float(np.abs(now[e][:3] - wanted[e][:3]).max()) for e in entries)


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


def _stacks_apart(footprints: dict[str, Float64Array], target: str, goal: str) -> list[list[str]]:
    """The same, but the goal's group leaves out that of the target."""
    groups = _stacks({name: points for name, points in footprints.items() if name != goal})
    on_goal = [
        group
        for group in groups
        if target not in group
        and any(footprint_gap(footprints[name], footprints[goal]) < 0 for name in group)
    ]
    groups = [group for group in groups if group not in on_goal]
    return [*groups, [*(name for group in on_goal for name in group), goal]]


def _draw_moves(
    scene: Scene, layout: Layout, rng: np.random.Generator, shift: float, swap: bool
) -> dict[str, Move]:
    moves: dict[str, Move] = {}
    for group in layout.groups:
        move = rng.uniform(-shift, shift, 2)
        alone = len(group) == 1 and group[0] != scene.goal
        turn = float(rng.uniform(-TURN, TURN)) if alone else 0.0
        moves |= {name: Move(move, turn) for name in group}
    others = [name for name in scene.objects if name not in (scene.target, scene.goal)]
    if swap and others:
        other = others[rng.integers(len(others))]
        way = layout.centres[other] - layout.centres[scene.target]
        for name, sign in ((scene.target, 1), (other, -1)):
            moves[name] = Move(moves[name].shift + sign * way, moves[name].turn)
    return moves


def _turned(points: Float64Array, angle: float) -> Float64Array:
    c, s = np.cos(angle), np.sin(angle)
    return np.asarray(points @ np.array([[c, s], [-s, c]]))


def _turned_quaternion(q: Float64Array, angle: float) -> Float64Array:
    """Quaternion w, x, y, z turned about the world's vertical axis."""
    c, s = np.cos(angle / 2), np.sin(angle / 2)
    w, x, y, z = q
    return np.array([c * w - s * z, c * x - s * y, c * y + s * x, c * z + s * w])
