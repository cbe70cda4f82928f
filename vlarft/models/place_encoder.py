"""An encoder that says where the named things are: the target, and where it is to go.

A convolutional network (an hourglass: features at 1/2 of the picture's size that know of 1/8) and,
for each of the two, a few queries made of the instruction, whose attention over the picture gives
points (spatial soft-argmax, arXiv 1504.00702) and features there; an MLP turns them into a place
in m. It is trained on drawn scenes with known places (`vlarft train encoder`) and stays as it is
afterwards, as a pre-trained vision-language model would.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from vlarft.config import Config, load_config
from vlarft.errors import CheckpointError, ConfigError
from vlarft.files import write_json
from vlarft.models.folder import load_strict, read_json, read_tensors, write_tensors
from vlarft.models.policy import Observation
from vlarft.models.small_encoder import ConvBlock, picture
from vlarft.models.words import LIBERO_OBJECT_WORDS, WordNumbers

WEIGHTS_FILE = "model.safetensors"
PLACES = 2  # target and goal
REACHES = (0.3, 0.05, 0.015)  # m, scales on which a policy sees the way to a place


class PlaceEncoderConfig(Config):
    """Size of the place encoder."""

    kind: Literal["places"] = "places"
    """Chooses this encoder in a policy's configuration."""
    image_size: int = Field(default=64, ge=16)
    """Side of the square picture in px, a multiple of 8."""
    channels: tuple[int, int, int] = (32, 64, 96)
    """Channels at 1/2, 1/4 and 1/8 of the picture's size, multiples of 8."""
    features: int = Field(default=32, ge=8)
    """Channels of the map that queries look at, a multiple of 8."""
    queries: int = Field(default=4, ge=1)
    """Points looked at for each of the two places."""
    text_width: int = Field(default=64, ge=8)
    """Channels of a word."""
    width: int = Field(default=96, ge=8)
    """Channels of a context token."""
    vocabulary: tuple[str, ...] = LIBERO_OBJECT_WORDS
    """Known words, lower case."""
    max_words: int = Field(default=24, ge=1)
    """Longest instruction in words."""

    @model_validator(mode="after")
    def _consistent(self) -> "PlaceEncoderConfig":
        if self.image_size % 8:
            raise ValueError(f"image_size {self.image_size} is not a multiple of 8")
        if any(c % 8 for c in (*self.channels, self.features)):
            raise ValueError(
                f"channels {self.channels}, features {self.features}: expected multiples of 8"
            )
        if len(set(self.vocabulary)) != len(self.vocabulary) or not self.vocabulary:
            raise ValueError("vocabulary is empty or names a word twice")
        return self


