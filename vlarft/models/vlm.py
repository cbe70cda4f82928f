"""The paper's context: two vision towers, a projector and a small language model (spec 4.1).

All three networks are transformers' own classes, built from configuration dictionaries; nothing is
downloaded. Sequence: text token 0, image patches, remaining text, action queries. Rows with a
shorter text are filled behind the queries, where causal attention never looks back from, so that
no mask is needed and every attention implementation serves.
"""

import warnings
from pathlib import Path
from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
from peft import LoraConfig, PeftModel, get_peft_model
from pydantic import Field
from torch import Tensor, nn
from transformers import (
    AutoTokenizer,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    PreTrainedTokenizerBase,
    Qwen2Config,
    Qwen2Model,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from vlarft.config import Config, load_config
from vlarft.errors import CheckpointError, ConfigError
from vlarft.files import write_json
from vlarft.models.attention import Attention, require_attention
from vlarft.models.folder import load_strict, read_json, read_tensors, write_tensors
from vlarft.models.policy import Observation

PROMPT = (
    "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant."
    "<|im_end|>\n<|im_start|>user\nWhat action should the robot take to {instruction}?<|im_end|>\n"
    "<|im_start|>assistant\n"
)
TOKENIZER_FOLDER = "tokenizer"
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
SIGLIP = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))

_DINO: dict[str, Any] = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "patch_size": 14,
    "image_size": 224,
    "num_register_tokens": 4,
}
_SIGLIP: dict[str, Any] = {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "patch_size": 14,
    "image_size": 224,
}
_LANGUAGE: dict[str, Any] = {
    "vocab_size": 151_936,
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32_768,
    "rope_theta": 1_000_000.0,
}


class VLMConfig(Config):
    """Size of the VLM; the defaults are the paper's (about 1.25 billion parameters)."""

    kind: Literal["vlm"] = "vlm"
    """Chooses this encoder in a policy's configuration."""
    dino: dict[str, Any] = _DINO
    """Arguments of transformers' `Dinov2WithRegistersConfig`; `patch_size` is required."""
    siglip: dict[str, Any] = _SIGLIP
    """Arguments of transformers' `SiglipVisionConfig`."""
    language: dict[str, Any] = _LANGUAGE
    """Arguments of transformers' `Qwen2Config`."""
    image_size: int = Field(default=224, ge=1)
    """Side of the square picture that both towers see, px."""
    crop_area: float = Field(default=0.9, gt=0, le=1)
    """Share of the picture's area kept by the centre crop of evaluation (spec 7)."""
    queries: int = Field(default=64, ge=1)
    """Learned action queries."""
    lora_rank: int = Field(default=0, ge=0)
    """Rank of LoRA on every linear layer of the three networks; 0 trains their own weights."""
    lora_alpha: float = Field(default=16.0, gt=0)
    """LoRA's scale is `lora_alpha / lora_rank`."""
    attention: Attention = "sdpa"
    """Attention implementation of the three networks."""

    @property
    def patches(self) -> int:
        """Image tokens."""
        side = self.image_size // int(self.dino["patch_size"])
        return side * side


