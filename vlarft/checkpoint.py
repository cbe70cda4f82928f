"""Atomic checkpoints: a folder `checkpoints/step-N` exists only when it is complete.

A checkpoint remembers what its run was made from, under `config` and, in pre-training, `data`.
"""

import hashlib
import os
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vlarft.errors import CheckpointError

STATE_FILE = "state.pt"


def save_checkpoint(run: Path, step: int, state: dict[str, Any], keep: int = 2) -> Path:
    """Write `run/checkpoints/step-<step>` so that a kill at any moment leaves no damaged one.

    Args:
        run: run folder.
        step: number of finished steps.
        state: nested dicts, lists, tensors and plain values.
        keep: how many of the newest checkpoints stay.

    Returns:
        The checkpoint's folder.
    """
    folder = run / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    for leftover in folder.glob("*.partial"):
        shutil.rmtree(leftover)
    partial, final = folder / f"step-{step}.partial", folder / f"step-{step}"
    partial.mkdir()
    with (partial / STATE_FILE).open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    if final.exists():
        shutil.rmtree(final)
    partial.rename(final)
    for old in _finished(folder)[:-keep]:
        shutil.rmtree(folder / f"step-{old}")
    return final


def latest_checkpoint(run: Path) -> Path | None:
    """Newest complete checkpoint of a run, or None."""
    steps = _finished(run / "checkpoints")
    return run / "checkpoints" / f"step-{steps[-1]}" if steps else None


def load_checkpoint(path: Path) -> dict[str, Any]:
    """State written by `save_checkpoint`, tensors on the CPU.

    Raises:
        CheckpointError: the folder holds no readable state.
    """
    try:
        state: dict[str, Any] = torch.load(path / STATE_FILE, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError) as error:
        raise CheckpointError(f"{path / STATE_FILE}: no readable checkpoint ({error})") from error
    return state


def check_same_run(
    state: dict[str, Any],
    where: Path,
    config: dict[str, Any],
    data: dict[str, Any],
    may_change: Collection[str] = (),
) -> None:
    """Refuse to continue a run with another configuration or other data.

    Args:
        state: as loaded, with `config` and, when there are fingerprints, `data`.
        where: the checkpoint's folder, named in errors.
        config: of the run to continue, plain values.
        data: fingerprints of what it trains on, plain values.
        may_change: dotted keys of `config` that change no step.

    Raises:
        CheckpointError: names every key that differs, and both values of the first.
    """
    then, now = flat_values(state["config"]), flat_values(config)
    different = sorted(
        key for key in {*then, *now} - set(may_change) if then.get(key) != now.get(key)
    )
    if different:
        key = different[0]
        raise CheckpointError(
            f"{where}: written with another configuration ({', '.join(different)}; {key} was "
            f"{then.get(key)}, now {now.get(key)}); use the same one, or a new run folder"
        )
    then, now = flat_values(state.get("data", {})), flat_values(data)
    different = sorted(key for key in {*then, *now} if then.get(key) != now.get(key))
    if different:
        raise CheckpointError(
            f"{where}: written with other data ({', '.join(different)}); use the same data files, "
            "or a new run folder"
        )


def weights_fingerprint(model: nn.Module) -> str:
    """Hash over names and values of all weights."""
    content = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        content.update(name.encode())
        content.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return content.hexdigest()


def flat_values(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, keys joined by dots."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict) and value:
            flat |= flat_values(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def _finished(folder: Path) -> list[int]:
    names = (f.name for f in folder.glob("step-*") if not f.name.endswith(".partial"))
    return sorted(int(name.removeprefix("step-")) for name in names)
