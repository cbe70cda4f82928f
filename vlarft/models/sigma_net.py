"""Sigma Net: the learned standard deviation of each flow step (spec 4.4)."""

import math

import torch
from torch import Tensor, nn

from vlarft.models.flow_head import Conditions, DiT


class StdPredictor(nn.Module):
    """Holder of the DiT under the official key prefix."""

    def __init__(self, dit: DiT) -> None:
        super().__init__()
        self.dit = dit


class SigmaNet(nn.Module):
    """log sigma = log min + (log max - log min) * (tanh(DiT) + 1) / 2, in fp32.

    The zero-initialised output gives sigma = sqrt(min * max) everywhere: 0.12649 for 0.08 and 0.2.
    Keys: `log_std_min`, `log_std_max`, `std_predictor.dit.*` (201 at paper size).

    Args:
        dit: the network.
        sigma_min: smallest standard deviation of a step, normalised action units.
        sigma_max: largest.
    """

    log_std_min: Tensor
    log_std_max: Tensor

    def __init__(self, dit: DiT, sigma_min: float, sigma_max: float) -> None:
        super().__init__()
        self.std_predictor = StdPredictor(dit)
        self.register_buffer("log_std_min", torch.tensor(math.log(sigma_min)))
        self.register_buffer("log_std_max", torch.tensor(math.log(sigma_max)))

    def set_bounds(self, sigma_min: float, sigma_max: float) -> None:
        """Change the range of the standard deviation."""
        self.log_std_min.fill_(math.log(sigma_min))
        self.log_std_max.fill_(math.log(sigma_max))

    @property
    def dit(self) -> DiT:
        """The network itself."""
        return self.std_predictor.dit

    def forward(self, projected: Tensor, time: Tensor, conditions: Conditions) -> Tensor:
        """Log standard deviation [P, n, T, A]; arguments as `DiT.forward`."""
        raw = self.dit(projected, time, conditions).float()
        low, high = self.log_std_min.float(), self.log_std_max.float()
        return low + (high - low) * (torch.tanh(raw) + 1) / 2