class Projector(nn.Module):
    """Vision features to the language model's width: three linear layers, GELU between."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(inputs, 4 * inputs)
        self.fc2 = nn.Linear(4 * inputs, width)
        self.fc3 = nn.Linear(width, width)

    def forward(self, features: Tensor) -> Tensor:
        """[P, patches, inputs] to [P, patches, width]."""
        projected: Tensor = self.fc3(F.gelu(self.fc2(F.gelu(self.fc1(features)))))
        return projected


class VLMEncoder(nn.Module):
    """Image and instruction to context tokens [P, patches + queries, width].

    Args:
        config: sizes, LoRA, attention.
        tokenizer: the language model's; needed by `forward`, not to build.

    Raises:
        BackendError: the attention is not available.
        ConfigError: the towers disagree about the number of patches.
    """

    def __init__(self, config: VLMConfig, tokenizer: PreTrainedTokenizerBase | None = None) -> None:
        super().__init__()
        self.config, self.tokenizer = config, tokenizer
        attention = require_attention(config.attention)
        dino = Dinov2WithRegistersConfig(**config.dino)
        siglip = SiglipVisionConfig(**{"vision_use_head": False, **config.siglip})
        language = Qwen2Config(**config.language)
        patch = int(config.dino["patch_size"])
        if siglip.patch_size != patch or config.image_size % patch:
            raise ConfigError(
                f"vlm: patches of {patch} and {siglip.patch_size} px on "
                f"{config.image_size} px; expected equal patches that divide the picture"
            )
        for part in (dino, siglip, language):
            part._attn_implementation = attention
        self.prefix = 1 + dino.num_register_tokens
        self.dino: nn.Module = Dinov2WithRegistersModel(dino)
        self.siglip: nn.Module = SiglipVisionModel(siglip)
        self.language: nn.Module = Qwen2Model(language)
        self.width = int(language.hidden_size)
        self.projector = Projector(dino.hidden_size + siglip.hidden_size, self.width)
        self.action_queries = nn.Embedding(config.queries, self.width)
        nn.init.normal_(self.action_queries.weight, std=0.02)
        if config.lora_rank:
            self._wrap_networks()

    @classmethod
    def from_pretrained(cls, folder: str | Path, attention: Attention | None = None) -> Self:
        """Read a VLM folder: `config.json`, `*.safetensors`, `tokenizer/`.

        Args:
            folder: the folder.
            attention: overrides the stored choice.

        Raises:
            CheckpointError: something is missing or does not match.
        """
        folder = Path(folder)
        config = load_config(VLMConfig, read_json(folder / "config.json"))
        if attention is not None:
            config = config.model_copy(update={"attention": attention})
        encoder = cls(config, load_tokenizer(folder / TOKENIZER_FOLDER))
        load_strict(encoder, read_tensors(folder), str(folder))
        return encoder

    def save_pretrained(self, folder: str | Path) -> None:
        """Write what `from_pretrained` reads."""
        folder = Path(folder)
        write_json(folder / "config.json", self.config.model_dump(mode="json"))
        write_tensors(folder / "model.safetensors", self.state_dict())
        self.save_tokenizer(folder)

    def save_tokenizer(self, folder: Path) -> None:
        """Write the tokenizer beside the weights of a VLM or policy folder."""
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(str(folder / TOKENIZER_FOLDER))

    @property
    def tokens(self) -> int:
        """Context tokens S of a scene: patches, then queries."""
        return self.config.patches + self.config.queries

    def add_lora(self, rank: int, alpha: float) -> None:
        """Freeze the three networks under new LoRA adapters, which change nothing at first.

        Args:
            rank: of the adapters, 1 or more.
            alpha: their scale is `alpha / rank`.

        Raises:
            ConfigError: there are adapters already.
        """
        if self.config.lora_rank:
            raise ConfigError(f"vlm: has LoRA of rank {self.config.lora_rank}; merge it first")
        self.config = self.config.model_copy(update={"lora_rank": rank, "lora_alpha": alpha})
        self._wrap_networks()

    def _wrap_networks(self) -> None:
        for name in ("dino", "siglip", "language"):
            setattr(self, name, _with_lora(getattr(self, name), self.config))

    def merge_lora(self) -> None:
        """Add the LoRA updates to the weights and drop the adapters; a no-op without LoRA."""
        for name in ("dino", "siglip", "language"):
            part = getattr(self, name)
            if isinstance(part, PeftModel):
                setattr(self, name, part.merge_and_unload())
        self.config = self.config.model_copy(update={"lora_rank": 0})

    def forward(self, observation: Observation) -> Tensor:
        """Context tokens [P, patches + queries, width], float32.

        The slices are one position early, in training and use alike: `task` are the states at
        positions 0 to patches-1 (text token 0 and all patches but the last), `action` the states
        before each query (spec 4.1, defect 39; kept for the published checkpoints).

        Raises:
            BackendError: the attention cannot run on the model's device or type.
            CheckpointError: there is no tokenizer.
        """
        weight = self.action_queries.weight
        require_attention(self.config.attention, weight.device, weight.dtype)
        sequence, queries_at = self._sequence(observation)
        states = self.language(inputs_embeds=sequence, use_cache=False).last_hidden_state
        task = states[:, : self.config.patches]
        before = queries_at[:, None] - 1 + torch.arange(self.config.queries, device=weight.device)
        action = states.gather(1, before[..., None].expand(-1, -1, self.width))
        return torch.cat([task, action], dim=1).float()

    def _sequence(self, observation: Observation) -> tuple[Tensor, Tensor]:
        """Input embeddings [P, L, width] and the position [P] of each row's first query."""
        weight = self.action_queries.weight
        patches = self.projector(self.vision(observation.image))
        embed = self.language.get_input_embeddings()  # type: ignore[operator]
        rows, lengths = [], []
        for row, ids in enumerate(self._text_ids(observation.instruction)):
            text = embed(torch.tensor(ids, device=weight.device))
            rows.append(torch.cat([text[:1], patches[row], text[1:], weight]))
            lengths.append(len(ids))
        queries_at = torch.tensor(lengths, device=weight.device) + self.config.patches
        return nn.utils.rnn.pad_sequence(rows, batch_first=True), queries_at

    def vision(self, image: Tensor) -> Tensor:
        """Both towers' second-to-last blocks, no final norm, no prefix tokens.

        Args:
            image: uint8 [P, H, W, 3].

        Returns:
            [P, patches, DINO width + SigLIP width].
        """
        weight = self.action_queries.weight
        pixels = self._pixels(image.to(weight.device))
        features = []
        for tower, (mean, std), prefix in (
            (self.dino, IMAGENET, self.prefix),
            (self.siglip, SIGLIP, 0),
        ):
            normal = (pixels - pixels.new_tensor(mean)[:, None, None]) / pixels.new_tensor(std)[
                :, None, None
            ]
            output = tower(pixel_values=normal.to(weight.dtype), output_hidden_states=True)
            features.append(output.hidden_states[-2][:, prefix:])
        return torch.cat(features, dim=-1)

    def _pixels(self, image: Tensor) -> Tensor:
        pixels = image.permute(0, 3, 1, 2).float() / 255
        height, width = pixels.shape[-2:]
        side = self.config.crop_area**0.5
        crop_h, crop_w = round(height * side), round(width * side)
        top, left = (height - crop_h) // 2, (width - crop_w) // 2
        pixels = pixels[..., top : top + crop_h, left : left + crop_w]
        size = (self.config.image_size, self.config.image_size)
        # torch has no Lanczos; antialiased bicubic is its closest filter to the official resize.
        return F.interpolate(
            pixels, size, mode="bicubic", antialias=True, align_corners=False
        ).clamp(0, 1)

    def _text_ids(self, instructions: list[str]) -> list[list[int]]:
        if self.tokenizer is None:
            raise CheckpointError(
                f"vlm: no tokenizer; put the language model's tokenizer files into "
                f"'{TOKENIZER_FOLDER}/' of the model folder"
            )
        prompts = [PROMPT.format(instruction=text.lower()) for text in instructions]
        encoded = self.tokenizer(prompts, add_special_tokens=False)["input_ids"]
        return [list(ids) for ids in encoded]


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Tokenizer files of a folder, never from the network.

    Raises:
        CheckpointError: the folder holds no readable tokenizer.
    """
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such folder; expected the language model's tokenizer")
    try:
        loaded: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            str(folder), local_files_only=True
        )
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder}: no readable tokenizer ({error})") from error
    return loaded


def _with_lora(part: nn.Module, config: VLMConfig) -> PeftModel:
    lora = LoraConfig(
        r=config.lora_rank, lora_alpha=int(config.lora_alpha), target_modules="all-linear"
    )
    with warnings.catch_warnings():
        # peft 0.21 reads an attribute that transformers 5.23 renames; nothing for a user to do.
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing.*", FutureWarning)
        adapted = get_peft_model(part, lora)
    if not isinstance(adapted, PeftModel):
        raise ConfigError(f"lora_rank {config.lora_rank}: peft returned {type(adapted).__name__}")
    return adapted
