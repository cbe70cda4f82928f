#!/usr/bin/env bash
# Make or refresh .venv. Usage: scripts/setup_venv.sh runtime|dev      (`make` calls it; see Makefile)
#
# Python: $PYTHON if set; else a python3 that already has torch with CUDA (then .venv sees that
# machine's packages and installs only what is missing); else Python 3.11 or 3.12.
# torch:  $TORCH if set; else the machine's own; else, without a GPU, torch==2.13.0 as the configured
# index offers it; else the newest torch.
# Others: as scripts/constraints.txt says; beside a torch for CUDA, which brings its own, any that
# pyproject.toml allows.
set -euo pipefail
cd "$(dirname "$0")/.."
stage=${1:?usage: scripts/setup_venv.sh runtime|dev}
venv=.venv
export PIP_DISABLE_PIP_VERSION_CHECK=1

say() { printf '== %s\n' "$*"; }

fits() { # a Python of the right version that can make environments
  "$1" -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null
}

has_torch() { # torch of the right version; with a second argument, built for CUDA
  "$1" - "${2:-}" 2>/dev/null <<'PY'
import sys
import torch
release = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
sys.exit(not (release >= (2, 11) and (sys.argv[1] != "cuda" or torch.version.cuda)))
PY
}

find_python() {
  local candidate
  if [[ -n ${PYTHON:-} ]]; then
    fits "$PYTHON" || { echo "PYTHON=$PYTHON: need Python 3.11 or 3.12 with the venv module" >&2; exit 2; }
    echo "$PYTHON"
    return
  fi
  for candidate in python3 python3.11 python3.12; do
    if fits "$candidate" && has_torch "$candidate" cuda; then echo "$candidate"; return; fi
  done
  for candidate in python3 python3.11 python3.12; do
    if fits "$candidate"; then echo "$candidate"; return; fi
  done
  echo "no Python 3.11 or 3.12 with the venv module was found; install one, or run: make PYTHON=/path/to/python" >&2
  exit 2
}

if [[ ! -x $venv/bin/python ]]; then
  python=$(find_python)
  if has_torch "$python" cuda; then
    say "creating $venv from $("$python" --version), sharing this machine's packages (torch with CUDA is here)"
    "$python" -m venv --system-site-packages "$venv"
    # A python3 that is itself a virtual environment: `venv` shares the base installation only.
    "$python" -c 'import sys, sysconfig; print(sysconfig.get_path("purelib") if sys.prefix != sys.base_prefix else "")' |
      { read -r packages; [[ -z $packages ]] || echo "$packages" >"$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/shared_packages.pth"; }
  else
    say "creating $venv from $("$python" --version)"
    "$python" -m venv "$venv"
  fi
fi
py=$venv/bin/python

if [[ -n ${TORCH:-} ]]; then
  say "installing $TORCH"
  # shellcheck disable=SC2086  # TORCH may hold options, such as an index
  "$py" -m pip install -q $TORCH
elif ! has_torch "$py"; then
  if command -v nvidia-smi >/dev/null && nvidia-smi -L 2>/dev/null | grep -q '^GPU '; then
    say "installing torch for this machine's GPU"
    "$py" -m pip install -q "torch>=2.11"
  else
    say "installing torch 2.13.0 (no GPU found)"
    "$py" -m pip install -q "torch==2.13.0" || {
      say "the index has no torch 2.13.0 for this Python; installing the newest"
      "$py" -m pip install -q "torch>=2.11"
    }
  fi
fi

constraints=()
has_torch "$py" cuda || constraints=(-c scripts/constraints.txt)

install_missing() { # requirements named in pyproject.toml: "build", or extras
  "$py" - "$@" <<'PY' >"$venv/requirements.txt"
import sys
import tomllib

project = tomllib.load(open("pyproject.toml", "rb"))
for name in sys.argv[1:]:
    if name == "build":
        print(*project["build-system"]["requires"], sep="\n")
    else:
        print(*project["project"]["optional-dependencies"][name], sep="\n")
PY
  "$py" -m pip install -q "${constraints[@]}" -r "$venv/requirements.txt"
}

case $stage in
  runtime)
    say "building and installing vlarft (editable: Python files are used where they lie)"
    install_missing build
    "$py" -m pip install -q "${constraints[@]}" --no-build-isolation -e . ${VLARFT_CUDA:+-C cmake.define.VLARFT_CUDA=$VLARFT_CUDA}
    ;;
  dev)
    say "installing tools for tests and lint"
    install_missing dev
    ;;
  *)
    echo "scripts/setup_venv.sh: unknown stage '$stage'; allowed: runtime, dev" >&2
    exit 2
    ;;
esac
