"""Pre-training of the place encoder: where are the things that an instruction names?"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlarft.data.scenes import PlacedScenes, SceneBatch
from vlarft.models.place_encoder import PLACES, PlaceNetwork
from vlarft.models.small_encoder import picture
from vlarft.train.loop import LoopConfig, step_generator

VALIDATION_SCENES = 512
NEAR = 0.02  # m, about as far as a grasp may miss
BEND = 0.1  # units of spread, where the loss turns from squared to absolute


class EncoderTraining(LoopConfig):
    """Supervised places of target and goal."""

    steps: int = 2500
    batch_size: int = 48  # scenes a step
    learning_rate: float = 2e-3
    weight_decay: float = 0.01
    questions: int = 6  # instructions of each scene
    contrast: float = 0.15  # largest change of contrast, relative
    colour: float = 0.1  # largest shift of each colour, pixels in [-1, 1]


class EncoderTask:
    """Smooth L1 between places said and true, in units of their spread."""

    def __init__(
        self,
        network: PlaceNetwork,
        config: EncoderTraining,
        train: PlacedScenes,
        validation: PlacedScenes,
    ) -> None:
        self.model: nn.Module = network
        self.network, self.config = network, config
        self.train, self.validation = train, validation

    def parameters(self) -> Iterator[nn.Parameter]:
        """All of the network."""
        return self.network.parameters()

    def loss(self, step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:  # noqa: ARG002
        """Loss of one random batch."""
        config = self.config
        chosen = torch.randint(len(self.train), (config.batch_size,), generator=generator)
        batch = self.train.batch(chosen, config.questions, generator)
        image = picture(batch.image, self.network.config.image_size, self.network.centre)
        draws = 2 * torch.rand((config.batch_size, 4, 1, 1), generator=generator) - 1
        draws = draws.to(image)
        image = image * (1 + config.contrast * draws[:, :1]) + config.colour * draws[:, 1:]
        return F.smooth_l1_loss(*self._said_and_true(image, batch), beta=BEND), {}

    def validate(self, model: nn.Module) -> dict[str, float]:  # noqa: ARG002
        """Median distances in m, and how many targets are found within `NEAR`."""
        count = min(VALIDATION_SCENES, len(self.validation))
        chosen = torch.linspace(0, len(self.validation) - 1, count).long()
        generator = step_generator(self.config.seed, -1)
        batch = self.validation.batch(chosen, self.config.questions, generator)
        image = picture(batch.image, self.network.config.image_size, self.network.centre)
        said, true = self._said_and_true(image, batch)
        far = ((said - true) * self.network.spread).norm(dim=-1).view(-1, PLACES)
        return {
            "target_median_m": far[:, 0].median().item(),
            "target_near": (far[:, 0] < NEAR).float().mean().item(),
            "goal_median_m": far[:, 1].median().item(),
        }

    def _said_and_true(self, image: Tensor, batch: SceneBatch) -> tuple[Tensor, Tensor]:
        sentences = [text for scene in batch.instruction for text in scene]
        text = self.network.read_words(sentences).view(len(image), self.config.questions, -1)
        said = self.network.answer(image, text).float()
        true = (batch.places.to(said) - self.network.centre) / self.network.spread
        return said, true

    def after_step(self, step: int) -> None:
        """Nothing to do."""

    def extra_state(self) -> dict[str, Any]:
        """No further state."""
        return {}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        """Counterpart of `extra_state`."""
