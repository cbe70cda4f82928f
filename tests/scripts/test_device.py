"""benchmarks/device.sh with a stand-in for Python: order, tolerance, the record."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "device.sh"
STAND_IN = """#!/usr/bin/env bash
if [ "$1" = - ]; then exec {python} "$@"; fi
echo "$*" >> {calls}
case "$*" in *"pip install"*|*tests/kernels*) echo "no such package"; exit 1;; esac
while [ $# -gt 0 ]; do
  if [ "$1" = --json ]; then
    echo '[{{"machine": {{"gpus": ["NVIDIA H200 NVL"]}}}}]' > "$2"
  fi
  shift
done
"""


@pytest.fixture
def ran(tmp_path):
    calls, python, results = tmp_path / "calls", tmp_path / "python", tmp_path / "results"
    python.write_text(STAND_IN.format(python=sys.executable, calls=calls))
    python.chmod(0o755)
    results.mkdir()
    out = tmp_path / "out"
    out.mkdir()
    (out / "stopped.json").write_text("[{")  # of a step that ran out of time
    environment = {**os.environ, "PYTHON": str(python), "VLARFT_DEVICE_RESULTS": str(results)}
    done = subprocess.run(
        ["bash", SCRIPT, out], env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return calls.read_text().splitlines(), done.stdout, results


def test_what_fails_is_noted_and_the_rest_runs(ran):
    calls, told, _ = ran
    assert "build: exit 1" in told
    assert "kernel-tests: exit 1" in told
    measured = [call.split("--json ")[1].split()[0] for call in calls if "--json" in call]
    names = [Path(file).stem for file in measured]
    assert names[:3] == ["imagine-1", "imagine-16", "imagine-16-float8"]
    assert {"judge-16", "rollout-16", "published-1"} < set(names)
    assert all("--device cuda --dtype" in call for call in calls if "bench run" in call)


def test_one_record_of_this_gpu_is_left(ran):
    calls, told, results = ran
    (record,) = results.iterdir()
    assert record.name == "gpu-nvidia-h200-nvl.json"
    found = json.loads(record.read_text())
    assert len(found) == sum("--json" in call for call in calls)
    assert "stopped.json: left out" in told
    assert f"record: {record}, {len(found)} results" in told
