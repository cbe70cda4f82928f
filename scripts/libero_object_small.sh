#!/usr/bin/env bash
# LIBERO-Object at 64 px, from recordings to success rates in the simulator, with controls.
# Usage: scripts/libero_object_small.sh [STAGE ...]     (all stages by default, in this order)
#   record     the scripted expert's episodes, with 64 px frames; for the world model noisy ones and
#              branches, what other actions would have done
#   pretrain   tokenizer, its decoder alone, world model, the same on noisy recordings and branches
#              too; scenes with known places, the encoder, the policy
#   reward     does the world model's reward mean anything?
#   rft        fine-tuning and its control with permuted advantages, a pair a seed
#   controls   the action-L1 reward, and more cloning for as many seconds
#   success    moved and standard starts, in pairs with the start; controls in the same table
#   perturb    the same under combined minor perturbation
# Give the same command again after a stop: finished parts are kept, unfinished ones go on.
# Variables: RUNS, JOBS, DEVICE, SEEDS, EPISODES (of each task and seed), LIBERO_PYTHON, and
#   POLICY_STEPS  of cloning before fine-tuning, as gains depend on it: 200 is under-trained; default is
#                 the configuration's, well-trained. Each has a folder of its own beside one world model.
#   CONFIG        configs/libero_object_small.yaml: every size and setting, of fine-tuning too.
#   WORLD         a world model to take in place of training one, vlarft/assets/checkpoints/world-branches
#                 say, which is bundled: then no noisy episodes and no branches are recorded.
set -euo pipefail
cd "$(dirname "$0")/.."
RUNS=${RUNS:-runs/libero_object_small} JOBS=${JOBS:-2} DEVICE=${DEVICE:-cpu}
SEEDS=${SEEDS:-0,1,2} EPISODES=${EPISODES:-20}
CONFIG=${CONFIG:-libero_object_small} POLICY_STEPS=${POLICY_STEPS:-} WORLD=${WORLD:-}
base=$RUNS/base${POLICY_STEPS:+-$POLICY_STEPS} # of the policy and what is made from it
data=$RUNS/data noisy=$RUNS/noisy/data branches=$RUNS/branches/data
world=${WORLD:-$RUNS/world-varied/world} policy=$base/policy/policy
vlarft=(.venv/bin/vlarft)
simulator=(--jobs "$JOBS")
if [[ -n ${LIBERO_PYTHON:-} ]]; then simulator+=(--python "$LIBERO_PYTHON"); fi
seeds=${SEEDS//,/ }
t=tokenizer_training w=world_model_training
decoder=(--set "$t.part=decoder" --set "$t.learning_rate=6.0e-4" --set "$t.moving_weight=2")
on_varied=(--set "$w.steps=3400" --set "$w.learning_rate=1.0e-3" --set "$w.window_stride=2")

say() { printf '== %s\n' "$*"; }

# $1 stage, $2 run folder; further arguments of `vlarft train STAGE`.
train() {
  local stage=$1 run=$2 resume=()
  shift 2
  if [[ -f $run/summary.json ]]; then say "$stage: kept from an earlier call ($run)"; return; fi
  if [[ -d $run ]]; then resume=(--resume); fi
  say "$stage: training into $run"
  "${vlarft[@]}" train "$stage" --config "$CONFIG" --run "$run" --device "$DEVICE" \
    "${resume[@]}" "$@"
}

# The tuned policies in pairs with the one that they started from. $1 name of the result; further
# arguments are options of `vlarft eval libero`.
success() {
  local name=$1 after=() s
  shift
  for s in $seeds; do after+=(--after "$base/rft/seed-$s/treatment/policy"); done
  say "success: $name"
  "${vlarft[@]}" eval libero --policy "$policy" "${after[@]}" --data "$data" --seeds "$SEEDS" \
    --episodes "$EPISODES" --cache "$RUNS/episodes" --run "$base/success-$name" "${simulator[@]}" "$@"
}

# The same with every control in the same table.
success_and_controls() {
  local controls=(--control "cloning=$base/cloning/policy") s
  for s in $seeds; do
    controls+=(--control "permuted=$base/rft/seed-$s/control/policy"
      --control "actions=$base/actions/seed-$s/policy")
  done
  success "$@" "${controls[@]}"
}

stage_record() {
  "${vlarft[@]}" record --out "$RUNS/recordings" --frames "$data" --size 64 --episodes 56 \
    --starts standard,moved,moved,moved,moved,moved,swapped "${simulator[@]}"
  if [[ -n $WORLD ]]; then return; fi
  "${vlarft[@]}" record --out "$RUNS/noisy/recordings" --frames "$noisy" --size 64 --episodes 32 \
    --starts moved --noise 0.2 --max-steps 200 --seed 7 "${simulator[@]}"
  "${vlarft[@]}" data branch "$RUNS/recordings" --out "$RUNS/branches/recordings" "${simulator[@]}"
  "${vlarft[@]}" data render "$RUNS/branches/recordings" --out "$branches" "${simulator[@]}"
}

pretrain_world() {
  train tokenizer "$RUNS/tokenizer" --data "$data"
  train tokenizer "$RUNS/decoder" --data "$data" --start "$RUNS/tokenizer/tokenizer" "${decoder[@]}" \
    --set "$t.steps=2200" --set "$t.lpips_weight=0.15"
  train tokenizer "$RUNS/decoder-2" --data "$data" --start "$RUNS/decoder/tokenizer" "${decoder[@]}" \
    --set "$t.steps=700" --set "$t.lpips_weight=0.05"
  train world-model "$RUNS/world" --data "$data" --tokenizer "$RUNS/decoder-2/tokenizer"
  # Branches three times: each is one window, a recording at every second start is some sixty.
  train world-model "$RUNS/world-varied" --data "$data" --data "$noisy" --data "$branches" \
    --data "$branches" --data "$branches" --start "$RUNS/world/world" "${on_varied[@]}"
}

stage_pretrain() {
  if [[ -z $WORLD ]]; then pretrain_world; fi
  "${vlarft[@]}" data scenes "$data" --out "$RUNS/scenes" --count 1500 "${simulator[@]}"
  train encoder "$RUNS/encoder" --scenes "$RUNS/scenes"
  train policy "$base/policy" --data "$data" --encoder "$RUNS/encoder/encoder" ${POLICY_STEPS:+--set "policy_training.steps=$POLICY_STEPS"}
}

stage_reward() {
  "${vlarft[@]}" eval world-model --world "$world" --data "$data" --run "$RUNS/quality" --device "$DEVICE"
  "${vlarft[@]}" eval reward --world "$world" --data "$data" --temperature 0.3 --device "$DEVICE" \
    --run "$RUNS/reward"
}

stage_rft() {
  "${vlarft[@]}" rft --world "$world" --policy "$policy" --data "$data" --config "$CONFIG" \
    --run "$base/rft" --seeds "$SEEDS" --device "$DEVICE"
}

stage_controls() {
  local s steps
  for s in $seeds; do
    "${vlarft[@]}" rft --world "$world" --policy "$policy" --data "$data" --config "$CONFIG" \
      --run "$base/actions/seed-$s" --set "seed=$s" --set reward.kind=actions --device "$DEVICE"
  done
  # As many seconds of cloning as one run of fine-tuning took.
  steps=$(.venv/bin/python - "$base" <<'PY'
import json
import sys
from pathlib import Path

base = Path(sys.argv[1])
policy = json.loads((base / "policy/summary.json").read_text())
rft = json.loads((base / "rft/summary.json").read_text())
arms = 2 * len(rft["seeds"])
print(max(1, round(rft["seconds"] / arms / (policy["seconds"] / policy["steps"]))))
PY
  )
  train policy "$base/cloning" --data "$data" --start "$policy" --set "policy_training.steps=$steps"
}

stage_success() {
  success_and_controls moved --starts moved
  success_and_controls standard --starts standard
}

stage_perturb() { success_and_controls perturbed --starts standard --perturb combined-minor; }

stages=("$@")
if ((!$#)); then stages=(record pretrain reward rft controls success perturb); fi
for stage in "${stages[@]}"; do
  if ! declare -F "stage_$stage" >/dev/null; then
    echo "unknown stage '$stage'; allowed: record pretrain reward rft controls success perturb" >&2
    exit 2
  fi
done
if [[ -n $WORLD && ! -f $WORLD/layout.json ]]; then
  echo "WORLD=$WORLD: no world model is there (layout.json is missing)" >&2
  exit 2
fi
for stage in "${stages[@]}"; do say "stage $stage"; "stage_$stage"; done
