"""The small preset's context: a convolutional network and a word table, trained from scratch."""

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from vlarft.config import Config
from vlarft.errors import ShapeError
from vlarft.models.policy import Observation
from vlarft.models.words import LIBERO_OBJECT_WORDS, WordNumbers


class SmallEncoderConfig(Config):
    """Size of the small encoder."""

    kind: Literal["small"] = "small"
    """Chooses this encoder in a policy's configuration."""
    image_size: int = Field(default=64, ge=8)
    """Side of the square picture in px."""
    channels: tuple[int, ...] = (32, 64, 96)
    """Channels after each stride-2 convolution, multiples of 8; 3: 64 px to 8 x 8 tokens."""
    width: int = Field(default=128, ge=8)
    """Channels of a context token."""
    vocabulary: tuple[str, ...] = LIBERO_OBJECT_WORDS
    """Known words, lower case; `words(instructions)` collects them from data."""
    max_words: int = Field(default=24, ge=1)
    """Longest instruction in words; shorter ones are filled with a learned blank."""

    @model_validator(mode="after")
    def _consistent(self) -> "SmallEncoderConfig":
        if not self.channels or any(c % 8 for c in self.channels):
            raise ValueError(f"channels {self.channels}: expected multiples of 8")
        if self.image_size % 2 ** len(self.channels):
            raise ValueError(
                f"image_size {self.image_size} is not a multiple of {2 ** len(self.channels)}"
            )
        if len(set(self.vocabulary)) != len(self.vocabulary) or not self.vocabulary:
            raise ValueError("vocabulary is empty or names a word twice")
        return self


class ConvBlock(nn.Module):
    """Convolution, GroupNorm over 8 groups, SiLU."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1, kernel: int = 3) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2)
        self.norm = nn.GroupNorm(8, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """[P, C, H, W] to [P, C', H / stride, W / stride]."""
        return F.silu(self.norm(self.conv(x)))


class SmallEncoder(nn.Module):
    """Image and instruction to context tokens; the instruction also steers the image features.

    The pooled instruction scales and shifts the last feature map (FiLM, arXiv 1709.07871), so that
    a token can already tell the named object from the others. Proprioception enters the heads
    through their own projector, as in the paper.
    """

    def __init__(self, config: SmallEncoderConfig) -> None:
        super().__init__()
        self.config = config
        last, width = config.channels[-1], config.width
        inputs = (3, *config.channels[:-1])
        self.down = nn.Sequential(
            *(ConvBlock(a, b, 2) for a, b in zip(inputs, config.channels, strict=True))
        )
        self.film = nn.Linear(width, 2 * last)
        self.mix = ConvBlock(last, last, 1)
        self.project = nn.Linear(last, width)
        self.side: int = config.image_size // 2 ** len(config.channels)
        self.position = nn.Parameter(0.02 * torch.randn(self.side**2, width))
        self.word = nn.Embedding(len(config.vocabulary) + 1, width)  # row 0 is the blank
        self.word_position = nn.Parameter(0.02 * torch.randn(config.max_words, width))
        nn.init.normal_(self.word.weight, std=0.5)
        self._numbers = WordNumbers(config.vocabulary, config.max_words)

    @property
    def width(self) -> int:
        """Channels of a context token."""
        return self.config.width

    @property
    def tokens(self) -> int:
        """Context tokens S of a scene: image tokens, then word tokens."""
        return self.side * self.side + self.config.max_words

    def forward(self, observation: Observation) -> Tensor:
        """Context tokens [P, S, width].

        Raises:
            ShapeError: the picture has another size than the configuration's.
            DataError: an instruction has an unknown word or too many words.
        """
        device = self.position.device
        ids = self._numbers(observation.instruction).to(device)
        text = self.word(ids) + self.word_position
        known = (ids > 0).unsqueeze(-1)
        pooled = (text * known).sum(1) / known.sum(1)
        image = picture(observation.image, self.config.image_size, self.position)
        features = self.down(image)
        scale, shift = self.film(pooled)[:, :, None, None].chunk(2, dim=1)
        features = features + self.mix(features * (1 + scale) + shift)
        seen = self.project(features.flatten(2).transpose(1, 2)) + self.position
        return torch.cat([seen, text], dim=1)


def picture(image: Tensor, size: int, like: Tensor) -> Tensor:
    """uint8 [P, size, size, 3] as [P, 3, size, size] in [-1, 1], of the device and type of `like`.

    Raises:
        ShapeError: the pictures have another size.
    """
    if image.shape[1:] != (size, size, 3):
        raise ShapeError(
            f"policy: image {list(image.shape)}; expected [P, {size}, {size}, 3], "
            f"render or resize the data to {size} px"
        )
    # Permuting [P,H,W,3] is already the channels-last layout that convolutions are fastest in.
    return image.to(like.device).permute(0, 3, 1, 2).to(like.dtype) / 127.5 - 1
