"""Does the reward follow what LIBERO's simulator does with the same actions?

A window's action chunks, the expert's first, are executed from its recorded state. Within a group,
the imagined distance should order them as the simulator's own differences to the expert do.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vlarft.data.libero import Episode, find_files, open_libero, read_floats, task_and_instruction
from vlarft.data.windows import Windows
from vlarft.engine import RolloutEngine
from vlarft.errors import DataError, SimulatorError
from vlarft.eval.statistics import Estimate, mean_interval, rank_correlation
from vlarft.libero.parallel import run_by_task
from vlarft.libero.remote import RemoteSimulator, ask, choose_renderer
from vlarft.libero.scene import Float32Array, Float64Array
from vlarft.rft.config import RewardConfig
from vlarft.rft.rewards import rollout_distance

CAMERA = "agentview"
LEAST = 1e-3  # m: smaller differences of positions count as none
SIMULATED = 0.3  # rank correlation that the verdict asks for; why: docs/rft.md


@dataclass(frozen=True, slots=True)
class Executed:
    """What the simulator did with M chunks of each of W windows, the expert's first.

    Attributes:
        frames: uint8 [W,M,F,H,W,3], after some numbers of actions, the last of them T.
        position: of the grip after the last action, float64 [W,M,3] in m.
        target: of the object to pick up, likewise.
        solved: whether the task was solved then, bool [W,M].
    """

    frames: Tensor
    position: Tensor
    target: Tensor
    solved: Tensor


@dataclass(frozen=True, slots=True)
class Agreement:
    """How groups are ordered by the imagined distance, and by one thing that the simulator did.

    Attributes:
        name: of the simulator's difference to the expert.
        reward: Spearman's correlation within groups, mean over groups; None: groups of fewer than
            two episodes differ.
        actions: the same of the actions' own error instead of the imagined distance.
        frames: the same of the distance of the simulator's own frames: a perfect world model.
        tokenizer: the same of those frames as the tokenizer shows them: a perfect transformer.
        groups: in which the difference differs; the others are left out.
    """

    name: str
    reward: Estimate | None
    actions: Estimate | None
    frames: Estimate | None
    tokenizer: Estimate | None
    groups: int

    def to_dict(self) -> dict[str, Any]:
        """As written to `summary.json`."""
        return {
            "name": self.name,
            "reward": self.reward and self.reward.to_dict(),
            "actions": self.actions and self.actions.to_dict(),
            "frames": self.frames and self.frames.to_dict(),
            "tokenizer": self.tokenizer and self.tokenizer.to_dict(),
            "groups": self.groups,
        }


@dataclass(frozen=True, slots=True)
class Simulated:
    """The reward against the simulator.

    Attributes:
        agreements: the one that is judged first.
        windows: W, groups executed.
        replayed: mean absolute difference of the expert's executed last frame to the recorded one,
            pixels in [0, 1]; far from 0, simulator and recording are not the same.
    """

    agreements: list[Agreement]
    windows: int
    replayed: float

    def checks(self) -> list[tuple[bool, str]]:
        """Whether the reward orders groups as the simulator does."""
        judged = self.agreements[0]
        return [
            (
                judged.reward is not None and judged.reward.interval[0] > SIMULATED,
                f"rank correlation with the simulator's {_words(judged)} (asked: above "
                f"{SIMULATED:g})",
            )
        ]

    def lines(self) -> list[str]:
        """What is shown and not judged."""
        words = [f"rank correlation with the simulator's {_words(a)}" for a in self.agreements[1:]]
        return [*words, f"replayed experts differ by {self.replayed:.5f} from their recordings"]

    def to_dict(self) -> dict[str, Any]:
        """As written to `summary.json`."""
        return {
            "agreements": [a.to_dict() for a in self.agreements],
            "windows": self.windows,
            "replayed": self.replayed,
        }


def agree(
    engine: RolloutEngine,
    executed: Executed,
    recorded: tuple[Tensor, Tensor],
    distance: Tensor,
    error: Tensor,
    episode: Tensor,
    after: Sequence[int],
) -> Simulated:
    """Compare the order within groups.

    Args:
        engine: has the metric.
        executed: of M = 1 + N chunks.
        recorded: first and last frames of the windows, uint8 [W,H,W,3] each.
        distance: imagined distance [W,N].
        error: of the actions [W,N].
        episode: int [W].
        after: numbers of actions of the executed frames.
    """
    first, end = recorded
    frames = _frame_distance(engine, executed.frames)
    shown = _frame_distance(engine, _through_tokenizer(engine, first, executed.frames))
    values = (distance, error, frames.mean(2), shown.mean(2))
    positions = {
        "end effector": executed.position,
        "displacement of the target": executed.target,
    }
    found = {
        f"frames after {count} actions": frames[..., at]
        for at, count in reversed(list(enumerate(after)))
    }
    for name, place in positions.items():
        found[name] = ((place[:, 1:] - place[:, :1]).norm(dim=2) / LEAST).round()
    found["success"] = (executed.solved[:, 1:] != executed.solved[:, :1]).double()
    last = executed.frames[:, 0, -1].int() - end.int()
    return Simulated(
        [_agreement(name, d, values, episode) for name, d in found.items()],
        len(episode),
        float(last.abs().double().mean() / 255),
    )


def _agreement(
    name: str, difference: Tensor, values: Sequence[Tensor], episode: Tensor
) -> Agreement:
    differs = difference.amax(1) > difference.amin(1)
    kept = episode[differs]
    if len(kept.unique()) < 2:
        return Agreement(name, None, None, None, None, len(kept))
    reward, actions, frames, tokenizer = (
        mean_interval(rank_correlation(value[differs], difference[differs]), kept)
        for value in values
    )
    return Agreement(name, reward, actions, frames, tokenizer, len(kept))


@torch.no_grad()
def _through_tokenizer(engine: RolloutEngine, first: Tensor, frames: Tensor) -> Tensor:
    """What the tokenizer shows of frames [W,M,F,H,W,3] that follow the `first` [W,H,W,3]."""
    tokenizer, shown = engine.world.tokenizer, []
    for given, group in zip(first, frames, strict=True):  # one clip, whose context is encoded once
        clip = torch.cat([given[None], group.flatten(0, 1)]).permute(0, 3, 1, 2).float() / 255
        out = tokenizer.detokenize(*tokenizer.tokenize(clip[None].to(engine.device)))[0]
        pixels = (out.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu()
        shown.append(pixels.reshape(group.shape))
    return torch.stack(shown)


def _frame_distance(engine: RolloutEngine, frames: Tensor) -> Tensor:
    """The reward's distance [W,N,F] of executed frames to the expert's, as for imagined ones."""
    parts = []
    for group in frames.permute(0, 1, 2, 5, 3, 4).split(1):
        pixels = group.float() / 255
        d = engine.compare(pixels[:, 1:].to(engine.device), pixels[:, 0].to(engine.device))
        by_frame = (d.l1[..., None], d.perceptual[..., None])
        parts.append(rollout_distance(*by_frame, RewardConfig()).double().cpu())
    return torch.cat(parts)


def _words(agreement: Agreement) -> str:
    found = (agreement.reward, agreement.actions, agreement.frames, agreement.tokenizer)
    if not all(found):
        return f"{agreement.name}: differs in {agreement.groups} groups, too few"
    reward, actions, frames, tokenizer = (
        f"{e.value:.2f} ({e.interval[0]:.2f} to {e.interval[1]:.2f})" for e in found if e
    )
    return (
        f"{agreement.name}: {reward} in {agreement.groups} groups; of the actions' own error "
        f"{actions}, of the simulator's frames {frames}, as the tokenizer shows them {tokenizer}"
    )


@dataclass(frozen=True, slots=True)
class _Item:
    """A window to execute; `task` is an index into the tasks that are needed."""

    task: int
    row: int


@dataclass(frozen=True, slots=True)
class _Recording:
    """An episode's place in the simulator: `states` [L+1, S] of a task of a suite."""

    suite: str
    task: int
    states: Float64Array


