#!/usr/bin/env bash
# Everything worth knowing of a GPU machine, in one command and at most 9 minutes: builds, tests,
# sanitises and benchmarks every stage, the most valuable first. A step that fails or lacks a tool is
# noted and the next one starts. Usage: benchmarks/device.sh [OUT], OUT: a folder for logs and JSON
# (default: build/device); all results together go to benchmarks/results/gpu-NAME.json. Needs CUDA, torch >= 2.11 and Python 3.11 or 3.12; no internet when these
# packages are here: pybind11 scikit-build-core ninja cmake transformers peft h5py safetensors.
set -uo pipefail
cd "$(dirname "$0")/.."
out=${1:-build/device}
mkdir -p "$out"
end=$((SECONDS + ${VLARFT_DEVICE_SECONDS:-540}))
summary="$out/summary.txt"
: > "$summary"

step() { # NAME SECONDS COMMAND...: at most so long, and never past the end
  local name=$1 most=$2 left=$((end - SECONDS)) start=$SECONDS status
  shift 2
  if ((left < 10)); then
    echo "$name: not started, no time left" | tee -a "$summary"
    return 1
  fi
  timeout "$((left < most ? left : most))" "$@" > "$out/$name.log" 2>&1
  status=$?
  echo "$name: exit $status after $((SECONDS - start)) s" | tee -a "$summary"
  ((status == 0)) || tail -n 5 "$out/$name.log"
  return "$status"
}

python=${PYTHON:-python3}
bench() { # NAME SECONDS ARGUMENTS...
  local name=$1 most=$2
  shift 2
  step "bench-$name" "$most" "$python" -m vlarft bench run --device cuda --dtype bfloat16 \
    --json "$out/$name.json" "$@"
}

nvidia-smi > "$out/gpu.txt" 2>&1 || echo "nvidia-smi: no GPU is visible" | tee -a "$summary"
step build 150 "$python" -m pip install -q --no-build-isolation --no-deps -e . \
  -C cmake.define.VLARFT_CUDA=ON -C cmake.define.CMAKE_CUDA_ARCHITECTURES=native
step info 30 "$python" -m vlarft info
step cuda-tests 90 "$python" -m pytest -q -p no:cacheprovider tests/imagine/test_cuda.py
bench imagine-1 60 --case paper-1x16 --stage imagine --baselines hf,static,torch2 --rounds 5
bench imagine-16 60 --case paper-16x16 --stage imagine --baselines static,torch2 --rounds 3
bench imagine-16-float8 30 --case paper-16x16 --stage imagine --cache-dtype float8_e4m3fn \
  --baselines none --rounds 3
step kernel-tests 60 "$python" -m pytest -q -p no:cacheprovider tests/kernels
bench judge-16 60 --case paper-16x16 --stage decode,compare --baselines diffusers,lpips --rounds 3
bench rollout-16 60 --case paper-16x16 --stage rollout --baselines none --rounds 5
if command -v compute-sanitizer > /dev/null; then
  step memcheck 60 compute-sanitizer --tool memcheck --error-exitcode 1 \
    "$python" -m pytest -q -p no:cacheprovider tests/imagine/test_cuda.py -k small
  step racecheck 60 compute-sanitizer --tool racecheck --error-exitcode 1 \
    "$python" -m pytest -q -p no:cacheprovider tests/imagine/test_cuda.py -k small
else
  echo "compute-sanitizer: not here" | tee -a "$summary"
fi
# What repeating passes on the device saves beside a host that launches each: in this step's log.
step imagine-1-passes 30 env VLARFT_CUDA_PASSES=1 "$python" -m vlarft bench run --device cuda \
  --dtype bfloat16 --case paper-1x16 --stage imagine --baselines none --rounds 3
bench published-1 60 --case paper-1x16 --stage imagine --baselines published --rounds 1
bench imagine-float32 30 --case paper-1x16 --stage imagine --dtype float32 --baselines none --rounds 3

# One comparable record of this GPU, of whatever was measured.
"$python" - "$out" "${VLARFT_DEVICE_RESULTS:-benchmarks/results}" <<'PYTHON' | tee -a "$summary"
import json
import re
import sys
from pathlib import Path

results = []
for file in sorted(Path(sys.argv[1]).glob("*.json")):
    try:
        results += json.loads(file.read_text())
    except (ValueError, OSError) as error:  # a step that was stopped while it wrote
        print(f"{file.name}: left out ({error})")
if results:
    name = (results[0]["machine"]["gpus"] or ["unknown"])[0]
    record = Path(sys.argv[2]) / f"gpu-{re.sub('[^a-z0-9]+', '-', name.lower()).strip('-')}.json"
    record.write_text(json.dumps(results, indent=1) + "\n")
    print(f"record: {record}, {len(results)} results")
else:
    print("record: none, nothing was measured")
PYTHON
echo "== $summary"
