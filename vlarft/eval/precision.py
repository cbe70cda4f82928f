"""What a precision of the transformer costs: logits of recorded windows against float32.

Each token of a recorded frame is predicted from the recorded tokens before it (teacher forcing), by
the native back end on the CPU. A cache in float8 is rounded there as on a GPU, where it saves
memory; only the order of sums differs.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from rich.table import Table
from torch import Tensor

from vlarft.data.windows import Windows
from vlarft.engine.native import Generator
from vlarft.eval.statistics import DRAWS, Estimate, mean_interval
from vlarft.models.world_model import WorldModel

# Of weights and cache; the first is what the others are measured against.
PRECISIONS: tuple[tuple[torch.dtype, torch.dtype | None], ...] = (
    (torch.float32, None),
    (torch.float32, torch.float8_e4m3fn),
    (torch.bfloat16, None),
    (torch.bfloat16, torch.float8_e4m3fn),
)


@dataclass(frozen=True, slots=True)
class Cost:
    """One precision against float32, over all predicted tokens.

    Attributes:
        dtype: of the weights.
        cache_dtype: of keys and values.
        cross_entropy: nats a token, against the recorded tokens.
        change: cross-entropy minus float32's, paired by window.
        divergence: mean Kullback-Leibler divergence from float32's distribution, nats.
        mean_error: mean absolute difference of a logit; each token's logits have mean 0 first,
            because a shift of all of them changes nothing.
        largest_error: largest such difference.
        logit_spread: standard deviation of float32's logits, to compare the two with.
        top1: share of tokens whose most probable id is float32's.
    """

    dtype: str
    cache_dtype: str
    cross_entropy: float
    change: Estimate
    divergence: float
    mean_error: float
    largest_error: float
    logit_spread: float
    top1: float

    def to_dict(self) -> dict[str, Any]:
        """As written to JSON."""
        return asdict(self) | {"change": self.change.to_dict()}


@torch.inference_mode()
def measure_precision(
    world: WorldModel,
    windows: Windows,
    indices: Sequence[int] | Tensor,
    *,
    batch: int = 16,
    draws: int = DRAWS,
    progress: Callable[[int, int], None] | None = None,
) -> list[Cost]:
    """Compare precisions on recorded windows.

    Args:
        world: the world model, on the CPU.
        windows: recorded windows of the layout's length.
        indices: window numbers.
        batch: windows at once.
        draws: bootstrap draws of the intervals, over episodes.
        progress: called with (windows done, windows).

    Raises:
        UnsupportedModelError: the native back end does not compute this transformer.
    """
    numbers = torch.as_tensor(indices, dtype=torch.int64).cpu()
    longest = world.sequence_length(windows.frames)
    generators = [
        Generator(world.transformer, world.frame_codes, longest, dtype, cache_dtype=cache)
        for dtype, cache in PRECISIONS
    ]
    parts: list[list[Tensor]] = [[] for _ in generators]
    for chosen in numbers.split(batch):
        recording = windows.batch(chosen)
        context, frames = world.window_tokens(recording.frames)
        prompt = world.prompt_ids(context, frames[:, 0])
        steps = torch.cat([world.action_ids(recording.actions), frames[:, 1:]], dim=-1)
        ids, targets = steps.flatten(1), frames[:, 1:].flatten(1)
        predicted = world.target_mask(windows.frames)[world.prompt_length + 1 :]
        truth: Tensor | None = None
        for generator, part in zip(generators, parts, strict=True):
            prompts = generator.prefill(prompt)
            logits = generator.score(prompts, ids[:, None, :-1], chunk=steps.shape[2])
            logits = logits[:, 0, predicted].double()
            logits = logits - logits.mean(-1, keepdim=True)
            truth = logits if truth is None else truth
            part.append(_figures(logits, truth, targets))
        if progress:
            done = sum(len(part) for part in parts[0])
            progress(done, len(numbers))
    columns = [torch.cat(part) for part in parts]
    plain = columns[0][:, 0]
    episode = windows.episode[numbers]
    return [
        _cost(precision, column, plain, episode, draws)
        for precision, column in zip(PRECISIONS, columns, strict=True)
    ]


def _figures(logits: Tensor, truth: Tensor, targets: Tensor) -> Tensor:
    """Figures of each window, float64 [B, 6].

    They are cross-entropy, divergence, mean and largest error, variance of the true logits, and the
    share of equal best ids.
    """
    shares, true_shares = logits.log_softmax(-1), truth.log_softmax(-1)
    error = (logits - truth).abs()
    columns = (
        -shares.gather(-1, targets[..., None])[..., 0].mean(-1),
        (true_shares.exp() * (true_shares - shares)).sum(-1).mean(-1),
        error.mean((-2, -1)),
        error.amax((-2, -1)),
        truth.square().mean((-2, -1)),
        (logits.argmax(-1) == truth.argmax(-1)).double().mean(-1),
    )
    return torch.stack(columns, dim=1)


def _cost(
    precision: tuple[torch.dtype, torch.dtype | None],
    column: Tensor,
    plain: Tensor,
    episode: Tensor,
    draws: int,
) -> Cost:
    mean = column.mean(0).tolist()
    dtype, cache = precision
    return Cost(
        dtype=str(dtype).removeprefix("torch."),
        cache_dtype=str(cache or dtype).removeprefix("torch."),
        cross_entropy=mean[0],
        change=mean_interval(column[:, 0] - plain, episode, draws=draws),
        divergence=mean[1],
        mean_error=mean[2],
        largest_error=float(column[:, 3].max()),
        logit_spread=mean[4] ** 0.5,
        top1=mean[5],
    )


def table(costs: Sequence[Cost]) -> Table:
    """One row a precision."""
    spread = costs[0].logit_spread
    out = Table(
        title=f"Teacher-forced logits against float32's (standard deviation {spread:.2f})",
        title_justify="left",
    )
    for number, column in enumerate(
        (
            "weights",
            "keys, values",
            "cross-entropy",
            "change, 95%",
            "divergence",
            "mean error",
            "largest",
            "same best id",
        )
    ):
        out.add_column(column, justify="left" if number < 2 else "right")
    for cost in costs:
        low, high = cost.change.interval
        out.add_row(
            cost.dtype,
            cost.cache_dtype,
            f"{cost.cross_entropy:.4f}",
            f"{cost.change.value:+.5f} ({low:+.5f} to {high:+.5f})",
            f"{cost.divergence:.2e}",
            f"{cost.mean_error:.4f}",
            f"{cost.largest_error:.2f}",
            f"{100 * cost.top1:.2f}%",
        )
    return out
