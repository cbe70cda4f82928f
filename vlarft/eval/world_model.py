"""Imagination quality: is the world model sharp, and does it listen to actions?

Four methods predict the T frames that follow a given frame of recorded validation windows:

* `world_model`: free-running imagination with the expert's actions;
* `swapped`: the same, from the same frame and with the same noise, with the actions of another
  episode;
* `copy`: the given frame, unchanged;
* `tokenizer`: the recorded frames, encoded and decoded: the ceiling of the world model.

A blurred mean of all futures beats `copy` without using the actions at all; only the difference
to `swapped` shows that actions matter. Definitions: `docs/metrics.md`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch
from rich.table import Table
from torch import Tensor

from vlarft.data.windows import Windows, moving_mask
from vlarft.engine import RolloutEngine, Sampling
from vlarft.errors import DataError
from vlarft.eval.image_quality import SSIM_WINDOW, psnr, squared_error, ssim_map
from vlarft.eval.statistics import DRAWS, Estimate, bootstrap

METHODS = ("world_model", "swapped", "copy", "tokenizer")
REGIONS = ("all", "moving")
LABELS = {
    "world_model": "world model",
    "swapped": "swapped actions",
    "copy": "copy of given frame",
    "tokenizer": "tokenizer, ceiling",
}
OVER_COPY_DB = 3.0  # over moving pixels at the last frame: what "listens to actions" asks for
OVER_SWAPPED_DB = 1.0


@dataclass(frozen=True, slots=True)
class Comparison:
    """PSNR of the world model minus that of another method, at one frame.

    Attributes:
        against: the other method.
        region: "all" or "moving" pixels.
        frame: 1..T.
        difference: dB, mean over windows of the difference of per-window PSNR.
        pooled: dB, difference of the PSNR of the error pooled over windows.
    """

    against: str
    region: str
    frame: int
    difference: Estimate
    pooled: Estimate

    def to_dict(self) -> dict[str, Any]:
        """As written to `summary.json`."""
        return {
            "against": self.against,
            "region": self.region,
            "frame": self.frame,
            "difference": self.difference.to_dict(),
            "pooled": self.pooled.to_dict(),
        }


@dataclass(frozen=True, slots=True)
class WorldModelReport:
    """Result of `evaluate_world_model`.

    Attributes:
        windows: W, validation windows.
        moving_windows: windows with at least one moving pixel; only they enter the "moving" rows.
        episodes: number of episodes they come from.
        frames: T.
        metric: network of LPIPS, e.g. "lpips-alex", or None when LPIPS was left out.
        quality: `quality[method][region][figure]` is a list of T values; figures are `psnr` (dB,
            mean of per-window PSNR), `psnr_pooled` (dB, PSNR of the mean error), `ssim` and
            `lpips`.
        comparisons: paired differences at the last frame with intervals.
        sampling: options of the imagination.
    """

    windows: int
    moving_windows: int
    episodes: int
    frames: int
    metric: str | None
    quality: dict[str, dict[str, dict[str, list[float]]]]
    comparisons: list[Comparison]
    sampling: dict[str, Any]

    def comparison(self, against: str, region: str) -> Comparison:
        """The comparison with a method over a region."""
        return next(c for c in self.comparisons if (c.against, c.region) == (against, region))

    @property
    def listens_to_actions(self) -> bool:
        """Moving pixels, last frame: 3 dB over copying, 1 dB over swapped actions, without 0."""
        copy, swapped = (self.comparison(m, "moving").difference for m in ("copy", "swapped"))
        return (
            copy.value >= OVER_COPY_DB
            and copy.interval[0] > 0
            and swapped.value >= OVER_SWAPPED_DB
            and swapped.interval[0] > 0
        )

    @property
    def not_below_copying(self) -> bool:
        """All pixels, last frame: PSNR at least that of copying the given frame."""
        return self.comparison("copy", "all").difference.value >= 0

    def flat(self) -> dict[str, float]:
        """Figures to watch during training, at the last frame; names as in `docs/metrics.md`."""
        figures = {
            f"{figure}_{region}_{method}": self.quality[method][region][figure][-1]
            for figure in ("psnr", "ssim", "lpips")[: 3 if self.metric else 2]
            for region in REGIONS
            for method in METHODS
        }
        for c in self.comparisons:
            figures[f"psnr_{c.region}_over_{c.against}"] = c.difference.value
        return figures

    def to_dict(self) -> dict[str, Any]:
        """As written to `summary.json`."""
        return {
            "kind": "world-model",
            "windows": self.windows,
            "moving_windows": self.moving_windows,
            "episodes": self.episodes,
            "frames": self.frames,
            "metric": self.metric,
            "sampling": self.sampling,
            "quality": self.quality,
            "comparisons": [c.to_dict() for c in self.comparisons],
            "listens_to_actions": self.listens_to_actions,
            "not_below_copying": self.not_below_copying,
        }

    def table(self) -> Table:
        """Methods by figures at the last frame."""
        table = Table(title=f"Imagination quality at frame {self.frames}, all and moving pixels")
        table.add_column("method", no_wrap=True)
        for region in ("all", "moving"):
            for figure in ("PSNR dB", "SSIM", "LPIPS")[: 3 if self.metric else 2]:
                table.add_column(f"{region}\n{figure}", justify="right", no_wrap=True)
        for method in METHODS:
            cells = [LABELS[method]]
            for region in REGIONS:
                figures = self.quality[method][region]
                cells += [f"{figures['psnr'][-1]:.2f}", f"{figures['ssim'][-1]:.3f}"]
                cells += [f"{figures['lpips'][-1]:.4f}"] if self.metric else []
            table.add_row(*cells)
        return table

    def lines(self) -> list[str]:
        """All frames' means and the comparisons in words, one a line."""
        words = [
            f"{c.region} pixels, frame {c.frame}: world model {c.difference.value:+.2f} dB against "
            f"{LABELS[c.against]} (95% interval {c.difference.interval[0]:+.2f} to "
            f"{c.difference.interval[1]:+.2f}; pooled {c.pooled.value:+.2f})"
            for c in self.comparisons
        ]
        verdict = (
            "listens to its actions"
            if self.listens_to_actions
            else "does not listen to its actions enough"
        )
        return [
            f"all pixels, mean over frames 1 to {self.frames}: {all_frames(self.quality)}",
            *words,
            f"The world model {verdict} (asked: {OVER_COPY_DB:g} dB over copying and "
            f"{OVER_SWAPPED_DB:g} dB over swapped actions, moving pixels).",
        ]


