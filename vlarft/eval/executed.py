"""What would a policy execute where an expert has been? Seconds, without world model or simulator.

Success is decided in few windows: those in which the gripper closes. A mean over all windows hides
them, so they have figures of their own: how far the hand is from where the expert's is when the
expert closes, and whether the policy closes at all.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from rich.table import Table
from torch import Tensor

from vlarft.data.windows import Windows
from vlarft.errors import DataError, ShapeError
from vlarft.eval.explored import AXES, asked_way, way_error
from vlarft.eval.statistics import Estimate, bootstrap
from vlarft.models.policy import Observation, Policy

Sums = tuple[Tensor, Tensor]
"""Of each window: a figure's numerator and denominator, float64 [W]."""


@dataclass(frozen=True, slots=True)
class Executed:
    """Figures of one policy's executed chunks beside the recorded ones.

    Attributes:
        windows: W.
        grasps: of these, windows in which the recorded gripper closes.
        figures: by name, in raw LIBERO units unless said otherwise. `action_l1`: mean absolute
            difference of an entry, cut to [-1, 1]. `way`: mean length of the difference of asked
            ways. `gripper`: share of actions whose gripper has the other sign. At grasps, of the
            displacements before the recorded gripper closes: `grasp_x`, `grasp_y`, `grasp_z`, root
            mean square difference; `grasp_mean_x` and so on, its mean; `open`: share of grasps in
            which the policy's gripper stays open.
        changes: figures minus those of the policy compared with, same windows; None without one.
    """

    windows: int
    grasps: int
    figures: dict[str, Estimate]
    changes: dict[str, Estimate] | None = None

    def to_dict(self) -> dict[str, Any]:
        """As written to the JSON file."""
        return {
            "windows": self.windows,
            "grasps": self.grasps,
            "figures": {name: one.to_dict() for name, one in self.figures.items()},
            "changes": self.changes and {name: one.to_dict() for name, one in self.changes.items()},
        }


@torch.no_grad()
def executed_chunks(
    policy: Policy,
    windows: Windows,
    indices: Sequence[int] | Tensor,
    *,
    batch: int = 64,
    progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """What `policy` executes at windows, from the mean of its flow's start.

    Args:
        policy: in eval mode.
        windows: recorded windows.
        indices: W window numbers.
        batch: windows at once.
        progress: called with (windows done, windows).

    Returns:
        float32 [W, T, A], raw units, cut to [-1, 1] as a robot executes them.
    """
    numbers = torch.as_tensor(indices, dtype=torch.int64).cpu()
    found: list[Tensor] = []
    for some in numbers.split(batch):
        one = windows.batch(some)
        seen = Observation(one.frames[:, 0], one.proprioception, one.instruction)
        found.append(policy.act(seen).cpu().clamp(-1, 1))
        if progress:
            progress(sum(map(len, found)), len(numbers))
    return torch.cat(found)


def measure_executed(
    actions: Tensor, expert: Tensor, episode: Tensor, before: Tensor | None = None
) -> Executed:
    """Compare executed chunks with recorded ones; intervals draw episodes anew.

    Args:
        actions: float [W, T, A], raw units, cut to [-1, 1], the gripper last, above 0 closed.
        expert: the recorded chunks, likewise.
        episode: int64 [W], of at least two episodes.
        before: another policy's chunks at the same windows, to take the changes from.

    Raises:
        ShapeError: shapes differ.
        DataError: windows of one episode only, or no two episodes in which the gripper closes.
    """
    for name, given in (("expert", expert), ("before", before)):
        if given is not None and given.shape != actions.shape:
            raise ShapeError(f"{name} {list(given.shape)}; expected {list(actions.shape)}")
    closed = expert[..., -1] > 0
    grasp = ~closed[:, 0] & closed.any(1)
    if len(episode[grasp].unique()) < 2:
        raise DataError(
            f"the gripper closes in {int(grasp.sum())} of {len(expert)} windows, in fewer than 2 "
            "episodes; give more of the data, or more --windows"
        )
    own = _sums(actions, expert, grasp)
    other = None if before is None else _sums(before, expert, grasp)
    changes = None
    if other is not None:
        changes = {name: _estimate(name, own[name], episode, other[name]) for name in own}
    return Executed(
        windows=len(expert),
        grasps=int(grasp.sum()),
        figures={name: _estimate(name, sums, episode) for name, sums in own.items()},
        changes=changes,
    )


def _sums(actions: Tensor, expert: Tensor, grasp: Tensor) -> dict[str, Sums]:
    """What every figure is made of."""
    everywhere, there = torch.ones(len(actions), dtype=torch.float64), grasp.double()
    closed = expert[..., -1] > 0
    before_closing = (closed.cumsum(1) == 0).to(actions.dtype)
    steps = (actions - expert)[..., : len(AXES)] * before_closing[..., None]
    off = steps.sum(1).double()
    stays_open = (actions[..., -1] <= 0).all(1)
    found = {
        "action_l1": ((actions - expert).abs().mean((1, 2)).double(), everywhere),
        "way": (way_error(asked_way(actions), asked_way(expert)).double(), everywhere),
        "gripper": (((actions[..., -1] > 0) != closed).double().mean(1), everywhere),
    }
    for number, axis in enumerate(AXES):
        found[f"grasp_{axis}"] = (off[:, number].square() * there, there)
    for number, axis in enumerate(AXES):
        found[f"grasp_mean_{axis}"] = (off[:, number] * there, there)
    return found | {"open": (stays_open.double() * there, there)}


def _estimate(name: str, sums: Sums, episode: Tensor, minus: Sums | None = None) -> Estimate:
    rooted = name in {f"grasp_{axis}" for axis in AXES}

    def of(weights: Tensor, parts: Sums) -> Tensor:
        mean = (weights @ parts[0]) / (weights @ parts[1]).clamp_min(1e-12)
        return mean.sqrt() if rooted else mean

    return bootstrap(
        lambda weights: of(weights, sums) - (0 if minus is None else of(weights, minus)), episode
    )


def table(found: dict[str, Executed]) -> Table:
    """One column a policy, by its name; changes in those after the first."""
    first = next(iter(found.values()))
    out = Table(
        title=f"What is executed beside {first.windows} recorded windows, raw units",
        caption=f"grasp: where the expert closes, {first.grasps} windows",
    )
    out.add_column("figure")
    for name in found:
        out.add_column(name, justify="right", overflow="fold")
    for figure in first.figures:
        cells = []
        for one in found.values():
            shown = one.figures if one.changes is None else one.changes
            low, high = shown[figure].interval
            sign = "" if one.changes is None else "+"
            cells.append(f"{one.figures[figure].value:.3f} ({low:{sign}.3f} to {high:{sign}.3f})")
        out.add_row(figure, *cells)
    return out
