"""A control step of robosuite with each state's kinematics computed once: the same bits, sooner.

In each of its 25 substeps robosuite has MuJoCo derive everything from the same positions and
velocities three times: before its controller, inside it, and as the substep begins. Contacts, mass
matrix and the like come out equal every time. The constraint solver does not, it starts from where
it ended before; so the second and third time it is asked again, and only it.
"""

from types import TracebackType
from typing import Any, Self


class SharedKinematics:
    """Steps of a robosuite simulation (`MjSim`) inside a `with` block.

    Inside, nothing but the simulation itself may change the model; positions and velocities may be
    set, since what was derived is used for exactly those that it was derived from.

    Args:
        sim: a robosuite `MjSim`.
    """

    def __init__(self, sim: Any) -> None:
        import mujoco

        self._sim, self._mujoco = sim, mujoco
        self._model, self._data = sim.model._model, sim.data._data
        euler = int(mujoco.mjtIntegrator.mjINT_EULER)
        self._plain = int(self._model.opt.integrator) != euler  # others begin steps of their own
        self._derived: bytes | None = None  # positions and velocities

    def __enter__(self) -> Self:
        self._derived = None
        self._sim.forward, self._sim.step = self._forward, self._step
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        del self._sim.forward, self._sim.step

    def _now(self) -> bytes:
        positions: bytes = self._data.qpos.tobytes()
        return positions + bytes(self._data.qvel.tobytes())

    def _forward(self) -> None:
        # Taken before: MuJoCo turns quaternions to length 1, and may need two calls for it.
        now = self._now()
        if now == self._derived:
            self._solve()
        else:
            self._mujoco.mj_forward(self._model, self._data)
            self._derived = now

    def _step(self, with_udd: bool = True) -> None:  # noqa: ARG002, robosuite's signature
        mujoco, model, data = self._mujoco, self._model, self._data
        if self._plain or self._now() != self._derived:
            mujoco.mj_step(model, data)
        else:
            mujoco.mj_checkPos(model, data)
            mujoco.mj_checkVel(model, data)
            self._solve()
            mujoco.mj_checkAcc(model, data)
            mujoco.mj_Euler(model, data)
        self._derived = None

    def _solve(self) -> None:
        """Forces and accelerations, from the kinematics that are there."""
        stage = int(self._mujoco.mjtStage.mjSTAGE_VEL)
        self._mujoco.mj_forwardSkip(self._model, self._data, stage, 0)