def all_frames(quality: Mapping[str, Any]) -> str:
    """World model and ceiling in words: means of a report's `quality` over frames, all pixels."""

    def words(method: str) -> str:
        figures = quality[method]["all"]
        return (
            f"{LABELS[method]} {fmean(figures['psnr']):.2f} dB, SSIM {fmean(figures['ssim']):.3f}"
        )

    return "; ".join(map(words, ("world_model", "tokenizer")))


def swapped_partners(episode: Tensor, start: Tensor) -> Tensor:
    """For each window the one whose actions it receives: a permutation between episodes.

    Windows are ordered by (episode, start) and shifted in a circle. Among the shifts that give
    every window another episode, the one is taken whose partners are farthest apart in time; the
    smallest on ties.

    Args:
        episode: int64 [W], episode of each window.
        start: int64 [W], start of each window in its episode.

    Returns:
        int64 [W], positions 0..W-1, each once.

    Raises:
        DataError: one episode holds more than half of the windows.
    """
    count = len(episode)
    largest = int(torch.unique(episode, return_counts=True)[1].max())
    if 2 * largest > count:
        raise DataError(
            f"one episode holds {largest} of {count} windows, so actions cannot be swapped between "
            "episodes; "
            "evaluate windows of at least 2 episodes, none with more than half of them"
        )
    order = sorted(range(count), key=lambda i: (int(episode[i]), int(start[i]), i))
    sorted_start = start[torch.tensor(order)].double()
    shifts = range(largest, count - largest + 1)
    best = max(
        shifts, key=lambda s: (float((sorted_start - sorted_start.roll(-s)).abs().sum()), -s)
    )
    partner = torch.empty(count, dtype=torch.int64)
    for place, window in enumerate(order):
        partner[window] = order[(place + best) % count]
    return partner


