"""Late adversarial term of the tokenizer: spectral norm, hinge loss, gradient penalty."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

GRADIENT_PENALTY = 10.0


class Discriminator(nn.Module):
    """Stack of strided spectral-norm convolutions; one score a patch.

    Args:
        depth: convolutions; every one but the last two halves the resolution down to 4 pixels.
        width: channels of the first.
        resolution: edge of the images, pixels.
    """

    def __init__(self, depth: int, width: int, resolution: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels, size = 3, resolution
        for i in range(depth - 1):
            stride = 2 if size > 4 else 1
            out = min(width * 2**i, 8 * width)
            layers += [
                spectral_norm(nn.Conv2d(channels, out, 4 if stride == 2 else 3, stride, 1)),
                nn.LeakyReLU(0.2),
            ]
            channels, size = out, size // stride
        layers.append(spectral_norm(nn.Conv2d(channels, 1, 3, 1, 1)))
        self.layers = nn.Sequential(*layers)

    def forward(self, images: Tensor) -> Tensor:
        """Images [B,3,H,W] in [0,1] -> scores [B,1,h,w]."""
        out: Tensor = self.layers(2 * images - 1)
        return out


class Adversary:
    """A discriminator with its optimiser and its two losses."""

    def __init__(
        self, resolution: int, depth: int, width: int, learning_rate: float, seed: int
    ) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.discriminator = Discriminator(depth, width, resolution)
        self.optimizer = torch.optim.AdamW(
            self.discriminator.parameters(), lr=learning_rate, weight_decay=0.0
        )

    def generator_loss(self, fake: Tensor) -> Tensor:
        """-mean D(fake): low when reconstructions are taken for real."""
        scores: Tensor = self.discriminator(fake.float())
        return -scores.mean()

    def update(self, real: Tensor, fake: Tensor) -> float:
        """One step of the discriminator: hinge loss and a gradient penalty on real images."""
        real = real.detach().float().requires_grad_(True)
        scores = self.discriminator(real)
        (gradient,) = torch.autograd.grad(scores.sum(), real, create_graph=True)
        penalty = gradient.square().flatten(1).sum(1).mean()
        hinge = (
            F.relu(1 - scores).mean() + F.relu(1 + self.discriminator(fake.detach().float())).mean()
        )
        loss = hinge + GRADIENT_PENALTY * penalty
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        return float(hinge.detach())

    def state(self) -> dict[str, Any]:
        """Everything to resume from."""
        return {
            "discriminator": self.discriminator.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Counterpart of `state`."""
        self.discriminator.load_state_dict(state["discriminator"])
        self.optimizer.load_state_dict(state["optimizer"])
