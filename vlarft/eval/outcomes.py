"""Does the distance tell failed episodes from solved ones?

The reward compares with an expert from the same state, which a recorded failure does not have. So
the last frame of an episode is compared with the last frames of solved episodes of the same task: a
solved one should be nearer to them. The last frame is imagined from T actions earlier, or recorded.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vlarft.data.libero import Episode
from vlarft.data.windows import Windows
from vlarft.engine import RolloutEngine, Sampling
from vlarft.errors import DataError
from vlarft.eval.statistics import Estimate, episode_weights
from vlarft.rft.config import RewardConfig
from vlarft.rft.rewards import rollout_distance

IMAGINED = "imagined last frame"
CHANCE = 0.5


@dataclass(frozen=True, slots=True)
class Outcomes:
    """Solved against failed episodes by their distance to how solved ones end.

    Attributes:
        solved, failed: episodes that were compared.
        pairs: of a solved and a failed episode of the same task.
        areas: AUC by the frame that is compared: the share of pairs in which the solved episode is
            nearer. The first frame of the episode is a control: nothing has happened yet.
    """

    solved: int
    failed: int
    pairs: int
    areas: dict[str, Estimate]

    def checks(self) -> list[tuple[bool, str]]:
        """Whether imagined ends tell failures better than chance."""
        area = self.areas[IMAGINED]
        return [
            (
                area.interval[0] > CHANCE,
                f"{self.failed} failed against {self.solved} solved episodes, AUC of the "
                f"{IMAGINED}: {area} (asked: above {CHANCE:g})",
            )
        ]

    def lines(self) -> list[str]:
        """What is shown and not judged."""
        others = [f"{a} {name}" for name, a in self.areas.items() if name != IMAGINED]
        return [f"the same of other frames: {', '.join(others)}"]

    def to_dict(self) -> dict[str, Any]:
        """As written to `summary.json`."""
        return {
            "solved": self.solved,
            "failed": self.failed,
            "pairs": self.pairs,
            "areas": {name: area.to_dict() for name, area in self.areas.items()},
        }


@torch.no_grad()
def measure_outcomes(
    engine: RolloutEngine,
    episodes: Sequence[Episode],
    failures: Sequence[Episode],
    sampling: Sampling,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> Outcomes:
    """Compare the ends of solved and failed episodes.

    Args:
        engine: the world model and the metric.
        episodes: recorded; the solved ones are compared, each with the others of its task.
        failures: recorded, none solved.
        sampling: options of the imagination.
        progress: called with (tasks done, tasks).

    Raises:
        DataError: a failure is solved, or no task has a failure and two solved episodes.
    """
    if solved := next((e for e in failures if e.success), None):
        raise DataError(f"{solved.file}: '{solved.name}' is solved; --failures takes failed ones")
    by_task: dict[str, tuple[list[Episode], list[Episode]]] = {}
    for episode in (*episodes, *failures):
        if episode.steps >= engine.world.layout.frames:
            good, bad = by_task.setdefault(episode.task, ([], []))
            (good if episode.success else bad).append(episode)
    tasks = [pair for pair in by_task.values() if len(pair[0]) > 1 and pair[1]]
    if not tasks:
        raise DataError(
            "no task has a failure and two solved episodes; give recordings of the same tasks with "
            "--data and --failures"
        )
    found = []
    for done, (good, bad) in enumerate(tasks, start=1):
        found.append(_distances(engine, good, bad, sampling))
        if progress:
            progress(done, len(tasks))
    counts = [(len(good), len(bad)) for good, bad in tasks]
    return Outcomes(
        sum(good for good, _ in counts),
        sum(bad for _, bad in counts),
        sum(good * bad for good, bad in counts),
        {
            name: area_under_curve(
                [(d[name][:g], d[name][g:]) for d, (g, _) in zip(found, counts, strict=True)]
            )
            for name in found[0]
        },
    )


def area_under_curve(tasks: Sequence[tuple[Tensor, Tensor]]) -> Estimate:
    """Share of pairs of equal task in which the first is smaller, ties by half.

    The interval draws solved and failed episodes with replacement, each kind by itself.

    Args:
        tasks: distances of solved [S] and of failed [F] episodes of each task.
    """
    below = torch.block_diag(
        *((s[:, None] < f).double() + (s[:, None] == f).double() / 2 for s, f in tasks)
    )
    pairs = torch.block_diag(*(torch.ones(len(s), len(f)).double() for s, f in tasks))
    solved, failed = (torch.arange(size) for size in below.shape)

    def share(rows: Tensor, columns: Tensor) -> Tensor:
        count = (rows @ pairs * columns).sum(1)
        area: Tensor = (rows @ below * columns).sum(1) / count
        return area[count > 0]

    value = share(torch.ones(1, len(solved)).double(), torch.ones(1, len(failed)).double())
    drawn = share(episode_weights(solved, seed=0), episode_weights(failed, seed=1))
    low, high = torch.quantile(drawn, torch.tensor([0.025, 0.975]).double()).tolist()
    return Estimate(float(value), (low, high))


def _distances(
    engine: RolloutEngine, good: list[Episode], bad: list[Episode], sampling: Sampling
) -> dict[str, Tensor]:
    """Distance [E] of each episode to the nearest end of a solved one, by the frame compared."""
    length = engine.world.layout.frames
    everyone = [*good, *bad]
    last = Windows(everyone, length)
    ends = torch.tensor([e.steps - length for e in everyone])
    first = torch.cat([torch.zeros(1).long(), (ends + 1).cumsum(0)[:-1]])
    window = last.batch(first + ends)
    scenes = engine.encode(window.frames[:, 0])
    tokens = engine.imagine(scenes, window.actions[:, None], sampling).tokens
    imagined = engine.decode(scenes, tokens[:, :, -1:])[:, 0, 0].float()
    recorded = _pixels(window.frames[:, -1])
    compared = {
        IMAGINED: imagined,
        "recorded last frame": recorded,
        "frame it was imagined from": _pixels(window.frames[:, 0]),
        "first frame": _pixels(last.batch(first).frames[:, 0]),
    }
    goals = recorded[: len(good)]
    return {name: _nearest(engine, frames, goals) for name, frames in compared.items()}


def _pixels(frames: Tensor) -> Tensor:
    """uint8 [E,H,W,3] -> float [E,3,H,W] in [0, 1]."""
    return frames.permute(0, 3, 1, 2).float() / 255


def _nearest(engine: RolloutEngine, frames: Tensor, goals: Tensor) -> Tensor:
    """Distance of frames [E,3,H,W] to the nearest goal [G,3,H,W], never an episode's own."""
    rows = []
    for number, goal in enumerate(goals):
        reference = goal[None, None].to(engine.device)
        d = engine.compare(frames[None, :, None].to(engine.device), reference)
        distance = rollout_distance(d.l1, d.perceptual, RewardConfig())[0].double().cpu()
        distance[number] = torch.inf
        rows.append(distance)
    return torch.stack(rows).amin(0)