class PlaceNetwork(nn.Module):
    """Picture and instruction to two places."""

    centre: Tensor
    spread: Tensor

    def __init__(self, config: PlaceEncoderConfig) -> None:
        super().__init__()
        half, quarter, eighth = config.channels
        self.config = config
        self.stem = ConvBlock(3, half, 2, kernel=5)
        self.quarter, self.quarter_mix = ConvBlock(half, quarter, 2), ConvBlock(quarter, quarter)
        self.eighth, self.eighth_mix = ConvBlock(quarter, eighth, 2), ConvBlock(eighth, eighth)
        self.to_quarter, self.quarter_out = (
            nn.Conv2d(eighth, quarter, 1),
            ConvBlock(quarter, quarter),
        )
        self.to_half = nn.Conv2d(quarter, config.features, 1)
        self.half_skip = nn.Conv2d(half, config.features, 1)
        self.half_out = ConvBlock(config.features, config.features)
        self.out = nn.Conv2d(config.features, config.features, 1)
        text, asked = config.text_width, config.queries * config.features
        self.word = nn.Embedding(len(config.vocabulary) + 1, text)
        self.word_order = nn.Parameter(0.1 * torch.randn(config.max_words, text))
        self.read = nn.Sequential(nn.Linear(text, 2 * text), nn.SiLU(), nn.Linear(2 * text, text))
        self.text_norm = nn.LayerNorm(text)
        self.query = nn.Sequential(
            nn.Linear(text, 2 * text), nn.SiLU(), nn.Linear(2 * text, PLACES * asked)
        )
        self.place = nn.Sequential(
            nn.Linear(2 * config.queries + asked + text + PLACES, 128), nn.SiLU(), nn.Linear(128, 3)
        )
        self.register_buffer("centre", torch.zeros(3))
        self.register_buffer("spread", torch.ones(3))
        self.numbers = WordNumbers(config.vocabulary, config.max_words)

    def answer(self, image: Tensor, text: Tensor) -> Tensor:
        """Where the things are that each of Q instructions names.

        Args:
            image: [P, 3, H, W] in [-1, 1].
            text: [P, Q, text width], from `read_words`.

        Returns:
            [P, Q, 2, 3]: target and goal in units of `spread` from `centre`.
        """
        features = self._features(image)
        rows, columns = features.shape[-2:]
        pixels = features.flatten(2)
        scenes, asked = text.shape[:2]
        queries = self.query(text).view(scenes, -1, pixels.shape[1])
        attention = (queries @ pixels * (2 * pixels.shape[1] ** -0.5)).softmax(-1)
        y = torch.linspace(-1, 1, rows, device=pixels.device).repeat_interleave(columns)
        x = torch.linspace(-1, 1, columns, device=pixels.device).repeat(rows)
        points = (attention @ torch.stack([x, y], -1)).view(scenes, asked, PLACES, -1)
        seen = (attention @ pixels.transpose(1, 2)).view(scenes, asked, PLACES, -1)
        which = torch.eye(PLACES, device=pixels.device).expand(scenes, asked, -1, -1)
        said = text[:, :, None].expand(-1, -1, PLACES, -1)
        places: Tensor = self.place(torch.cat([3 * points, seen, said, which], -1))
        return places

    def read_words(self, instructions: Sequence[str]) -> Tensor:
        """What sentences say, [P, text width].

        Raises:
            DataError: an unknown word or too many words.
        """
        ids = self.numbers(instructions).to(self.centre.device)
        known = (ids > 0).unsqueeze(-1)
        read = self.read(self.word(ids) + self.word_order)
        pooled: Tensor = self.text_norm((read * known).sum(1) / known.sum(1))
        return pooled

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `config.json` and the weights."""
        folder = Path(folder)
        write_tensors(folder / WEIGHTS_FILE, self.state_dict())
        write_json(folder / "config.json", self.config.model_dump(mode="json"))

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Self:
        """Read a folder of `save_pretrained`.

        Raises:
            CheckpointError: a file is missing or damaged, or a key or shape differs.
        """
        folder = Path(folder)
        try:
            config = load_config(PlaceEncoderConfig, read_json(folder / "config.json"))
        except ConfigError as error:
            raise CheckpointError(f"{folder}: {error}") from error
        network = cls(config)
        load_strict(network, read_tensors(folder), str(folder / WEIGHTS_FILE))
        return network

    def _features(self, image: Tensor) -> Tensor:
        half = self.stem(image)
        quarter = self.quarter(half)
        quarter = quarter + self.quarter_mix(quarter)
        eighth = self.eighth(quarter)
        eighth = eighth + self.eighth_mix(eighth)
        quarter = self.quarter_out(quarter + _doubled(self.to_quarter(eighth)))
        fine = self.half_out(self.half_skip(half) + _doubled(self.to_half(quarter)))
        features: Tensor = self.out(fine)
        return features


class PlaceEncoder(nn.Module):
    """Three context tokens: the target's place, the goal's, and the instruction.

    A place comes as such and as the way there from the gripper, on several scales. The network
    that says where takes no gradient, unless `where.requires_grad_(True)` was called.
    """

    def __init__(self, config: PlaceEncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.where = PlaceNetwork(config).requires_grad_(False)
        self.which = nn.Parameter(0.1 * torch.randn(PLACES, config.width))
        self.way = nn.Sequential(
            nn.Linear(3 * (1 + len(REACHES)), config.width),
            nn.SiLU(),
            nn.Linear(config.width, config.width),
        )
        self.say = nn.Linear(config.text_width, config.width)

    @property
    def width(self) -> int:
        """Channels of a context token."""
        return self.config.width

    @property
    def tokens(self) -> int:
        """Context tokens S of a scene."""
        return PLACES + 1

    def locate(self, observation: Observation) -> Tensor:
        """Where target and goal are, float32 [P, 2, 3], m, in the frame of proprioception.

        Raises:
            ShapeError, DataError: as `forward`.
        """
        return self._located(observation, self.where.read_words(observation.instruction))

    def forward(self, observation: Observation) -> Tensor:
        """Context tokens [P, 3, width].

        Raises:
            ShapeError: the picture has another size than the configuration's.
            DataError: an instruction has an unknown word or too many words.
        """
        with torch.autocast(self.which.device.type, enabled=False):  # bf16 is 2 mm too coarse
            text = self.where.read_words(observation.instruction)
            located = self._located(observation, text)
            places = (located - self.where.centre) / self.where.spread
            gripper = observation.proprioception[:, None, :3].to(located)
            way = [torch.tanh((located - gripper) / reach) for reach in REACHES]
        tokens = self.way(torch.cat([places, *way], -1)) + self.which
        return torch.cat([tokens, self.say(text)[:, None]], 1)

    def _located(self, observation: Observation, text: Tensor) -> Tensor:
        image = picture(observation.image, self.config.image_size, self.which)
        places = self.where.answer(image, text[:, None])[:, 0]
        return places * self.where.spread + self.where.centre


def _doubled(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="bilinear")
