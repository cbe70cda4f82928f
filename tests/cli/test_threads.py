"""Threads that wait must not keep cores from other processes."""

import os
import subprocess
import sys

import pytest

NAMES = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
# What the first line of a command sees: torch reads the variable when it is loaded.
SCRIPT = """
import os, sys
from vlarft import cli
cli.run_command = lambda _: print("torch" in sys.modules, os.environ.get("GOMP_SPINCOUNT"))
cli.main([])
"""


@pytest.mark.parametrize(
    ("chosen", "seen"),
    [({}, "10000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "None")],
)
def test_idle_threads_sleep_soon_unless_the_user_says_otherwise(chosen, seen) -> None:
    kept = {name: value for name, value in os.environ.items() if name not in NAMES}
    command = [sys.executable, "-c", SCRIPT]
    found = subprocess.run(command, env=kept | chosen, capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["False", seen]
