"""Where and in what precision an engine runs: chosen once, refused with the reason."""

import torch

from vlarft.errors import BackendError, ConfigError

_BACKENDS = ("auto", "native", "reference")
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
NO_NATIVE = "native stages (csrc/imagine, csrc/decode, csrc/compare) are not part of this build"


def resolve_backend(backend: str) -> str:
    """Name of the back end that runs.

    Raises:
        ConfigError: unknown name.
        BackendError: it cannot run here.
    """
    if backend not in _BACKENDS:
        raise ConfigError(f"backend = '{backend}'; allowed: {', '.join(_BACKENDS)}")
    if backend == "native":
        raise BackendError(f"backend 'native' cannot run: {NO_NATIVE}; use 'reference' or 'auto'")
    return "reference"


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
