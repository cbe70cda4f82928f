"""`environment.json`: versions and machine of a run, so that its figures can be read later."""

import importlib.metadata
import json
import os
import platform
import shlex
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

import vlarft

PACKAGES = (
    "torch",
    "transformers",
    "numpy",
    "h5py",
    "safetensors",
    "peft",
    "pydantic",
    "rich",
    "typer",
    "pillow",
)
CPU_FEATURES = ("avx2", "fma", "avx512f", "avx512_bf16", "avx512_vnni", "amx_tile", "amx_bf16")


def environment() -> dict[str, Any]:
    """Versions, machine and command of this process.

    Returns:
        Plain values; memory in bytes.
    """
    flags, model = _cpu()
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "vlarft": vlarft.__version__,
        "python": platform.python_version(),
        "packages": {name: v for name in PACKAGES if (v := _version(name))},
        "system": platform.platform(),
        "cpu": model,
        "cpu_features": [flag for flag in CPU_FEATURES if flag in flags],
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "gpus": gpus,
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def write_environment(run: Path) -> Path:
    """Write `run/environment.json`, replacing an older one."""
    run.mkdir(parents=True, exist_ok=True)
    path = run / "environment.json"
    path.write_text(json.dumps(environment(), indent=2) + "\n", encoding="utf-8")
    return path


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu() -> tuple[set[str], str]:
    """Feature flags and model name; empty and the machine type where /proc is missing."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return set(), platform.machine()
    fields = dict(line.split(":", 1) for line in reversed(lines) if ":" in line)
    named = {key.strip(): value.strip() for key, value in fields.items()}
    return set(named.get("flags", "").split()), named.get("model name", platform.machine())
