"""What reinforcement fine-tuning needs of a policy; flow matching is one implementation."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, Self, runtime_checkable

import torch
from torch import Tensor

from vlarft.errors import DtypeError, ShapeError

Indices = Sequence[int] | Tensor


@dataclass(frozen=True, eq=False)
class Observation:
    """What a policy sees of P scenes (spec 11.4).

    Attributes:
        image: uint8 [P, H, W, 3], turned as `statistics.json` says.
        proprioception: float32 [P, 8], raw: position (3, m), axis-angle (3, rad), fingers (2, m).
        instruction: P texts.

    Raises:
        ShapeError: sizes disagree.
        DtypeError: the image is not uint8 or proprioception is not floating point.
    """

    image: Tensor
    proprioception: Tensor
    instruction: list[str]

    def __post_init__(self) -> None:
        scenes = len(self.instruction)
        image, state = self.image, self.proprioception
        if image.dim() != 4 or image.shape[0] != scenes or image.shape[-1] != 3 or not scenes:
            raise ShapeError(
                f"observation.image: {list(image.shape)} with {scenes} instructions; "
                f"expected [P, H, W, 3] with one instruction a scene, at least one"
            )
        if state.dim() != 2 or state.shape[0] != scenes:
            raise ShapeError(
                f"observation.proprioception: {list(state.shape)}; expected [{scenes}, 8]"
            )
        if image.dtype != torch.uint8:
            raise DtypeError(f"observation.image: {image.dtype}; expected uint8 in 0..255")
        if not state.is_floating_point():
            raise DtypeError(f"observation.proprioception: {state.dtype}; expected float32")

    def __len__(self) -> int:
        return len(self.instruction)

    def select(self, indices: Indices) -> "Observation":
        """The scenes at `indices`, in that order."""
        chosen = as_indices(indices)
        return Observation(
            self.image[chosen.to(self.image.device)],
            self.proprioception[chosen.to(self.proprioception.device)],
            [self.instruction[i] for i in chosen.tolist()],
        )


@dataclass(frozen=True, eq=False)
class Share:
    """Which scenes of a larger batch an observation holds, when processes divide the batch.

    Noise is drawn for the whole batch and cut, so a scene's does not depend on the division.

    Attributes:
        rows: int64 [P], their places in the batch.
        total: scenes of the batch.
    """

    rows: Tensor
    total: int


class Trace(Protocol):
    """What a policy remembers of a proposal in order to score it again."""

    def select(self, indices: Indices) -> Self:
        """The scenes at `indices`, in that order."""
        ...


@dataclass(frozen=True, eq=False)
class Proposal:
    """n action chunks for each of P scenes.

    Attributes:
        actions: float32 [P, n, T, A], raw LIBERO units, the gripper continuous (spec 11.5).
        log_prob: float32 [P, n, T, A] of the continuous sample, nats.
        trace: the policy's own record.
        mean: float32 [P, T, A], raw units, the chunk that the noise of all n is around, which is
            what `act` gives without a generator; None unless they start at the mean.
    """

    actions: Tensor
    log_prob: Tensor
    trace: Trace
    mean: Tensor | None = None

    def select(self, indices: Indices) -> "Proposal":
        """The scenes at `indices`: a mini-batch that keeps groups whole."""
        chosen = as_indices(indices).to(self.actions.device)
        return Proposal(
            self.actions[chosen],
            self.log_prob[chosen],
            self.trace.select(chosen),
            None if self.mean is None else self.mean[chosen],
        )


@dataclass(frozen=True, eq=False)
class LogProb:
    """Score of a proposal: `log_prob` and `entropy`, float32 [P, n, T, A], nats, differentiable."""

    log_prob: Tensor
    entropy: Tensor


Start = Literal["independent", "shared", "mean"]


@runtime_checkable
class Policy(Protocol):
    """A stochastic policy over chunks of T actions."""

    def sample(
        self,
        observation: Observation,
        n: int,
        generator: torch.Generator,
        *,
        start: Start = "independent",
        share: Share | None = None,
    ) -> Proposal:
        """Draw n chunks a scene, without gradients.

        `start` is of what the log-probability leaves out, the start of a generative policy: drawn
        for each chunk, drawn once a scene ("shared"), or at its mean as in `act` without a
        generator. With the last two a group differs by scored noise alone. It is passed where it is
        not "independent", so a policy without it can be tuned with that.
        `share` is passed only when several processes divide the scenes of a step.
        """
        ...

    def log_prob(self, observation: Observation, proposal: Proposal) -> LogProb:
        """Score a proposal; unchanged weights give exactly `proposal.log_prob`."""
        ...

    def act(self, observation: Observation, generator: torch.Generator | None = None) -> Tensor:
        """The chunk of each scene that a robot would execute, float32 [P, T, A], raw units.

        The generator draws the start of a generative policy; None takes its mean. Nothing else is
        random.
        """
        ...


def as_indices(indices: Indices) -> Tensor:
    """Scene indices as an int64 vector."""
    if isinstance(indices, Tensor):
        return indices.long()
    return torch.tensor(list(indices), dtype=torch.long)
