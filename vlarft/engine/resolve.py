"""Where and in what precision an engine runs: chosen once, refused with the reason."""

import importlib.util

import torch
from transformers import LlamaConfig

from vlarft import _native
from vlarft.engine import native
from vlarft.errors import BackendError, ConfigError

_BACKENDS = ("auto", "native", "reference")
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_CACHE_DTYPES = {"float8_e4m3fn": torch.float8_e4m3fn}


def resolve_backend(
    backend: str, device: torch.device, attention: str, config: LlamaConfig
) -> tuple[str, str]:
    """Name of the back end that generates tokens, and why it is not the native one, if it is not.

    Raises:
        ConfigError: unknown name.
        BackendError: it cannot run here; the message lists every reason.
    """
    if backend not in _BACKENDS:
        raise ConfigError(f"backend = '{backend}'; allowed: {', '.join(_BACKENDS)}")
    if backend == "reference":
        return backend, "asked for"
    reasons = native.unsupported(config, device)
    if device.type == "cuda":
        reasons += _missing_on_gpu()
    if attention != "sdpa":
        reasons.append(f"attention = '{attention}' (native code has its own; leave it at sdpa)")
    if backend == "native" and reasons:
        raise BackendError(
            f"backend 'native' cannot run: {'; '.join(reasons)}; use 'reference' or 'auto'"
        )
    return ("reference", "; ".join(reasons)) if reasons else ("native", "")


def _missing_on_gpu() -> list[str]:
    """What the native back end lacks here to run on a GPU."""
    build = _native.build_info()
    reasons = []
    if not build["cuda"]:
        reasons.append(
            f"this build has no CUDA code ({build['cuda_reason']}; "
            "reinstall with -C cmake.define.VLARFT_CUDA=ON)"
        )
    if importlib.util.find_spec("triton") is None:
        reasons.append("package triton is not installed (pip install 'vlarft[triton]')")
    return reasons


def resolve_device(device: str | torch.device) -> torch.device:
    """A CPU or CUDA device, with its index.

    Raises:
        ConfigError: another kind of device.
        BackendError: there is no GPU.
    """
    try:
        resolved = torch.device(device)
    except RuntimeError as error:
        raise ConfigError(f"device = '{device}'; allowed: cpu, cuda, cuda:N") from error
    if resolved.type not in ("cpu", "cuda"):
        raise ConfigError(f"device = '{device}'; allowed: cpu, cuda, cuda:N")
    if resolved.type == "cuda":
        if not torch.cuda.is_available():
            raise BackendError(f"device '{device}': PyTorch sees no CUDA GPU here; use 'cpu'")
        if resolved.index is None:
            resolved = torch.device("cuda", torch.cuda.current_device())
    return resolved


def resolve_dtype(dtype: str | torch.dtype) -> torch.dtype:
    """float32 or bfloat16.

    Raises:
        ConfigError: another dtype.
    """
    name = str(dtype).removeprefix("torch.")
    if name not in _DTYPES:
        raise ConfigError(f"dtype = '{name}'; allowed: {', '.join(_DTYPES)}")
    return _DTYPES[name]


def resolve_cache_dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    """float8_e4m3fn, or None: the cache is stored as the transformer computes.

    Raises:
        ConfigError: another dtype.
    """
    if dtype is None:
        return None
    name = str(dtype).removeprefix("torch.")
    if name not in _CACHE_DTYPES:
        raise ConfigError(
            f"cache_dtype = '{name}'; allowed: {', '.join(_CACHE_DTYPES)}, or none for the dtype's"
        )
    return _CACHE_DTYPES[name]
