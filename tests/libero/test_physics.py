"""One derivation a state, and MuJoCo's own step wherever that would not be the same."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest

from vlarft.libero.physics import SharedKinematics

EULER, OTHER = 0, 1


class Mujoco:
    """Writes down what is called; a step moves on, deriving may turn a quaternion first."""

    mjtIntegrator = SimpleNamespace(mjINT_EULER=EULER)
    mjtStage = SimpleNamespace(mjSTAGE_VEL=2)

    def __init__(self):
        self.calls, self.turns = [], 0

    def mj_forward(self, _, data):
        self.calls.append("forward")
        if self.turns:
            self.turns -= 1
            data.qpos += 1e-16

    def mj_forwardSkip(self, _, __, *skipped):
        assert skipped == (2, 0)  # positions and velocities, no sensors
        self.calls.append("solve")

    def mj_Euler(self, _, data):
        self.calls.append("euler")
        data.qpos += 1

    def mj_step(self, _, data):
        self.calls.append("step")
        data.qpos += 1

    def __getattr__(self, name):
        return lambda *_: self.calls.append(name)


@pytest.fixture
def mujoco(monkeypatch):
    made = Mujoco()
    monkeypatch.setitem(sys.modules, "mujoco", made)
    return made


def simulation(integrator=EULER):
    return SimpleNamespace(
        model=SimpleNamespace(_model=SimpleNamespace(opt=SimpleNamespace(integrator=integrator))),
        data=SimpleNamespace(_data=SimpleNamespace(qpos=np.zeros(3), qvel=np.zeros(2))),
    )


SPLIT = ["forward", "solve", "mj_checkPos", "mj_checkVel", "solve", "mj_checkAcc", "euler"]


def test_a_substep_derives_once(mujoco):
    sim = simulation()
    with SharedKinematics(sim):
        for _ in range(2):
            sim.forward()
            sim.forward()
            sim.step()
    assert mujoco.calls == 2 * SPLIT
    assert not hasattr(sim, "forward")  # outside it is robosuite's again
    assert not hasattr(sim, "step")


def test_changed_states_are_derived_anew(mujoco):
    sim = simulation()
    with SharedKinematics(sim):
        sim.forward()
        sim.data._data.qvel[1] = 2
        sim.forward()
        sim.data._data.qpos[0] = 1
        sim.step()
    assert mujoco.calls == ["forward", "forward", "step"]


def test_deriving_that_changes_positions_is_done_again(mujoco):
    mujoco.turns = 1  # a quaternion is turned to length 1
    sim = simulation()
    with SharedKinematics(sim):
        sim.forward()
        sim.forward()
        sim.step()
    assert mujoco.calls == ["forward", "forward", *SPLIT[2:]]


def test_nothing_is_kept_from_the_block_before(mujoco):
    sim = simulation()
    kinematics = SharedKinematics(sim)
    for _ in range(2):
        with kinematics:
            sim.forward()
    assert mujoco.calls == ["forward", "forward"]


def test_other_integrators_step_as_they_do(mujoco):
    sim = simulation(OTHER)
    with SharedKinematics(sim):
        sim.forward()
        sim.forward()
        sim.step()
    assert mujoco.calls == ["forward", "solve", "step"]
