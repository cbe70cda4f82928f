"""The check of registers and spills, on the compiler's own words."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "check_gpu_resources.py"
LOG = """
ptxas info    : Compiling entry function '{name}' for 'sm_90a'
ptxas info    : Function properties for {name}
    144 bytes stack frame, {spilled} bytes spill stores, {spilled} bytes spill loads
ptxas info    : Used 62 registers, used 1 barriers, 8192 bytes smem
"""


def check(tmp_path, *kernels):
    log = tmp_path / "log.txt"
    log.write_text("".join(LOG.format(name=name, spilled=spilled) for name, spilled in kernels))
    done = subprocess.run([sys.executable, SCRIPT, log], capture_output=True, text=True)
    return done.returncode, done.stdout


HOT, COLD = "_Z14product_narrowIN4cuda4Bf16ELb0EEvS_", "_Z14product_narrowIfLb0EEvS_"
WIDE = "_Z16attention_kernelIN4cuda4Bf16ELi128EEvS_"


def test_passes_without_spills_and_lists_hot_kernels(tmp_path):
    status, told = check(tmp_path, (HOT, 0), (COLD, 0))
    assert status == 0
    assert "sm_90a   62 registers   8192 B shared     0 B spilled  " + HOT in told
    assert "2 kernels, 1 of them hot, 0 hot ones spill" in told


@pytest.mark.parametrize(("kernel", "status"), [(HOT, 1), (COLD, 0), (WIDE, 0)])
def test_only_hot_kernels_may_not_spill(tmp_path, kernel, status):
    assert check(tmp_path, ("_Z14collect_kernelv", 0), (kernel, 28))[0] == status


def test_a_log_without_kernels_fails(tmp_path):
    status, told = check(tmp_path)
    assert status == 1
    assert "was it built with -DCMAKE_CUDA_FLAGS=-Xptxas=-v?" in told