class Simulations:
    """Executes chunks from the recorded states of some windows.

    Args:
        windows: recorded windows, drawn by `agentview`.
        indices: W window numbers.
        states: folder or file of recorded states, for episodes whose own files hold none.
        python: interpreter with LIBERO; None is this one.
        jobs: simulators at a time.

    Raises:
        DataError: states are missing, or are not those of the episodes.
        BackendError: LIBERO or OpenGL is not available, or its MuJoCo breaks tasks.
    """

    def __init__(
        self,
        windows: Windows,
        indices: Sequence[int] | Tensor,
        *,
        states: Path | None = None,
        python: Path | None = None,
        jobs: int = 1,
    ) -> None:
        numbers = torch.as_tensor(indices, dtype=torch.int64).tolist()
        places = [(int(windows.episode[n]), int(windows.start[n])) for n in numbers]
        files = _files_by_task(states) if states else {}
        known = {
            e: _read_recording(windows.episodes[e], files if states else None)
            for e in sorted({e for e, _ in places})
        }
        self._tasks = sorted({(r.suite, r.task) for r in known.values()})
        self._states = [known[e].states[start] for e, start in places]
        self._gripper: list[Float32Array] = [
            windows.episodes[e].actions[:start, -1] for e, start in places
        ]
        self._items = [
            _Item(self._tasks.index((known[e].suite, known[e].task)), row)
            for row, (e, _) in enumerate(places)
        ]
        self._size, self._python, self._jobs = windows.resolution[0], python, jobs
        self.after = (windows.frames // 2, windows.frames)
        ask("versions", python)
        self._renderer, _ = choose_renderer(python)

    def run(self, actions: Tensor, progress: Callable[[int, int], None] | None = None) -> Executed:
        """Execute chunks [W,M,T,A] in raw units, the expert's first.

        Args:
            actions: of every window.
            progress: called with (windows done, windows).

        Raises:
            SimulatorError: a simulator failed; names the window.
        """
        done: dict[int, list[dict[str, Any]]] = {}

        def execute(simulator: RemoteSimulator, item: _Item) -> None:
            done[item.row] = [
                simulator.branch(
                    self._states[item.row], self._gripper[item.row], chunk, CAMERA, self.after
                )
                for chunk in actions[item.row].numpy()
            ]
            if progress:
                progress(len(done), len(self._items))

        def failed(item: _Item, error: SimulatorError) -> None:
            raise SimulatorError(f"window {item.row} of those executed: {error}") from error

        run_by_task(self._items, self._jobs, self._open, execute, failed)

        def gather(key: str) -> Tensor:
            return torch.from_numpy(
                np.array([[b[key] for b in done[row]] for row in range(len(self._items))])
            )

        # Turned by 180 degrees, as the reader turns every frame.
        frames = gather("frames").flip(3, 4)
        return Executed(frames, gather("position"), gather("target"), gather("solved"))

    def _open(self, task: int) -> RemoteSimulator:
        suite, number = self._tasks[task]
        return RemoteSimulator(suite, number, self._size, self._python, self._renderer)


def _files_by_task(states: Path) -> dict[str, Path]:
    found = {}
    for file in find_files(states):
        with open_libero(file) as handle:
            found[task_and_instruction(file, handle["data"])[0]] = file
    return found


def _read_recording(episode: Episode, files: dict[str, Path] | None) -> _Recording:
    """States of an episode, of its own file or, when `files` are given, of its task's."""
    file = episode.file if files is None else files.get(episode.task)
    if file is None:
        raise DataError(f"--states: no file of task {episode.task}; name recordings of this task")
    with open_libero(file) as handle:
        data = handle["data"]
        if f"{episode.name}/states" not in data or "suite" not in data.attrs:
            raise DataError(
                f"{file}: key 'data/{episode.name}/states' or attribute 'data.suite' is missing; "
                "name the folder of the recorded states with --states"
            )
        states = read_floats(file, data, f"{episode.name}/states").astype(np.float64)
        actions = read_floats(file, data, f"{episode.name}/actions")
        if len(states) != episode.steps + 1 or not np.array_equal(
            actions.astype(np.float32), episode.actions
        ):
            raise DataError(
                f"{file}: 'data/{episode.name}' is another recording than that of {episode.file}"
            )
        return _Recording(str(data.attrs["suite"]), int(data.attrs["task_id"]), states)
