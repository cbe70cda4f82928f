"""What requests to one engine take: refused where they do not fit, learned from what they took."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from vlarft.engine import plan as planning
from vlarft.engine.native import Generator
from vlarft.engine.parts import Parts
from vlarft.engine.plan import Plan
from vlarft.engine.speculate import Shape, Speculation
from vlarft.engine.stats import peak_resident_bytes


class Planner:
    """Memory, speculation and predicted times of an engine's requests.

    Args:
        parts: networks and buffers.
        device: where they are.
        limit: bytes that the engine may hold, or None: most of what is free.
        outside: bytes of this process that are not the engine's.

    Attributes:
        size: sizes from which every plan follows.
    """

    def __init__(self, parts: Parts, device: torch.device, limit: int | None, outside: int) -> None:
        self.size = parts.footprint()
        self._parts, self._device = parts, device
        self._limit, self._outside = limit, outside
        self._rates: dict[str, float] = {}  # of the last rollout, seconds a row and frame
        weights = parts.weights
        self._speculation = (
            Speculation(weights.rates, self.size.suffix_row, weights.scenes_at_once)
            if isinstance(weights, Generator)
            else None
        )

    @property
    def memory_limit(self) -> int:
        """Bytes that the engine may hold, its weights included."""
        if self._limit is not None:
            return self._limit
        free = planning.free_memory(self._device)
        return free + self.size.weights + self._parts.held_bytes

    @property
    def encode_batch(self) -> int:
        """Frames to tokenise at a time."""
        return self._batch(self.size.encode_frame)

    @property
    def decode_batch(self) -> int:
        """Frames to render at a time."""
        return self._batch(self.size.decode_frame)

    @property
    def compare_batch(self) -> int:
        """Frames to compare at a time."""
        return self._batch(self.size.metric_work)

    def scenes_at_once(self, frames: int) -> int:
        """Scenes whose reference features, of `frames` frames, are held at once."""
        return planning.scenes_at_once(self.size, frames, self.memory_limit)

    def plan(
        self, scenes: int, rollouts: int, frames: int, expert: bool, kept: bool, speculate: str
    ) -> Plan:
        """What a rollout takes.

        Args:
            scenes: P.
            rollouts: N.
            frames: T.
            expert: whether an expert is imagined as well.
            kept: whether frames are kept.
            speculate: as in `Sampling`.

        Raises:
            PlanError: it does not fit; the message names the largest N or P that fits.
        """
        limit = self.memory_limit
        shape = self._shape(scenes, rollouts + int(expert), frames)
        width = 1
        guesses: tuple[str, ...] = ()
        if self._speculation is not None:
            width, guesses = self._speculation.choose(shape, speculate)

        def purposes(p: int, n: int) -> tuple[dict[str, int], int]:
            """Bytes of a rollout by purpose, and the work of imagining alone."""
            need = planning.bytes_by_purpose(self.size, p, n, frames, expert, kept, limit)
            some = self._shape(p, n + int(expert), frames)
            weights = self._parts.weights
            if not isinstance(weights, Generator):
                return need, self.size.imagine_work(some.rows, frames)
            own = weights.plan(some, width=width, guesses=guesses)
            imagining = own["work"]
            judged = planning.judge_work(self.size, p, some.rows, frames, limit)
            own["work"] += judged  # its buffers stay while frames are decoded
            need.update({k: v for k, v in own.items() if k != "weights"})
            return need, imagining

        planning.check_fits(lambda p, n: sum(purposes(p, n)[0].values()), scenes, rollouts, limit)
        need, imagining = purposes(scenes, rollouts)
        return Plan(
            scenes=scenes,
            rollouts=rollouts,
            frames=frames,
            bytes=need,
            imagine_bytes=imagining + sum(need[k] for k in planning.KEPT_WHILE_IMAGINING),
            limit=limit,
            kernel_path=self._parts.kernel_path,
            seconds=self._predicted(shape, width),
            width=width,
            guesses=guesses,
        )

    def learn(
        self,
        plan: Plan,
        expert: bool,
        seconds: Mapping[str, float],
        generated: Sequence[Mapping[str, Any]],
    ) -> None:
        """Take over what a rollout took.

        Args:
            plan: what it was planned to take.
            expert: whether an expert was imagined as well.
            seconds: by stage.
            generated: statistics of each noise seed's imagination.
        """
        shape = self._shape(plan.scenes, plan.rollouts + int(expert), plan.frames)
        draws = len(generated)
        self._rates = {
            stage: seconds[stage] / (draws * shape.rows * plan.frames)
            for stage in ("imagine", "decode", "compare")
        }
        if self._speculation is not None:
            self._speculation.learn(shape, seconds["imagine"] / draws, generated[-1])

    def peak_bytes(self, plan: Plan) -> int:
        """The most that the engine held: on a GPU since torch's peak was reset, else ever."""
        if self._device.type != "cuda":
            return peak_resident_bytes() - self._outside
        peak = torch.cuda.max_memory_allocated(self._device)
        weights = self._parts.weights
        if isinstance(weights, Generator):  # its memory is not torch's
            peak += weights.nbytes + weights.held_bytes + plan.bytes["prompt keys and values"]
        return int(peak)

    def _batch(self, frame_bytes: int) -> int:
        return planning.batch_size(frame_bytes, self._device.type, self.memory_limit)

    def _shape(self, scenes: int, members: int, frames: int) -> Shape:
        size = self.size
        return Shape(scenes, members, size.prompt, frames, size.action_dim, size.frame_tokens)

    def _predicted(self, shape: Shape, width: int) -> dict[str, float]:
        seconds = {stage: rate * shape.rows * shape.frames for stage, rate in self._rates.items()}
        if self._speculation is not None:
            seconds["imagine"] = self._speculation.seconds(shape, width)
        return seconds
