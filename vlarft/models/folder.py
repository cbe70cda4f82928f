"""Model folders: `config.json` beside safetensors files, loaded strictly."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vlarft.errors import CheckpointError


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        CheckpointError: the file is missing or no JSON object.
    """
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no such file; expected a model folder with it") from error
    except json.JSONDecodeError as error:
        raise CheckpointError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: expected a JSON object")
    return content


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors of the folder's `*.safetensors` files.

    Raises:
        CheckpointError: there is none, or one cannot be read.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise CheckpointError(f"{folder}: no *.safetensors file; expected a model folder")
    tensors: dict[str, Tensor] = {}
    for file in files:
        try:
            tensors.update(load_file(file))
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{file}: not a readable safetensors file ({error})") from error
    return tensors


def write_tensors(path: Path, tensors: dict[str, Tensor], dtype: torch.dtype | None = None) -> None:
    """Write tensors, floating ones in `dtype` when given (half precision halves a file)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    cast = {
        k: (v.to(dtype) if dtype and v.is_floating_point() else v).detach().contiguous()
        for k, v in tensors.items()
    }
    save_file(cast, path, metadata={"format": "pt"})


def load_strict(module: nn.Module, tensors: dict[str, Tensor], where: str) -> None:
    """Load a state dict; every key and shape must match.

    Raises:
        CheckpointError: names the first missing, unexpected or wrongly shaped key.
    """
    expected = {k: v.shape for k, v in module.state_dict().items()}
    missing = sorted(expected.keys() - tensors.keys())
    unexpected = sorted(tensors.keys() - expected.keys())
    if missing or unexpected:
        raise CheckpointError(
            f"{where}: expected {len(expected)} keys, found {len(tensors)}; "
            f"missing {len(missing)} {missing[:2]}, unexpected {len(unexpected)} {unexpected[:2]}"
        )
    for key, shape in expected.items():
        if tensors[key].shape != shape:
            raise CheckpointError(
                f"{where}: key '{key}' has shape {list(tensors[key].shape)}, expected {list(shape)}"
            )
    module.load_state_dict(tensors)
