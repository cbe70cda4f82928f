#!/usr/bin/env bash
# LIBERO-Object at 64 px, from recordings to success rates in the simulator, with controls.
# Usage: scripts/libero_object_small.sh [STAGE ...]     (all stages by default, in this order)
#   record     the scripted expert's episodes, with 64 px frames
#   pretrain   tokenizer, world model, policy
#   reward     does the world model's reward mean anything?
#   rft        fine-tuning and its control with permuted advantages, a pair a seed
#   controls   the action-L1 reward, and more cloning for as many seconds
#   success    moved and standard starts, every tuned policy in pairs with its start
#   perturb    the same under combined minor perturbation
# Give the same command again after a stop: finished parts are kept, unfinished ones go on.
# Variables: RUNS, JOBS, DEVICE, SEEDS, EPISODES (of each task and seed), LIBERO_PYTHON.
set -euo pipefail
cd "$(dirname "$0")/.."
RUNS=${RUNS:-runs/libero_object_small} JOBS=${JOBS:-2} DEVICE=${DEVICE:-cpu}
SEEDS=${SEEDS:-0,1,2} EPISODES=${EPISODES:-20}
CONFIG=small RFT=rft-small
data=$RUNS/data world=$RUNS/world/world policy=$RUNS/policy/policy
vlarft=(.venv/bin/vlarft)
simulator=(--jobs "$JOBS")
if [[ -n ${LIBERO_PYTHON:-} ]]; then simulator+=(--python "$LIBERO_PYTHON"); fi
seeds=${SEEDS//,/ }
sharp=(--set policy_training.shift=0) # a shifted picture does not say where an object is (docs/results.md)

say() { printf '== %s\n' "$*"; }

# $1 stage, $2 run folder; further arguments of `vlarft train STAGE`.
train() {
  local stage=$1 run=$2 resume=()
  shift 2
  if [[ -f $run/summary.json ]]; then say "$stage: kept from an earlier call ($run)"; return; fi
  if [[ -d $run ]]; then resume=(--resume); fi
  say "$stage: training into $run"
  "${vlarft[@]}" train "$stage" --config "$CONFIG" --data "$data" --run "$run" --device "$DEVICE" \
    "${resume[@]}" "$@"
}

# $1 name of the result, $2 folder of the tuned policies under $RUNS, SEED standing for each seed;
# further arguments are options of `vlarft eval libero`.
success() {
  local name=$1 folder=$RUNS/$2 after=() s
  shift 2
  for s in $seeds; do after+=(--after "${folder//SEED/$s}"); done
  if [[ $folder != *SEED* ]]; then after=(--after "$folder"); fi
  say "success: $name"
  "${vlarft[@]}" eval libero --policy "$policy" "${after[@]}" --data "$data" --seeds "$SEEDS" \
    --episodes "$EPISODES" --cache "$RUNS/episodes" --run "$RUNS/success-$name" "${simulator[@]}" "$@"
}

# Every arm in pairs with the policy that it started from. $1: suffix of the results' names.
all_arms() {
  local suffix=$1
  shift
  success "rft-$suffix" rft/seed-SEED/treatment/policy "$@"
  success "permuted-$suffix" rft/seed-SEED/control/policy "$@"
  success "actions-$suffix" actions/seed-SEED/policy "$@"
  success "cloning-$suffix" cloning/policy "$@"
}

stage_record() {
  "${vlarft[@]}" record --out "$RUNS/recordings" --frames "$data" --size 64 --episodes 56 \
    --starts standard,moved,moved,moved,moved,moved,swapped "${simulator[@]}"
}

stage_pretrain() {
  train tokenizer "$RUNS/tokenizer"
  train world-model "$RUNS/world" --tokenizer "$RUNS/tokenizer/tokenizer"
  train policy "$RUNS/policy" "${sharp[@]}"
}

stage_reward() {
  "${vlarft[@]}" eval world-model --world "$world" --data "$data" --run "$RUNS/quality" --device "$DEVICE"
  "${vlarft[@]}" eval reward --world "$world" --data "$data" --temperature 0.3 --device "$DEVICE" \
    --json "$RUNS/reward.json"
}

stage_rft() {
  "${vlarft[@]}" rft --world "$world" --policy "$policy" --data "$data" --config "$RFT" \
    --run "$RUNS/rft" --seeds "$SEEDS" --device "$DEVICE"
}

stage_controls() {
  local s steps
  for s in $seeds; do
    "${vlarft[@]}" rft --world "$world" --policy "$policy" --data "$data" --config "$RFT" \
      --run "$RUNS/actions/seed-$s" --set "seed=$s" --set reward.kind=actions --device "$DEVICE"
  done
  # As many seconds of cloning as one run of fine-tuning took.
  steps=$(.venv/bin/python - "$RUNS" <<'PY'
import json
import sys
from pathlib import Path

runs = Path(sys.argv[1])
policy = json.loads((runs / "policy/summary.json").read_text())
rft = json.loads((runs / "rft/summary.json").read_text())
arms = 2 * len(rft["seeds"])
print(max(1, round(rft["seconds"] / arms / (policy["seconds"] / policy["steps"]))))
PY
  )
  train policy "$RUNS/cloning" --start "$policy" "${sharp[@]}" --set "policy_training.steps=$steps"
}

stage_success() {
  all_arms moved --starts moved
  success rft-standard rft/seed-SEED/treatment/policy --starts standard
}

stage_perturb() { all_arms perturbed --starts standard --perturb combined-minor; }

stages=("$@")
if ((!$#)); then stages=(record pretrain reward rft controls success perturb); fi
for stage in "${stages[@]}"; do
  if ! declare -F "stage_$stage" >/dev/null; then
    echo "unknown stage '$stage'; allowed: record pretrain reward rft controls success perturb" >&2
    exit 2
  fi
done
for stage in "${stages[@]}"; do say "stage $stage"; "stage_$stage"; done