def check_windows(windows: Windows, indices: Sequence[int] | Tensor) -> None:
    """Refuse windows that `evaluate_world_model` cannot judge, without imagining anything.

    Args:
        windows: as there.
        indices: as there.

    Raises:
        DataError: actions cannot be swapped between episodes, or nothing moves in any window.
    """
    numbers = torch.as_tensor(indices, dtype=torch.int64).cpu()
    swapped_partners(windows.episode[numbers], windows.start[numbers])
    if not any(moving_mask(windows.batch(part).frames).any() for part in numbers.split(16)):
        raise DataError("nothing moves in any of these windows; evaluate other windows")


@torch.no_grad()
def evaluate_world_model(
    engine: RolloutEngine,
    windows: Windows,
    indices: Sequence[int] | Tensor,
    sampling: Sampling | None = None,
    *,
    batch: int = 16,
    perceptual: bool = True,
    draws: int = DRAWS,
    progress: Callable[[int, int], None] | None = None,
) -> WorldModelReport:
    """Compare imaginations with recorded windows.

    Args:
        engine: the world model and the LPIPS network.
        windows: validation windows; their frames have the engine's resolution.
        indices: W window numbers, of at least two episodes.
        sampling: options of the imagination; default `Sampling()`.
        batch: windows imagined at once.
        perceptual: also compute LPIPS; off for a quick look during training.
        draws: bootstrap draws of the intervals.
        progress: called with (windows done, W) after each batch.

    Raises:
        DataError: windows of one episode only, or nothing moves in any of them.
    """
    sampling = sampling or Sampling()
    numbers = torch.as_tensor(indices, dtype=torch.int64).cpu()
    check_windows(windows, numbers)
    episode, start = windows.episode[numbers], windows.start[numbers]
    donors = numbers[swapped_partners(episode, start)]
    parts: list[dict[str, Tensor]] = []
    done = 0
    for chosen, donor in zip(numbers.split(batch), donors.split(batch), strict=True):
        parts.append(_measure(engine, windows, chosen, donor, sampling, perceptual))
        done += len(chosen)
        if progress:
            progress(done, len(numbers))
    columns = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    return _summarise(columns, episode, sampling, engine.metric if perceptual else None, draws)


