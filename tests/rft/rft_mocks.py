"""A world of a few lines: distances are action differences, scenes are numbers."""

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor, nn

from vlarft.data.libero import Episode
from vlarft.data.windows import Windows
from vlarft.models.layout import Layout
from vlarft.models.policy import LogProb, Observation, Proposal, Share, Start
from vlarft.rft.randomness import seed_for

T, A, SIDE = 4, 7, 8


@dataclass
class MockScenes:
    context: Tensor
    first: Tensor
    keys: list[int]


@dataclass
class MockResult:
    l1: Tensor
    perceptual: Tensor
    stats: dict


class MockWorld(nn.Module):
    """What a run remembers of a world model: weights and a layout."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((3,), value))
        self.transformer = SimpleNamespace(device=torch.device("cpu"))
        self.layout = Layout(frames=T, action_low=(-1.0,) * A, action_high=(1.0,) * A)


class MockEngine:
    """Like `RolloutEngine`: an imagined frame is the running mean of the actions up to it."""

    metric, dtype, device = "lpips-alex", torch.float32, torch.device("cpu")
    cache_dtype = None

    def __init__(self, world: float = 1.0) -> None:
        self.world = MockWorld(world)
        self.encoded = 0
        self.rollouts = 0

    def encode(self, frames: Tensor, keys: Tensor | None = None) -> MockScenes:
        assert frames.dtype == torch.uint8
        assert keys is None or len(keys) == len(frames)
        self.encoded += len(frames)
        context = frames.flatten(1)[:, :6].long()
        noise_keys = range(len(frames)) if keys is None else keys
        return MockScenes(context, context[:, :2], [int(key) for key in noise_keys])

    def scenes_from_tokens(self, context: Tensor, first: Tensor, keys) -> MockScenes:
        return MockScenes(context, first, list(keys))

    def rollout(
        self,
        scenes,
        actions,
        expert_actions=None,
        sampling=None,
        *,
        reference=None,
        seeds,
        times=None,
    ) -> MockResult:
        self.rollouts += 1
        self.times = times
        assert len(scenes.context) == len(actions)
        imagined = self._imagine(actions)
        if sampling.noise == "independent":
            noise = [
                torch.randn(
                    imagined.shape[1:],
                    generator=torch.Generator().manual_seed(seed_for(seeds[0], key, "scene")),
                )
                for key in scenes.keys
            ]
            imagined = imagined + 0.05 * torch.stack(noise)
        if reference is None:
            target = self._imagine(expert_actions)[:, None]
        else:
            target = reference.mean((-3, -2, -1))[:, None, :, None]
        l1 = (imagined - target).abs().mean(-1)
        l1 = l1 if times is None else l1[..., times]
        return MockResult(l1, 0.5 * l1, {"frames": l1.numel(), "frames_deduplicated": 0})

    @staticmethod
    def _imagine(actions: Tensor) -> Tensor:
        steps = torch.arange(1, actions.shape[-2] + 1).float()
        return actions.cumsum(-2) / steps[:, None]


@dataclass(frozen=True)
class MockTrace:
    sample: Tensor

    def select(self, indices: Tensor) -> "MockTrace":
        return MockTrace(self.sample[indices])


def share_of(share: Share | None, scenes: int, generator, *shape: int) -> Tensor:
    """Normal noise of some scenes, cut from that of the whole batch."""
    if share is None:
        return torch.randn((scenes, *shape), generator=generator)
    return torch.randn((share.total, *shape), generator=generator)[share.rows]


class MockPolicy(nn.Module):
    """A Gaussian around a linear function of proprioception."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.head = nn.Linear(8, T * A)
            self.encoder = nn.Linear(8, 8)
        self.log_sigma = nn.Parameter(torch.full((T, A), -1.0))

    def _mean(self, observation: Observation) -> Tensor:
        return self.head(observation.proprioception).unflatten(-1, (T, A))

    def sample(
        self,
        observation: Observation,
        n: int,
        generator: torch.Generator,
        *,
        start: Start = "independent",
        share: Share | None = None,
    ) -> Proposal:
        self.start = start
        mean = self._mean(observation)[:, None]
        noise = share_of(share, len(observation), generator, n, T, A)
        chain = mean + self.log_sigma.exp() * noise
        proposal = Proposal(chain, torch.zeros_like(chain), MockTrace(chain))
        log_prob = self.log_prob(observation, proposal).log_prob
        executed = mean[:, 0].detach() if start == "mean" else None
        return Proposal(chain, log_prob, proposal.trace, executed)

    def log_prob(self, observation: Observation, proposal: Proposal) -> LogProb:
        normal = torch.distributions.Normal(self._mean(observation)[:, None], self.log_sigma.exp())
        x = proposal.trace.sample
        return LogProb(normal.log_prob(x), normal.entropy().expand_as(x))

    def act(self, observation: Observation, generator: torch.Generator | None = None) -> Tensor:
        mean = self._mean(observation).detach()
        return (
            mean if generator is None else mean + 0.1 * torch.randn(mean.shape, generator=generator)
        )

    def flow_loss(self, observation, actions, generator, context=None, share=None) -> Tensor:
        assert context is None  # this policy's traces carry none
        noise = share_of(share, len(actions), generator, *actions.shape[1:])
        return (self._mean(observation) + 0.1 * noise - actions).square().mean()

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        return {"head": list(self.head.parameters()), "sigma": [self.log_sigma]}

    def save_pretrained(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(self.state_dict(), folder / "policy.pt")


def make_episodes(count: int, seed: int, side: int = SIDE, steps: int = 10) -> list[Episode]:
    """Episodes whose actions are a fixed linear function of proprioception."""
    random = np.random.default_rng(seed)
    law = np.random.default_rng(99).normal(size=(8, A)) / 8
    episodes = []
    for number in range(count):
        proprioception = random.normal(size=(steps + 1, 8)).astype(np.float32)
        actions = np.tanh(proprioception[:-1] @ law).astype(np.float32)
        actions[:, 6] = np.where(random.random(steps) < 0.5, -1.0, 1.0)
        episodes.append(
            Episode(
                name=f"demo_{number}",
                file=Path(f"seed-{seed}.hdf5"),
                task="pick",
                instruction="pick up the soup" if number % 2 else "pick up the milk",
                kind="original",
                split="train",
                success=True,
                init_index=number,
                frames=random.integers(0, 256, (steps + 1, side, side, 3), dtype=np.uint8),
                actions=actions,
                proprioception=proprioception,
            )
        )
    return episodes


def make_windows(count: int = 4, seed: int = 0) -> Windows:
    return Windows(make_episodes(count, seed), frames=T)
