"""What fine-tuning needs of a policy beyond sampling and scoring."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from vlarft.models.policy import Observation, Policy, Share


class TrainablePolicy(Policy, Protocol):
    """A policy that can be fine-tuned; it is a torch `nn.Module` too, with float32 trained weights.

    The trace of its proposals may carry `context`: what a frozen encoder said about the scenes. The
    anchor takes it from there, so that the encoder runs once per scene and step.
    """

    def flow_loss(
        self,
        observation: Observation,
        actions: Tensor,
        generator: torch.Generator,
        context: Any = None,
        share: Share | None = None,
    ) -> Tensor:
        """Behaviour-cloning loss of expert actions [P, T, A], raw units; a scalar.

        `share`: as in `sample`.
        """
        ...

    def parameter_groups(self) -> Mapping[str, Sequence[nn.Parameter]]:
        """What fine-tuning trains, under the names "head" and "sigma"; all else stays frozen."""
        ...

    def save_pretrained(self, folder: Path) -> None:
        """Write the policy's folder."""
        ...
