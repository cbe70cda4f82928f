"""LIBERO's own simulator in this process. Needs the `[libero]` extra.

Departures from LIBERO's `OffScreenRenderEnv`, none of which touches physics: a reset restores the
model instead of building it again, a picture is drawn only when asked for, larger and averaged
instead of multisampled, and a control step computes nothing twice.
"""

import contextlib
import io
import os
import platform
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from vlarft.errors import BackendError, DataError, SimulatorError
from vlarft.libero import film
from vlarft.libero.appearance import Appearance
from vlarft.libero.geometry import body_points
from vlarft.libero.layers import LayeredPictures
from vlarft.libero.physics import SharedKinematics
from vlarft.libero.scene import SETTLE_STEPS, STILL, Float32Array, Float64Array, UInt8Array

SUPERSAMPLING = 2  # cheaper than multisampling when a CPU draws
BROKEN_MUJOCO = (3, 4)  # from 3.4.0 on a LIBERO-Spatial task breaks in silence (lerobot #4390)
RENDERERS = ("egl", "osmesa")
RESET_SEED = 0  # decides where a reset puts the fixtures, which no state holds


class Simulator:
    """One LIBERO task.

    Args:
        suite: a LIBERO suite, e.g. "libero_object".
        task_id: index of the task in its suite.
        size: edge of the square pictures in pixels.

    Raises:
        DataError: no such suite or task.
        BackendError: LIBERO is not installed, or its MuJoCo breaks tasks.
    """

    def __init__(self, suite: str, task_id: int, size: int = 64) -> None:
        control_env = _import_libero()
        task = _task(suite, task_id)
        with _quiet():
            from libero.libero import get_libero_path

            bddl = Path(get_libero_path("bddl_files")) / task.problem_folder / task.bddl_file
            self._env = control_env(
                bddl_file_name=str(bddl),
                has_renderer=False,
                has_offscreen_renderer=False,
                use_camera_obs=False,
                hard_reset=False,
                ignore_done=True,
            )
            self._env.reset()
        self._suite, self._task_id = suite, task_id
        self._physics = SharedKinematics(self._env.sim)
        _observe_when_asked(self._env.env)
        self._pictures: LayeredPictures | None = None
        self._film: film.Film | None = None
        self._film_camera = ""
        model = self._env.sim.model
        self._appearance = Appearance(model._model, model.camera_names, model.body_names)
        self.size = size
        self.task: str = task.name
        self.language: str = task.language
        self.bddl = f"{task.problem_folder}/{task.bddl_file}"
        self.env_name: str = self._env.problem_name
        interest = [str(name) for name in self._env.obj_of_interest]
        self.target, self.goal = interest[0], interest[min(1, len(interest) - 1)]
        self.objects = tuple(map(str, self._env.env.objects_dict))

    @property
    def state_size(self) -> int:
        """Numbers of a state: time, qpos, qvel."""
        model = self._env.sim.model._model
        return 1 + int(model.nq) + int(model.nv)

    @property
    def cameras(self) -> tuple[str, ...]:
        """Names of the cameras."""
        return tuple(map(str, self._env.sim.model.camera_names))

    def initial_states(self) -> Float64Array:
        """LIBERO's initial states of this task, [50, S]."""
        with _quiet():
            states = _benchmark(self._suite).get_task_init_states(self._task_id)
        return np.asarray(states, np.float64)

    def start(self, state: Float64Array) -> bool:
        """See `Scene`; the same whatever was played before."""
        np.random.seed(RESET_SEED)  # noqa: NPY002, LIBERO's reset draws from it
        self._env.reset()
        gripper = self._env.robots[0].gripper
        gripper.current_action = np.zeros(gripper.dof)  # a reset leaves it as it was
        self._env.set_init_state(state)
        solved = False
        for _ in range(SETTLE_STEPS):
            solved = self.step(STILL)
        return solved

    def step(self, action: Float32Array) -> bool:
        """See `Scene`.

        Raises:
            SimulatorError: the physics became unstable.
        """
        with self._physics:
            _, _, solved, _ = self._env.step(np.asarray(action, np.float32))
        if not np.isfinite(self._env.sim.data.qpos).all():
            raise SimulatorError("the simulated state is not finite any more")
        if self._film and self._film.due():
            self._film.add(self._picture(self._film_camera, film.SIZE))
        return bool(solved)

    def run(self, actions: Float32Array) -> tuple[bool, int]:
        """See `Scene`."""
        for count, action in enumerate(actions, start=1):
            if self.step(action):
                return True, count
        return False, len(actions)

    def state(self) -> Float64Array:
        """See `Scene`."""
        return np.asarray(self._env.sim.get_state().flatten(), np.float64)

    def set_state(self, state: Float64Array) -> None:
        """Put the simulator in a recorded state; no physics is stepped."""
        self._env.set_state(state)
        self._env.sim.forward()

    def branch(
        self,
        state: Float64Array,
        gripper: Float32Array,
        actions: Float32Array,
        camera: str,
        after: Sequence[int],
    ) -> dict[str, Any]:
        """What actions do from a recorded state, whatever this simulator did before.

        A state holds neither the controller nor how far the gripper's slow command has come: the
        controller's goal is where the arm is, the command follows from what the gripper was told.

        Args:
            state: [S].
            gripper: last entries of the actions before it since the start of the episode, [n].
            actions: [T, 7], all of them executed.
            camera: of the pictures.
            after: numbers of actions after which one is taken, increasing, 1 to T.

        Returns:
            `frames` uint8 [len(after), H, W, 3] in LIBERO's raw rows, `states` [T+1, S] before,
            between and after the actions, and after the last one `position` of the grip and
            `target` as in `sense`, and whether the task is `solved`.
        """
        self._env.sim.reset()  # forces and warm starts of what was done before
        self.set_state(state)
        robot = self._env.env.robots[0]
        robot.controller.update(force=True)
        robot.controller.reset_goal()
        robot.gripper.current_action = self._gripper_command(gripper)
        frames, states, solved = [], [self.state()], False
        for count, action in enumerate(actions, start=1):
            solved = self.step(action)
            states.append(self.state())
            if count in after:
                self._env.sim.forward()  # a step leaves positions one substep behind
                frames.append(self.draw(camera))
        self._env.sim.forward()
        sensed = self.sense()
        return {
            "frames": np.array(frames),
            "states": np.array(states),
            "position": sensed["position"],
            "target": sensed["target"],
            "solved": solved,
        }

    def _gripper_command(self, gripper: Float32Array) -> Float64Array:
        """Where robosuite's `PandaGripper.format_action` has come, [2] in -1 to 1."""
        env = self._env.env
        change = int(env.control_timestep / env.model_timestep) * env.robots[0].gripper.speed
        command = -1.0  # open, after `SETTLE_STEPS`
        for told in gripper:
            command = float(np.clip(command + change * np.sign(told), -1, 1))
        return command * np.array([-1.0, 1.0])

    def entries(self, name: str) -> slice:
        """See `Scene`."""
        joint = self._env.env.objects_dict[name].joints[-1]
        first, last = self._env.sim.model.get_joint_qpos_addr(joint)
        return slice(1 + int(first), 1 + int(last))  # a state begins with the time

    def arm(self) -> slice:
        """See `Scene`."""
        numbers = self._env.robots[0]._ref_joint_pos_indexes
        return slice(1 + min(numbers), 2 + max(numbers))

    def points(self, name: str) -> Float64Array:
        """See `Scene`."""
        bodies = self._env.env.obj_body_id
        if name not in bodies:
            raise DataError(f"'{name}' of task '{self.task}' is a region, which has no shape")
        sim = self._env.sim
        return body_points(sim.model._model, sim.data._data, bodies[name])

    def sense(self) -> dict[str, Float64Array]:
        """See `Scene`."""
        model, data = self._env.sim.model, self._env.sim.data
        site = model.site_name2id("gripper0_grip_site")
        left, right = (
            data.body_xpos[model.body_name2id(f"gripper0_{side}finger")]
            for side in ("left", "right")
        )
        return {
            "position": np.array(data.site_xpos[site], np.float64),
            "rotation": np.array(data.site_xmat[site], np.float64).reshape(3, 3),
            "closing": np.array(left - right, np.float64),
            "target": self._position(self.target),
        }

    def _position(self, name: str) -> Float64Array:
        """Where an object, a fixture or a region is, [3]."""
        data, bodies = self._env.sim.data, self._env.env.obj_body_id
        place = data.body_xpos[bodies[name]] if name in bodies else data.get_site_xpos(name)
        return np.array(place, np.float64)

    def draw(self, camera: str) -> UInt8Array:
        """See `Scene`.

        Raises:
            DataError: no such camera.
            BackendError: OpenGL is not available.
        """
        return self._picture(camera, self.size)

    def set_look(self, amounts: dict[str, float], seed: list[int]) -> None:
        """Change how pictures look until the next call; physics stays as it is.

        Args:
            amounts: see `Appearance.change`; none restores LIBERO's own look.
            seed: of what is drawn.
        """
        import mujoco

        self._appearance.change(amounts, np.random.default_rng(seed))
        mujoco.mj_camlight(self._env.sim.model._model, self._env.sim.data._data)
        if self._pictures:
            self._pictures.forget()

    def start_film(self, path: str, camera: str) -> None:
        """Film every step from now on into an .mp4.

        Raises:
            BackendError: OpenCV cannot write one.
        """
        self._film, self._film_camera = film.Film(Path(path)), camera

    def end_film(self) -> None:
        """Finish the film, if one is running."""
        if self._film:
            self._film.close()
        self._film = None

    def _picture(self, camera: str, size: int) -> UInt8Array:
        if camera not in self.cameras:
            raise DataError(f"no camera '{camera}'; allowed: {', '.join(self.cameras)}")
        k = SUPERSAMPLING
        large = self._drawn().draw(self._env.sim.model.camera_name2id(camera), size * k)
        total = large.reshape(size, k, size, k, 3).astype(np.uint16).sum((1, 3))
        frame: UInt8Array = ((total + k * k // 2) // (k * k)).astype(np.uint8)
        return frame

    def proprioception(self) -> dict[str, Float64Array]:
        """See `Scene`."""
        from robosuite.utils.transform_utils import quat2axisangle

        self._env.env._update_observables(force=True)
        observed = self._env.env._get_observations()
        return {
            "ee_pos": np.asarray(observed["robot0_eef_pos"], np.float64),
            "ee_ori": np.asarray(quat2axisangle(observed["robot0_eef_quat"].copy()), np.float64),
            "gripper_states": np.asarray(observed["robot0_gripper_qpos"], np.float64),
            "joint_states": np.asarray(observed["robot0_joint_pos"], np.float64),
        }

    def _drawn(self) -> LayeredPictures:
        if self._pictures:
            return self._pictures
        from robosuite.utils.binding_utils import MjRenderContextOffscreen

        visual = self._env.sim.model._model.vis
        visual.quality.offsamples = 0
        visual.global_.offwidth = visual.global_.offheight = (
            max(film.SIZE, self.size) * SUPERSAMPLING
        )
        sim = self._env.sim
        sim.forward = lambda: None  # a new context would compute forces anew
        try:
            context = MjRenderContextOffscreen(sim, device_id=-1)
        except Exception as error:
            renderer = os.environ["MUJOCO_GL"]
            raise BackendError(f"no off-screen OpenGL with {renderer}: {error}") from error
        finally:
            del sim.forward
        # Visual meshes, not collision shapes.
        context.vopt.geomgroup[0], context.vopt.geomgroup[1] = 0, 1
        self._pictures = LayeredPictures(sim.model._model, sim.data._data, context)
        return self._pictures

    def close(self) -> None:
        """Free the simulator."""
        self._env.close()


def suite_tasks(suite: str) -> list[dict[str, Any]]:
    """`name` and `language` of every task of a suite.

    Raises:
        DataError: no such suite.
        BackendError: as `Simulator`.
    """
    _import_libero()
    with _quiet():
        benchmark = _benchmark(suite)
        tasks = [benchmark.get_task(number) for number in range(benchmark.get_num_tasks())]
    return [{"name": task.name, "language": task.language} for task in tasks]


def versions() -> dict[str, str]:
    """Versions that decide what the simulator does; `mujoco` among them.

    Raises:
        BackendError: as `Simulator`.
    """
    _import_libero()
    return {name: version(name) for name in ("mujoco", "robosuite")} | {
        "python": platform.python_version()
    }


def opengl() -> str:
    """Name of the OpenGL device behind MUJOCO_GL, e.g. "llvmpipe (LLVM 15.0.6, 256 bits)".

    Raises:
        BackendError: a context cannot be made.
    """
    try:
        import mujoco

        context = mujoco.GLContext(16, 16)
        context.make_current()
        from OpenGL import GL

        name = GL.glGetString(GL.GL_RENDERER)
        context.free()
    except Exception as error:
        raise BackendError(f"{type(error).__name__}: {error}") from error
    return name.decode() if isinstance(name, bytes) else "unknown"


def _import_libero() -> Any:
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ.setdefault(name, "1")  # BLAS threads only slow the controller down
    os.environ.setdefault("MUJOCO_GL", RENDERERS[0])
    if os.environ["MUJOCO_GL"] in RENDERERS:
        os.environ.setdefault("PYOPENGL_PLATFORM", os.environ["MUJOCO_GL"])
    try:
        with _quiet():
            import logging

            logging.getLogger("robosuite_logs").setLevel(logging.ERROR)
            import mujoco
            from libero.libero.envs.env_wrapper import ControlEnv
    except ImportError as error:
        raise BackendError(
            f"LIBERO's simulator cannot be imported ({error}); install it with: "
            "pip install 'vlarft[libero]', or name a Python that has it: --python PATH"
        ) from error
    check_mujoco(mujoco.__version__)
    return ControlEnv


def check_mujoco(found: str) -> None:
    """Refuse a MuJoCo that is known to break tasks.

    Raises:
        BackendError: `found` is 3.4.0 or later.
    """
    if tuple(int(part) for part in found.split(".")[:2]) >= BROKEN_MUJOCO:
        raise BackendError(
            f"MuJoCo {found} is known to break LIBERO tasks; allowed: below "
            f"{'.'.join(map(str, BROKEN_MUJOCO))}; install the versions of 'vlarft[libero]'"
        )


def _benchmark(suite: str) -> Any:
    from libero.libero import benchmark

    suites = benchmark.get_benchmark_dict()
    if suite not in suites:
        raise DataError(f"unknown LIBERO suite '{suite}'; allowed: {', '.join(sorted(suites))}")
    return suites[suite]()


def _task(suite: str, task_id: int) -> Any:
    with _quiet():
        benchmark = _benchmark(suite)
        if not 0 <= task_id < benchmark.get_num_tasks():
            raise DataError(
                f"LIBERO suite '{suite}' has no task {task_id}; "
                f"allowed: 0 to {benchmark.get_num_tasks() - 1}"
            )
        return benchmark.get_task(task_id)


def _observe_when_asked(env: Any) -> None:
    """Robosuite looks at 37 things in each substep, for observations that nobody asks for."""
    update = env._update_observables

    def when_forced(force: bool = False) -> None:
        if force:
            update(force=True)

    env._update_observables = when_forced


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield
