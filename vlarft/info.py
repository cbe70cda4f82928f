"""What `vlarft info` says: what was built, what this machine can run, and why the rest cannot.

Nothing here imports an optional package or touches a GPU's memory: packages are looked up, not run.
"""

import ctypes.util
import importlib.metadata
import importlib.util
import os
import platform
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

import vlarft
from vlarft.models.attention import attention_reasons

TRITON_MINIMUM = (8, 0)  # bfloat16 matrix instructions start with sm_80
LIBERO_PACKAGES = ("libero", "robosuite", "mujoco", "bddl")
MUJOCO_LIMIT = (3, 4)  # from here on a LIBERO-Spatial task breaks in silence (lerobot #4390)


@dataclass(frozen=True)
class Capability:
    """Something that this installation can or cannot do here.

    Attributes:
        name: as users write it, e.g. "flash-attn".
        detail: version or device when it can run, else "".
        reasons: everything that stands in the way; empty exactly when it can run.
    """

    name: str
    detail: str
    reasons: tuple[str, ...] = ()

    @property
    def available(self) -> bool:
        """Whether nothing stands in the way."""
        return not self.reasons


def info() -> dict[str, Any]:
    """Versions, machine, build and capabilities, as plain values for JSON.

    Returns:
        `version`, `python`, `torch`, `machine` (system, processor, cores, memory_gib, features,
        gpus), `build` (of the native module, or None) and `capabilities`: a list of
        {name, available, detail, reasons}.
    """
    build, features = _native()
    return {
        "version": vlarft.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "machine": {
            "system": f"{platform.system()} {platform.machine()}",
            "processor": _processor(),
            "cores": len(os.sched_getaffinity(0)),
            "memory_gib": round(
                os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1
            ),
            "features": features,
            "gpus": _gpus(),
        },
        "build": build,
        "capabilities": [
            {
                **asdict(capability),
                "available": capability.available,
                "reasons": list(capability.reasons),
            }
            for capability in capabilities()
        ],
    }


def capabilities() -> list[Capability]:
    """Every optional part of vlarft, in the order in which `vlarft info` prints them."""
    return [
        _native_module(),
        _cuda(),
        _native_cuda(),
        _triton(),
        _attention("flash-attn", "flash-attn"),
        _attention("xformers", "xformers"),
        _libero(),
    ]


def render_info(content: dict[str, Any] | None = None) -> str:
    """`info()` as text for a person, one fact a line.

    Args:
        content: what `info()` returned; None asks it now.
    """
    content = content or info()
    machine, build = content["machine"], content["build"]
    facts = [
        ("vlarft", f"{content['version']}, Python {content['python']}, torch {content['torch']}"),
        (
            "machine",
            f"{machine['system']}, {machine['processor']}, {machine['cores']} cores, "
            f"{machine['memory_gib']} GiB",
        ),
        ("cpu features", " ".join(machine["features"]) or "unknown"),
        ("gpus", ", ".join(machine["gpus"]) or "none"),
        ("native build", _build_line(build)),
    ]
    lines = [f"{name:<13} {text}" for name, text in facts]
    lines.append("")
    for entry in content["capabilities"]:
        state = "yes" if entry["available"] else "no "
        text = entry["detail"] if entry["available"] else "; ".join(entry["reasons"])
        lines.append(f"{entry['name']:<17} {state}  {text}".rstrip())
    return "\n".join(lines)


def _build_line(build: dict[str, Any] | None) -> str:
    if build is None:
        return "none"
    cuda = (
        f"CUDA {build['cuda_version']} for {build['cuda_architectures'].replace(';', ', ')}"
        if build["cuda"]
        else f"no CUDA ({build['cuda_reason']})"
    )
    return f"{build['compiler']}, {build['build_type']}, {cuda}"


def _native() -> tuple[dict[str, Any] | None, list[str]]:
    if importlib.util.find_spec("vlarft._native") is None:
        return None, []
    from vlarft import _native

    return dict(_native.build_info()), _native.cpu_features()


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or "unknown processor")


def _memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _gpus() -> list[str]:
    if not torch.cuda.is_available():
        return []
    return [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]


def _no_gpu() -> list[str]:
    if torch.version.cuda is None:
        return [f"torch {torch.__version__} is built without CUDA"]
    return [] if torch.cuda.is_available() else ["no CUDA GPU is visible"]


def _native_module() -> Capability:
    build, _ = _native()
    if build is None:
        return Capability("native", "", ("vlarft._native is not built; run: pip install -e .",))
    return Capability("native", f"C++ on the CPU, version {build['version']}")


def _cuda() -> Capability:
    reasons = _no_gpu()
    return Capability("cuda", "" if reasons else ", ".join(_gpus()), tuple(reasons))


def _native_cuda() -> Capability:
    build, _ = _native()
    reasons = _no_gpu()
    if build is None:
        reasons.append("vlarft._native is not built")
    elif not build["cuda"]:
        reasons.append(
            f"{build['cuda_reason']}; "
            "reinstall with: pip install -e . -C cmake.define.VLARFT_CUDA=ON"
        )
    detail = "" if reasons or build is None else f"CUDA {build['cuda_version']}"
    return Capability("native-cuda", detail, tuple(reasons))


def _triton() -> Capability:
    reasons = _no_gpu()
    if importlib.util.find_spec("triton") is None:
        reasons.append("package triton is not installed (pip install 'vlarft[triton]')")
    if not _no_gpu() and torch.cuda.get_device_capability() < TRITON_MINIMUM:
        have, need = torch.cuda.get_device_capability(), TRITON_MINIMUM
        reasons.append(f"needs sm_{need[0]}{need[1]}, this GPU is sm_{have[0]}{have[1]}")
    return Capability("triton", "" if reasons else _version("triton"), tuple(reasons))


def _attention(name: str, distribution: str) -> Capability:
    reasons = tuple(attention_reasons(name))
    return Capability(name, "" if reasons else _version(distribution), reasons)


def _libero() -> Capability:
    missing = [name for name in LIBERO_PACKAGES if importlib.util.find_spec(name) is None]
    reasons = []
    if missing:
        word = "package" if len(missing) == 1 else "packages"
        reasons.append(f"{word} {', '.join(missing)} not installed (pip install 'vlarft[libero]')")
    if "mujoco" not in missing:
        version = importlib.metadata.version("mujoco")
        if tuple(int(part) for part in version.split(".")[:2]) >= MUJOCO_LIMIT:
            limit = ".".join(map(str, MUJOCO_LIMIT))
            reasons.append(f"MuJoCo {version} breaks LIBERO tasks; allowed: below {limit}")
    if os.environ.get("MUJOCO_GL", "egl") == "egl" and ctypes.util.find_library("EGL") is None:
        reasons.append("libEGL is missing (apt-get install libegl1 libegl-mesa0 libgl1-mesa-dri)")
    detail = "" if reasons else f"MuJoCo {_version('mujoco')}"
    return Capability("libero simulator", detail, tuple(reasons))


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "unknown version"
