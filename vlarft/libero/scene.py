"""What starts, expert and closed loop need of a simulated LIBERO task."""

from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

UInt8Array: TypeAlias = npt.NDArray[np.uint8]
Float32Array: TypeAlias = npt.NDArray[np.float32]
Float64Array: TypeAlias = npt.NDArray[np.float64]

CONTROL_HZ = 20
SETTLE_STEPS = 10  # after a reset; LIBERO's initial states hold objects slightly inside the floor
STILL = np.array([0, 0, 0, 0, 0, 0, -1], np.float32)  # no motion, gripper open


class Scene(Protocol):
    """One task with physics; `Simulator` runs it here, `RemoteSimulator` in another process.

    A state is float64 [time, qpos, qvel]. Lengths are in m, the world's z axis points up.

    Attributes:
        target: name of what the task names first: the object to pick up; in some suites a part of
            a fixture (a drawer to open).
        goal: name of what it names next, where the target goes; `target` when it names one thing.
        objects: names of all movable objects.
    """

    target: str
    goal: str
    objects: tuple[str, ...]

    def start(self, state: Float64Array) -> bool:
        """Reset, set the state and let it settle; whether the task is solved already."""
        ...

    def step(self, action: Float32Array) -> bool:
        """One control step of an action [7] in raw LIBERO units; whether the task is solved."""
        ...

    def run(self, actions: Float32Array) -> tuple[bool, int]:
        """Steps of actions [T, 7] until the task is solved: whether it is, and how many steps."""
        ...

    def state(self) -> Float64Array:
        """The current state."""
        ...

    def entries(self, name: str) -> slice:
        """Where a state holds an object's position (3) and quaternion w, x, y, z (4)."""
        ...

    def arm(self) -> slice:
        """Where a state holds the angles of the arm's joints, rad."""
        ...

    def points(self, name: str) -> Float64Array:
        """World coordinates [n, 3] of the collision shapes of an object or fixture.

        Raises:
            DataError: it is a region, which has none.
        """
        ...

    def sense(self) -> dict[str, Float64Array]:
        """`position` [3] and `rotation` [3, 3] of the grip, `target` [3], `closing` [3].

        `target` is the target's position, `closing` points from the right to the left finger.
        """
        ...

    def draw(self, camera: str) -> UInt8Array:
        """Picture [H, W, 3] of the current state, LIBERO's raw rows (first row = bottom)."""
        ...

    def proprioception(self) -> dict[str, Float64Array]:
        """`ee_pos` (3), `ee_ori` (3, axis-angle), `gripper_states` (2), `joint_states` (7)."""
        ...
