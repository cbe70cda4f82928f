"""Triton kernels: on the GPU when there is one, else in Triton's interpreter on the CPU.

Whether Triton interprets is settled when it is first imported, so each file of checks runs in a
process of its own.
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

FILES = sorted(Path(__file__).parent.glob("check_*.py"))


@pytest.mark.slow
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_kernels(file):
    if importlib.util.find_spec("triton") is None:
        pytest.skip("package triton is not installed (pip install 'vlarft[triton]')")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(p for p in sys.path if p)
    environment.pop("TRITON_INTERPRET", None)
    environment["TRITON_DEFAULT_FP_FUSION"] = "1"  # 3.9 warns where it is not said
    if file.stem != "check_compile" and not torch.cuda.is_available():
        environment["TRITON_INTERPRET"] = "1"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(file)]
    done = subprocess.run(
        command, env=environment, cwd=file.parents[2], capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout
