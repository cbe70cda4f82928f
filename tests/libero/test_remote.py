import sys
from pathlib import Path

import numpy as np
import pytest

from vlarft.errors import BackendError, ConfigError, DataError, SimulatorError
from vlarft.libero import remote
from vlarft.libero.messages import decode, encode
from vlarft.libero.remote import RemoteSimulator, Worker, ask, choose_renderer
from vlarft.libero.simulator import check_mujoco


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((0, 7), np.float32),
        np.arange(12, dtype=np.uint8).reshape(2, 2, 3)[:, ::-1],
        np.float64([[np.pi, -np.inf]]),
    ],
)
def test_arrays_arrive_bit_for_bit(array):
    line = encode({"a": [1, {"b": array}]})
    assert line.count(b"\n") == 1
    got = decode(line)["a"][1]["b"]
    assert got.dtype == array.dtype
    np.testing.assert_array_equal(got, array)
    got[...] = 0  # writable


def test_what_cannot_be_sent_is_named():
    with pytest.raises(TypeError, match="Path"):
        encode({"path": Path("x")})


@pytest.mark.parametrize("found", ["3.4.0", "3.10.1", "4.0.0"])
def test_a_mujoco_that_breaks_tasks_is_refused(found):
    with pytest.raises(BackendError, match=f"MuJoCo {found} is known to break"):
        check_mujoco(found)


def test_pinned_mujocos_are_allowed():
    check_mujoco("2.3.7")
    check_mujoco("3.3.7")


@pytest.fixture
def fake_libero(tmp_path, monkeypatch):
    """Makes a stand-in for LIBERO's packages that a worker imports; returns their folder."""
    for package in ("mujoco", "libero", "libero/libero", "libero/libero/envs"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text("")
    (tmp_path / "mujoco" / "__init__.py").write_text("__version__ = '3.4.1'\n")
    (tmp_path / "libero/libero/envs/env_wrapper.py").write_text(
        "print('noise on standard output')\nControlEnv = None\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return tmp_path


@pytest.mark.usefixtures("fake_libero")
def test_a_worker_refuses_a_mujoco_that_breaks_tasks():
    with pytest.raises(BackendError, match=r"MuJoCo 3\.4\.1 is known to break LIBERO tasks"):
        ask("versions")
    with pytest.raises(BackendError, match=r"allowed: below 3\.4"):
        RemoteSimulator("libero_object", 0)


def test_errors_keep_their_class_and_others_become_simulator_errors(fake_libero):
    (fake_libero / "mujoco" / "__init__.py").write_text("__version__ = '3.3.7'\n")
    (fake_libero / "libero/libero/benchmark.py").write_text(
        "print('noise')\ndef get_benchmark_dict(): return {'a': 0, 'b': 0}\n"
    )
    with pytest.raises(DataError, match="unknown LIBERO suite 'c'; allowed: a, b"):
        ask("suite_tasks", suite="c")
    with pytest.raises(SimulatorError, match="TypeError: 'int' object is not callable"):
        ask("suite_tasks", suite="a")


def test_libero_that_is_not_installed(fake_libero):
    (fake_libero / "mujoco" / "__init__.py").write_text("raise ImportError('no mujoco here')\n")
    with pytest.raises(BackendError, match=r"no mujoco here.*vlarft\[libero\].*--python PATH"):
        ask("versions")


def test_a_process_that_dies_says_its_last_words(fake_libero):
    (fake_libero / "mujoco" / "__init__.py").write_text(
        "import os\nos.write(2, b'out of memory')\nos._exit(9)\n"
    )
    with (
        Worker() as worker,
        pytest.raises(SimulatorError, match="ended: exit code 9, out of memory"),
    ):
        worker.call("versions")


def test_an_interpreter_that_does_not_exist():
    with pytest.raises(ConfigError, match="--python /no/python: No such file"):
        Worker(Path("/no/python"))


def test_only_this_package_is_lent_to_another_python(tmp_path):
    """A worker needs neither torch nor pydantic, and takes its numpy from its own environment."""
    script = (
        "import sys; sys.modules['torch'] = sys.modules['pydantic'] = None; "
        f"sys.argv = ['-c', {str(Path(remote.vlarft.__file__).parent)!r}]; "
        f"exec({remote._BOOT!r})"
    )
    python = tmp_path / "python"
    (tmp_path / "boot.py").write_text(script)
    python.write_text(f"#!/bin/sh\nexec {sys.executable} -I {tmp_path / 'boot.py'}\n")
    python.chmod(0o755)
    with Worker(python) as worker, pytest.raises(SimulatorError, match="AttributeError"):
        worker.call("step", action=np.zeros(7))


class FakeWorker:
    """An OpenGL that works for some renderers only."""

    working: tuple[str, ...] = ()

    def __init__(self, _python, renderer):
        self.renderer = renderer

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def call(self, method):
        assert method == "opengl"
        if self.renderer not in self.working:
            raise BackendError("no display")
        return f"{self.renderer} device"


@pytest.mark.parametrize(
    ("working", "chosen"), [(("egl", "osmesa"), "egl"), (("osmesa",), "osmesa")]
)
def test_osmesa_takes_over_from_egl(monkeypatch, working, chosen):
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    monkeypatch.setattr(remote, "Worker", FakeWorker)
    monkeypatch.setattr(FakeWorker, "working", working)
    assert choose_renderer() == (chosen, f"{chosen} device")


def test_a_renderer_named_by_the_user_is_not_replaced(monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "egl")
    monkeypatch.setattr(remote, "Worker", FakeWorker)
    monkeypatch.setattr(FakeWorker, "working", ("osmesa",))
    with pytest.raises(BackendError, match="egl: no display") as error:
        choose_renderer()
    assert "osmesa:" not in str(error.value)


def test_without_any_renderer_every_reason_is_given(monkeypatch):
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    monkeypatch.setattr(remote, "Worker", FakeWorker)
    with pytest.raises(BackendError, match=r"egl: no display; osmesa: no display.*apt-get"):
        choose_renderer()
