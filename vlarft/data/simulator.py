"""LIBERO's own simulator, used to draw recorded states. Needs the `[libero]` extra.

Nothing here touches physics: a recorded state is set, MuJoCo's kinematics are updated, and the
picture of one camera is drawn.
"""

import contextlib
import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vlarft.errors import BackendError, DataError

UInt8Array = npt.NDArray[np.uint8]
Float64Array = npt.NDArray[np.float64]

SUPERSAMPLING = (
    2  # pictures are drawn this many times larger and averaged: cheaper than multisampling on a CPU
)
LAST_GOOD_MUJOCO = (
    3,
    4,
)  # 3.4.0 and later break a LIBERO-Spatial task in silence (lerobot #4390, LIBERO #141)


def _import_libero() -> tuple[Any, Any, Any, Any]:
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ.setdefault(name, "1")  # BLAS threads only slow the controller down
    os.environ.setdefault("MUJOCO_GL", "egl")
    if os.environ["MUJOCO_GL"] in ("egl", "osmesa"):
        os.environ.setdefault("PYOPENGL_PLATFORM", os.environ["MUJOCO_GL"])
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            import logging

            logging.getLogger("robosuite_logs").setLevel(logging.ERROR)
            import mujoco
            from libero.libero import benchmark, get_libero_path
            from libero.libero.envs.env_wrapper import ControlEnv
            from robosuite.utils.binding_utils import MjRenderContextOffscreen
    except ImportError as error:
        raise BackendError(
            f"LIBERO's simulator cannot be imported ({error}); install it with: "
            "pip install 'vlarft[libero]' and, on Debian, "
            "apt-get install libegl1 libegl-mesa0 libgl1-mesa-dri libgl1 libglib2.0-0"
        ) from error
    version = tuple(int(part) for part in mujoco.__version__.split(".")[:2])
    if version >= LAST_GOOD_MUJOCO:
        raise BackendError(
            f"MuJoCo {mujoco.__version__} is known to break LIBERO tasks; allowed: below "
            f"{'.'.join(map(str, LAST_GOOD_MUJOCO))}; install the versions of 'vlarft[libero]'"
        )
    return benchmark, get_libero_path, ControlEnv, MjRenderContextOffscreen


class Simulator:
    """One LIBERO task whose recorded states can be drawn.

    Args:
        suite: a LIBERO suite, e.g. "libero_object".
        task_id: index of the task in its suite.
        size: edge of the square pictures in pixels.
    """

    def __init__(self, suite: str, task_id: int, size: int) -> None:
        benchmark, get_libero_path, control_env, render_context = _import_libero()
        suites = benchmark.get_benchmark_dict()
        if suite not in suites:
            raise DataError(f"unknown LIBERO suite '{suite}'; allowed: {', '.join(sorted(suites))}")
        with contextlib.redirect_stdout(io.StringIO()):
            try:
                task = suites[suite]().get_task(task_id)
            except IndexError as error:
                raise DataError(f"LIBERO suite '{suite}' has no task {task_id}") from error
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
        self.size = size
        self.language: str = task.language
        self.bddl = f"{task.problem_folder}/{task.bddl_file}"
        self.env_name: str = self._env.problem_name
        visual = self._env.sim.model._model.vis
        visual.quality.offsamples = 0
        visual.global_.offwidth = visual.global_.offheight = max(512, size * SUPERSAMPLING)
        try:
            context = render_context(self._env.sim, device_id=-1)
        except Exception as error:
            raise BackendError(
                f"no off-screen OpenGL context with MUJOCO_GL={os.environ['MUJOCO_GL']} ({error}); "
                "try MUJOCO_GL=egl with Mesa's libegl-mesa0, or MUJOCO_GL=osmesa with libosmesa6"
            ) from error
        context.vopt.geomgroup[0], context.vopt.geomgroup[1] = (
            0,
            1,
        )  # visual meshes, not collision shapes

    @property
    def state_size(self) -> int:
        """Numbers of a state: time, qpos, qvel."""
        model = self._env.sim.model._model
        return 1 + int(model.nq) + int(model.nv)

    def set_state(self, state: Float64Array) -> None:
        """Put the simulator in a recorded state [time, qpos, qvel]; no physics is stepped."""
        self._env.set_state(state)
        self._env.sim.forward()

    def draw(self, camera: str) -> UInt8Array:
        """Picture [size, size, 3] of the current state, LIBERO's raw rows (first row = bottom)."""
        k, size = SUPERSAMPLING, self.size
        self._env.sim._render_context_offscreen.gl_ctx.make_current()
        large = self._env.sim.render(width=size * k, height=size * k, camera_name=camera)
        total = large.reshape(size, k, size, k, 3).astype(np.uint16).sum((1, 3))
        frame: UInt8Array = ((total + k * k // 2) // (k * k)).astype(np.uint8)
        return frame

    def proprioception(self) -> dict[str, Float64Array]:
        """End-effector position (3), axis-angle (3), fingers (2) and joint positions (7)."""
        from robosuite.utils.transform_utils import quat2axisangle

        self._env.env._update_observables(force=True)
        observed = self._env.env._get_observations()
        return {
            "ee_pos": np.asarray(observed["robot0_eef_pos"], dtype=np.float64),
            "ee_ori": np.asarray(
                quat2axisangle(observed["robot0_eef_quat"].copy()), dtype=np.float64
            ),
            "gripper_states": np.asarray(observed["robot0_gripper_qpos"], dtype=np.float64),
            "joint_states": np.asarray(observed["robot0_joint_pos"], dtype=np.float64),
        }

    def close(self) -> None:
        """Free the simulator."""
        self._env.close()
