"""What fine-tuning needs of a policy beyond sampling and scoring."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from vlarft.errors import ConfigError
from vlarft.models.policy import Observation, Policy, Share
from vlarft.rft.config import RFTConfig


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


def as_module(policy: TrainablePolicy) -> nn.Module:
    """The policy as the `nn.Module` that training needs.

    Raises:
        ConfigError: it is none.
    """
    if not isinstance(policy, nn.Module):
        raise ConfigError(f"policy is {type(policy).__name__}; training needs a torch nn.Module")
    return policy


def sample_options(policy: TrainablePolicy, config: RFTConfig) -> dict[str, Any]:
    """What `policy.sample` is given beside its three arguments; only what is asked for.

    Raises:
        ConfigError: the policy draws a start for each rollout whatever it is asked for.
    """
    if config.start == "independent":
        return {}
    if not _takes(policy.sample, "start"):
        raise ConfigError(
            f"start = {config.start}, but {type(policy).__name__}.sample() takes no start; "
            "use start=independent, or give it that argument"
        )
    return {"start": config.start}


def require_share(policy: TrainablePolicy) -> None:
    """Refuse a policy that several processes cannot divide the scenes of a step for.

    Raises:
        ConfigError: its noise would depend on the division.
    """
    for function in (policy.sample, policy.flow_loss):
        if not _takes(function, "share"):
            raise ConfigError(
                f"several processes, but {type(policy).__name__}.{function.__name__}() takes no "
                "share, so noise would depend on their number; give it that argument, or use one"
            )


def _takes(function: Callable[..., Any], name: str) -> bool:
    accepted = inspect.signature(function).parameters.values()
    return any(p.name == name or p.kind is p.VAR_KEYWORD for p in accepted)
