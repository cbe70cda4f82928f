"""LIBERO in processes of its own, which may run another Python than this one.

A simulator and its OpenGL context are freed for certain only when their process ends, so a process
serves one task and ends with it.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import vlarft
from vlarft import errors
from vlarft.errors import BackendError, ConfigError, SimulatorError
from vlarft.libero.messages import decode, encode
from vlarft.libero.scene import Float32Array, Float64Array, UInt8Array

RENDERERS = ("egl", "osmesa")
DEBIAN = "libegl1 libegl-mesa0 libgl1-mesa-dri libgl1 libglib2.0-0"

# Only this package comes from here: the other Python keeps its own numpy.
_BOOT = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location(
    "vlarft", sys.argv[1] + "/__init__.py", submodule_search_locations=[sys.argv[1]])
sys.modules["vlarft"] = module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
from vlarft.libero.worker import main
main()
"""


class Worker:
    """A process that answers calls, one at a time.

    Args:
        python: interpreter with LIBERO; None is the one that runs now.
        renderer: "egl" or "osmesa"; None when nothing will be drawn.

    Raises:
        ConfigError: the interpreter cannot be started.
    """

    def __init__(self, python: Path | None = None, renderer: str | None = None) -> None:
        environment = dict(os.environ) | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        if renderer:
            environment |= {"MUJOCO_GL": renderer, "PYOPENGL_PLATFORM": renderer}
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115, closed by kill
        try:
            self._process = subprocess.Popen(
                [str(python or sys.executable), "-c", _BOOT, str(Path(vlarft.__file__).parent)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                env=environment,
                start_new_session=True,  # Ctrl-C reaches this process only, which ends the others
            )
        except OSError as error:
            self._errors.close()
            reason = f"{error.strerror}; name an interpreter that has LIBERO"
            raise ConfigError(f"--python {python}: {reason}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.kill()

    def call(self, method: str, **arguments: Any) -> Any:
        """The result of a method; its errors are raised here.

        Raises:
            SimulatorError: the process ended, or an error that is not one of ours.
        """
        assert self._process.stdin
        assert self._process.stdout
        try:
            self._process.stdin.write(encode({"method": method, "arguments": arguments}))
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except (OSError, ValueError):  # the pipe is closed
            line = b""
        if not line:
            raise SimulatorError(f"the simulator's process ended: {self._last_words()}")
        answer = decode(line)
        if "error" in answer:
            raise getattr(errors, answer["error"])(answer["message"])
        return answer["result"]

    def interrupt(self) -> None:
        """End the process from another thread; a call that waits for it raises."""
        self._process.kill()

    def kill(self) -> None:
        """End the process, whatever it does."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream:
                stream.close()
        self._errors.close()

    def _last_words(self) -> str:
        code = self._process.wait()
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return f"exit code {code}{', ' + lines[-1].strip() if lines else ''}"


class RemoteSimulator:
    """One LIBERO task in a process of its own; a `Scene`.

    Args:
        suite: a LIBERO suite.
        task_id: index of the task.
        size: edge of the pictures in pixels.
        python: as for `Worker`.
        renderer: as for `Worker`.

    Raises:
        DataError: no such suite or task.
        BackendError: LIBERO is not installed there, or its MuJoCo breaks tasks.
    """

    def __init__(
        self,
        suite: str,
        task_id: int,
        size: int = 64,
        python: Path | None = None,
        renderer: str | None = None,
    ) -> None:
        self._worker = Worker(python, renderer)
        try:
            about = self._worker.call("open", suite=suite, task_id=task_id, size=size)
        except BaseException:
            self._worker.kill()
            raise
        self.size = size
        self.task: str = about["task"]
        self.language: str = about["language"]
        self.bddl: str = about["bddl"]
        self.env_name: str = about["env_name"]
        self.target: str = about["target"]
        self.goal: str = about["goal"]
        self.objects: tuple[str, ...] = tuple(about["objects"])
        self.state_size: int = about["state_size"]
        self.cameras: tuple[str, ...] = tuple(about["cameras"])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def initial_states(self) -> Float64Array:
        """LIBERO's initial states of this task, [50, S]."""
        return self._array("initial_states")

    def start(self, state: Float64Array) -> bool:
        """See `Scene`."""
        return bool(self._worker.call("start", state=state))

    def step(self, action: Float32Array) -> bool:
        """See `Scene`."""
        return bool(self._worker.call("step", action=action))

    def run(self, actions: Float32Array) -> tuple[bool, int]:
        """See `Scene`."""
        solved, steps = self._worker.call("run", actions=actions)
        return solved, steps

    def state(self) -> Float64Array:
        """See `Scene`."""
        return self._array("state")

    def set_state(self, state: Float64Array) -> None:
        """Put the simulator in a recorded state; no physics is stepped."""
        self._worker.call("set_state", state=state)

    def branch(
        self,
        state: Float64Array,
        gripper: Float32Array,
        actions: Float32Array,
        camera: str,
        after: Sequence[int],
    ) -> dict[str, Any]:
        """What actions do from a recorded state; see `Simulator.branch`."""
        branched: dict[str, Any] = self._worker.call(
            "branch", state=state, gripper=gripper, actions=actions, camera=camera, after=after
        )
        return branched

    def entries(self, name: str) -> slice:
        """See `Scene`."""
        return slice(*self._worker.call("entries", name=name))

    def arm(self) -> slice:
        """See `Scene`."""
        return slice(*self._worker.call("arm"))

    def points(self, name: str) -> Float64Array:
        """See `Scene`."""
        return self._array("points", name=name)

    def sense(self) -> dict[str, Float64Array]:
        """See `Scene`."""
        sensed: dict[str, Float64Array] = self._worker.call("sense")
        return sensed

    def draw(self, camera: str) -> UInt8Array:
        """See `Scene`."""
        picture: UInt8Array = self._worker.call("draw", camera=camera)
        return picture

    def proprioception(self) -> dict[str, Float64Array]:
        """See `Scene`."""
        values: dict[str, Float64Array] = self._worker.call("proprioception")
        return values

    def set_look(self, amounts: dict[str, float], seed: list[int]) -> None:
        """Change how pictures look until the next call; see `Simulator.set_look`."""
        self._worker.call("set_look", amounts=amounts, seed=seed)

    def start_film(self, path: Path, camera: str) -> None:
        """Film the steps from now on; see `Simulator.start_film`."""
        self._worker.call("start_film", path=str(path), camera=camera)

    def end_film(self) -> None:
        """Finish the film, if one is running."""
        self._worker.call("end_film")

    def interrupt(self) -> None:
        """End the process from another thread; a call that waits for it raises."""
        self._worker.interrupt()

    def close(self) -> None:
        """End the process."""
        self._worker.kill()

    def _array(self, method: str, **arguments: Any) -> Float64Array:
        values: Float64Array = self._worker.call(method, **arguments)
        return values


def ask(function: str, python: Path | None = None, **arguments: Any) -> Any:
    """Result of "versions" or "suite_tasks" of `vlarft.libero.simulator` in a fresh process."""
    with Worker(python) as worker:
        return worker.call(function, **arguments)


def choose_renderer(python: Path | None = None) -> tuple[str, str]:
    """The first of EGL and OSMesa that works there: its name, and that of its OpenGL device.

    A value of MUJOCO_GL in the environment is the only one tried.

    Raises:
        BackendError: none works; says why each does not.
    """
    asked = os.environ.get("MUJOCO_GL")
    reasons = []
    for renderer in (asked,) if asked else RENDERERS:
        try:
            with Worker(python, renderer) as worker:
                return renderer, worker.call("opengl")
        except (BackendError, SimulatorError) as error:
            reasons.append(f"{renderer}: {error}")
    raise BackendError(
        f"no off-screen OpenGL ({'; '.join(reasons)}); on Debian: apt-get install {DEBIAN}, or "
        "libosmesa6 for osmesa"
    )