def _measure(
    engine: RolloutEngine,
    windows: Windows,
    chosen: Tensor,
    donor: Tensor,
    sampling: Sampling,
    perceptual: bool,
) -> dict[str, Tensor]:
    """Errors of one batch: float64 [B, method, region, T], and pixel counts [B, region]."""
    recording = windows.batch(chosen)
    given, mask = recording.frames[:, 0], moving_mask(recording.frames)
    scenes = engine.encode(given)
    pairs = torch.stack([recording.actions, windows.batch(donor).actions], 1)  # expert, swapped
    imagined = engine.imagine(scenes, pairs, sampling)
    pixels = recording.frames.permute(0, 1, 4, 2, 3).float() / 255
    _, tokens = engine.world.tokenizer.tokenize(pixels.to(engine.device))
    decoded = engine.decode(scenes, torch.cat([imagined.tokens, tokens[:, None]], 1)).float().cpu()
    recorded = pixels[:, 1:]
    copied = pixels[:, :1].expand_as(recorded)
    predicted = torch.stack([decoded[:, 0], decoded[:, 1], copied, decoded[:, 2]], 1)  # as METHODS

    reference = recorded[:, None].expand_as(predicted)
    moving = mask[:, None, None]  # [B, 1, 1, H, W]
    similarity = ssim_map(predicted.flatten(0, 2), reference.flatten(0, 2)).double()
    similarity = similarity.unflatten(0, predicted.shape[:3])
    edge = SSIM_WINDOW // 2
    inside = similarity[..., edge:-edge, edge:-edge].mean((-2, -1))
    moving_count = mask.sum((-2, -1)).double()
    over_moving = (similarity * moving).sum((-2, -1)) / moving_count.clamp_min(1)[:, None, None]
    everything = torch.ones_like(moving)
    results = {
        "error": torch.stack(
            [squared_error(predicted, reference, m) for m in (everything, moving)], 2
        ),
        "pixels": torch.stack([torch.full_like(moving_count, mask[0].numel()), moving_count], 1),
        "ssim": torch.stack([inside, over_moving], 2),
    }
    if perceptual:
        # Still pixels are taken from the recording, so that only moving ones can differ.
        pasted = torch.where(moving[:, :, :, None], predicted, reference)
        results["lpips"] = torch.stack(
            [
                engine.compare(frames, recorded).perceptual.double().cpu()
                for frames in (predicted, pasted)
            ],
            2,
        )
    return results


def _summarise(
    columns: dict[str, Tensor], episode: Tensor, sampling: Sampling, metric: str | None, draws: int
) -> WorldModelReport:
    error, pixels = columns["error"], columns["pixels"]
    moves = pixels[:, 1] > 0
    rows = {"all": torch.ones_like(moves), "moving": moves}
    frames = error.shape[-1]
    values = 3 * pixels.clamp_min(1)[:, None, :, None]
    per_window = psnr(error / values)  # [W, method, region, T]

    quality: dict[str, dict[str, dict[str, list[float]]]] = {}
    for m, method in enumerate(METHODS):
        quality[method] = {}
        for r, region in enumerate(REGIONS):
            kept = rows[region]
            pooled = error[kept, m, r].sum(0) / (3 * pixels[kept, r].sum())
            figures = {
                "psnr": per_window[kept, m, r].mean(0),
                "psnr_pooled": psnr(pooled),
                "ssim": columns["ssim"][kept, m, r].mean(0),
            }
            if metric:
                figures["lpips"] = columns["lpips"][kept, m, r].mean(0)
            quality[method][region] = {name: value.tolist() for name, value in figures.items()}

    def compare(against: str, region: str) -> Comparison:
        a, b, r = METHODS.index("world_model"), METHODS.index(against), REGIONS.index(region)
        kept = rows[region]
        differences = per_window[kept, a, r, -1] - per_window[kept, b, r, -1]
        errors_a, errors_b = error[kept, a, r, -1], error[kept, b, r, -1]
        counts = 3 * pixels[kept, r]

        def mean(weights: Tensor) -> Tensor:
            return (weights * differences).sum(1) / weights.sum(1)

        def pooled(weights: Tensor) -> Tensor:
            total = weights @ counts
            return psnr(weights @ errors_a / total) - psnr(weights @ errors_b / total)

        return Comparison(
            against,
            region,
            frames,
            bootstrap(mean, episode[kept], draws=draws),
            bootstrap(pooled, episode[kept], draws=draws),
        )

    return WorldModelReport(
        windows=len(moves),
        moving_windows=int(moves.sum()),
        episodes=len(torch.unique(episode)),
        frames=frames,
        metric=metric,
        quality=quality,
        comparisons=[
            compare("copy", "moving"),
            compare("swapped", "moving"),
            compare("copy", "all"),
        ],
        sampling={
            "seed": sampling.seed,
            "temperature": sampling.temperature,
            "top_k": sampling.top_k,
            "top_p": sampling.top_p,
            "noise": sampling.noise,
        },
    )
