"""The other end of `RemoteSimulator`: answers requests on standard input until it closes.

This module and what it imports need numpy and LIBERO only, so that it runs in an environment
without torch.
"""

import os
from collections.abc import Callable
from typing import Any

from vlarft.errors import SimulatorError, VlarftError
from vlarft.libero.messages import decode, encode
from vlarft.libero.simulator import Simulator, opengl, suite_tasks, versions

FUNCTIONS: dict[str, Callable[..., Any]] = {
    "opengl": opengl,
    "suite_tasks": suite_tasks,
    "versions": versions,
}
DESCRIPTION = (
    "task", "language", "bddl", "env_name", "target", "goal", "objects", "state_size", "cameras",
)  # fmt: skip


class Server:
    """Runs the functions above and the methods of one simulator."""

    def __init__(self) -> None:
        self._simulator: Simulator | None = None

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """`result`, or `error` with the class and the words of what went wrong."""
        try:
            return {"result": self._run(request["method"], request["arguments"])}
        except VlarftError as error:
            return {"error": type(error).__name__, "message": str(error)}
        except Exception as error:
            words = " ".join(f"{type(error).__name__}: {error}".split())
            return {"error": SimulatorError.__name__, "message": words}

    def _run(self, method: str, arguments: dict[str, Any]) -> Any:
        if method in FUNCTIONS:
            return FUNCTIONS[method](**arguments)
        if method == "open":
            self._simulator = Simulator(**arguments)
            return {name: getattr(self._simulator, name) for name in DESCRIPTION}
        result = getattr(self._simulator, method)(**arguments)
        return [result.start, result.stop] if isinstance(result, slice) else result


def main() -> None:
    """Serve this process's standard streams; whatever else prints goes to standard error."""
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)  # LIBERO may ask questions on its first import
    os.dup2(2, 1)
    server = Server()
    for line in requests:
        answers.write(encode(server.answer(decode(line))))
        answers.flush()
    answers.close()
    os._exit(0)  # OpenGL's destructors print errors that mean nothing
