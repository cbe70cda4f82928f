"""kernels/ is installed as vlarft.kernels, and importing it costs nothing."""

import subprocess
import sys

import vlarft.kernels


def test_is_the_folder_kernels():
    assert vlarft.kernels.__name__ == "vlarft.kernels"
    assert "Triton" in (vlarft.kernels.__doc__ or "")


def test_import_needs_neither_triton_nor_torch():
    code = "import sys, vlarft.kernels; print({'torch', 'triton'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"
