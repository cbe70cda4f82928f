"""Context-conditioned FSQ autoencoder: frames <-> tokens (official class CompressiveVQModelFSQ).

The context frame is coded by one token a latent pixel, every later frame by one token a patch of
latent pixels, conditioned on features of the context frame.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ConfigDict, field_validator, model_validator
from torch import Tensor, nn

from vlarft.config import Config, load_config
from vlarft.errors import ConfigError, DtypeError, ShapeError
from vlarft.files import write_json
from vlarft.models.autoencoder import CROSS_ATTENTION_GROUPS, Decoder, Encoder, KeyValue
from vlarft.models.folder import load_strict, read_json, read_tensors, write_tensors
from vlarft.models.fsq import FSQ, OFFICIAL_LEVELS

WEIGHTS_FILE = "diffusion_pytorch_model.safetensors"
_IGNORED_KEYS = {
    "_class_name",
    "_diffusers_version",
    "_name_or_path",
    "in_channels",
    "out_channels",
}


class TokenizerConfig(Config):
    """Shape of a tokenizer; names are the official ones.

    Levels may be given as a list or as the official number (12 is [7, 5, 5, 5, 5], 4375 codes).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    resolution: int = 256  # edge of the square frames, pixels
    block_out_channels: tuple[int, ...] = (128, 256, 256, 512)
    layers_per_block: int = 2
    latent_channels: int = 64
    norm_num_groups: int = 32
    patch_size: int = 4  # latent pixels along the edge of one frame token
    vq_fsq_levels: tuple[int, ...] = OFFICIAL_LEVELS[12]  # context codes
    dyn_fsq_levels: tuple[int, ...] = OFFICIAL_LEVELS[12]  # frame codes
    context_length: int = 1
    max_att_resolution: int = 32  # cross-attention at levels of at most this edge
    mid_block_add_attention: bool = False  # plain pair only; the conditional pair always has it
    dropout: float = 0.1  # cross-attention, training only

    @field_validator("vq_fsq_levels", "dyn_fsq_levels", mode="before")
    @classmethod
    def _named_levels(cls, value: Any) -> Any:
        if isinstance(value, int):
            if value not in OFFICIAL_LEVELS:
                raise ValueError(
                    f"level set {value} is unknown; known: {sorted(OFFICIAL_LEVELS)}, or a list"
                )
            return OFFICIAL_LEVELS[value]
        return value

    @model_validator(mode="after")
    def _consistent(self) -> "TokenizerConfig":
        edge = self.patch_size * self.downsampling
        if self.context_length != 1:
            raise ValueError(f"context_length {self.context_length} is not supported; allowed: 1")
        if self.resolution % edge:
            raise ValueError(
                f"resolution {self.resolution} must be a multiple of {edge} (patch x down-sampling)"
            )
        for width in self.block_out_channels:
            if width % self.norm_num_groups:
                raise ValueError(
                    f"block_out_channels {width} is no multiple of "
                    f"norm_num_groups {self.norm_num_groups}"
                )
        if not self.latent_size <= self.max_att_resolution < 2 * self.latent_size:
            raise ValueError(
                f"max_att_resolution {self.max_att_resolution} must be the latent size "
                f"{self.latent_size} "
                "(cross-attention at that level only)"
            )
        for width in self.block_out_channels[-2:]:
            if width % CROSS_ATTENTION_GROUPS:
                raise ValueError(
                    f"attended width {width} must be a multiple of {CROSS_ATTENTION_GROUPS}"
                )
        if any(level < 3 or level % 2 == 0 for level in self.vq_fsq_levels + self.dyn_fsq_levels):
            raise ValueError("FSQ levels must be odd and at least 3")
        return self

    @property
    def downsampling(self) -> int:
        """Pixels along the edge of one latent pixel."""
        return int(2 ** (len(self.block_out_channels) - 1))

    @property
    def latent_size(self) -> int:
        """Edge of the latent."""
        return self.resolution // self.downsampling


@dataclass(frozen=True)
class EncoderFeatures:
    """What encoding later frames needs of the context frame."""

    attended: tuple[KeyValue, ...]


@dataclass(frozen=True)
class DecoderFeatures:
    """What decoding needs of the context frame: keys and values of the one cross-attention."""

    attended: KeyValue

    def select(self, indices: Tensor | slice) -> "DecoderFeatures":
        """Rows of the batch."""
        return DecoderFeatures(self.attended.select(indices))


class Tokenizer(nn.Module):
    """Frames in [0, 1] <-> int64 tokens without vocabulary offsets."""

    def __init__(self, config: TokenizerConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or TokenizerConfig()
        c, tokens = config, config.latent_size**2
        self.context_fsq, self.frame_fsq = FSQ(c.vq_fsq_levels), FSQ(c.dyn_fsq_levels)
        shape = (c.block_out_channels, c.layers_per_block, c.norm_num_groups, c.latent_channels)
        last = len(c.block_out_channels) - 1
        attended = [tokens if min(i + 1, last) == last else 0 for i in range(last + 1)]
        self.encoder = Encoder(*shape, c.mid_block_add_attention)
        self.cond_encoder = Encoder(*shape, True, attended, c.dropout)
        self.decoder = Decoder(*shape, c.mid_block_add_attention)
        self.cond_decoder = Decoder(*shape, True, tokens, c.dropout)
        patch = c.patch_size**2 * c.latent_channels
        self.quant_conv = nn.Conv2d(c.latent_channels, len(c.vq_fsq_levels), 1)
        self.post_quant_conv = nn.Conv2d(len(c.vq_fsq_levels), c.latent_channels, 1)
        self.quant_linear = nn.Linear(patch, len(c.dyn_fsq_levels))
        self.post_quant_linear = nn.Linear(len(c.dyn_fsq_levels), patch)

    @property
    def context_tokens(self) -> int:
        """K0, tokens of the context frame."""
        return self.config.latent_size**2

    @property
    def frame_tokens(self) -> int:
        """K, tokens of every later frame."""
        return (self.config.latent_size // self.config.patch_size) ** 2

    @property
    def context_codes(self) -> int:
        """Size of the context codebook."""
        return self.context_fsq.size

    @property
    def frame_codes(self) -> int:
        """Size of the frame codebook."""
        return self.frame_fsq.size

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights."""
        return self.quant_conv.weight.dtype

    def token_makers(self) -> tuple[nn.Module, ...]:
        """What decides which tokens a frame becomes; all else turns tokens into pixels."""
        return self.encoder, self.cond_encoder, self.quant_conv, self.quant_linear

    # --- pixels -> tokens -------------------------------------------------------------------

    def encode_context(self, image: Tensor) -> tuple[Tensor, EncoderFeatures]:
        """Context frame [B,3,H,W] in [0,1] -> tokens int64 [B,K0] and its features."""
        codes, features = self._context_codes(image)
        return self.context_fsq.indices(codes).flatten(1), features

    def encode_frames(self, features: EncoderFeatures, frames: Tensor) -> Tensor:
        """Frames [B,T,3,H,W] in [0,1] given the context's features -> tokens int64 [B,T,K]."""
        return self.frame_fsq.indices(self._frame_codes(features, frames))

    def tokenize(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Context and T later frames [B,1+T,3,H,W] in [0,1] -> int64 [B,K0], int64 [B,T,K]."""
        self._check(pixels)
        context, features = self.encode_context(pixels[:, 0])
        return context, self.encode_frames(features, pixels[:, 1:])

    # --- tokens -> pixels -------------------------------------------------------------------

    def decoder_features(self, context: Tensor) -> DecoderFeatures:
        """Context tokens int64 [B,K0] -> what decoding any of its frames needs, once a scene."""
        return self._decoder_features(self._context_latent(self.context_fsq.codes(context)))

    def decode_frames(self, features: DecoderFeatures, tokens: Tensor) -> Tensor:
        """Tokens int64 [B,T,K] -> pixels [B,T,3,H,W], not clamped."""
        return self._decode(features, self.frame_fsq.codes(tokens))

    def decode_context(self, context: Tensor) -> Tensor:
        """Context tokens int64 [B,K0] -> its own reconstruction [B,3,H,W], not clamped."""
        out: Tensor = self.decoder(self._context_latent(self.context_fsq.codes(context)))
        return out

    def detokenize(self, context: Tensor, frames: Tensor) -> Tensor:
        """Tokens int64 [B,K0], [B,T,K] -> pixels [B,T,3,H,W], not clamped."""
        return self.decode_frames(self.decoder_features(context), frames)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Reconstruct [B,1+T,3,H,W] through the quantiser, for training: context, frames."""
        codes, features = self._context_codes(pixels[:, 0])
        frame_codes = self._frame_codes(features, pixels[:, 1:])
        latent = self._context_latent(codes.flatten(1, 2))
        middle = self.decoder.middle(latent)
        context = self.decoder.pixels(middle)
        kv = DecoderFeatures(self.cond_decoder.cross_att_blocks[0].key_value(middle))  # type: ignore[operator]
        return context, self._decode(kv, frame_codes)

    # --- folders ----------------------------------------------------------------------------

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "Tokenizer":
        """Load `config.json` and `*.safetensors`.

        Raises:
            CheckpointError: a file is missing or a key or shape differs.
            ConfigError: the configuration is unknown or inconsistent.
        """
        folder = Path(folder)
        tokenizer = cls(tokenizer_config(read_json(folder / "config.json")))
        tensors = {k: v.float() for k, v in read_tensors(folder).items()}
        load_strict(tokenizer, tensors, str(folder))
        return tokenizer.eval()

    def save_pretrained(self, folder: str | Path, dtype: torch.dtype | None = None) -> None:
        """Write `config.json` and the weights, in `dtype` when given."""
        folder = Path(folder)
        write_tensors(folder / WEIGHTS_FILE, self.state_dict(), dtype)
        write_json(folder / "config.json", self.config.model_dump(mode="json"))

    # --- inside -----------------------------------------------------------------------------

    def _check(self, pixels: Tensor) -> None:
        size = self.config.resolution
        if pixels.ndim != 5 or pixels.shape[1] < 1 or pixels.shape[2:] != (3, size, size):
            raise ShapeError(f"pixels must be [B,1+T,3,{size},{size}], got {list(pixels.shape)}")
        if not pixels.is_floating_point():
            raise DtypeError(
                f"pixels must be floating in [0,1], got {pixels.dtype}; divide uint8 by 255"
            )

    def _context_codes(self, image: Tensor) -> tuple[Tensor, EncoderFeatures]:
        return self.quantize_context(*self.encoder(image.to(self.dtype)))

    def quantize_context(
        self, latent: Tensor, levels: Sequence[Tensor]
    ) -> tuple[Tensor, EncoderFeatures]:
        """Output of the encoder [B,C,h,w] and of its levels -> codes [B,h,w,D] and features."""
        attended = self.cond_encoder.attended
        kv = tuple(
            block.key_value(levels[i])  # type: ignore[operator]
            for i, block in zip(attended, self.cond_encoder.cross_att_blocks, strict=True)
        )
        codes = self.context_fsq.quantize(self.quant_conv(latent).permute(0, 2, 3, 1))
        return codes, EncoderFeatures(kv)

    def _frame_codes(self, features: EncoderFeatures, frames: Tensor) -> Tensor:
        latent, _ = self.cond_encoder(frames.flatten(0, 1).to(self.dtype), features.attended)
        codes: Tensor = self.quantize_frames(latent).unflatten(0, frames.shape[:2])
        return codes

    def quantize_frames(self, latent: Tensor) -> Tensor:
        """Output of the conditional encoder [B,C,h,w] -> codes [B,K,D]."""
        p, edge = self.config.patch_size, self.config.latent_size // self.config.patch_size
        patches = latent.unflatten(2, (edge, p)).unflatten(4, (edge, p))  # B C ph p pw p
        vectors = patches.permute(0, 2, 4, 3, 5, 1).reshape(latent.shape[0], edge * edge, -1)
        codes: Tensor = self.frame_fsq.quantize(self.quant_linear(vectors))
        return codes

    def _context_latent(self, codes: Tensor) -> Tensor:
        size = self.config.latent_size
        pixels = codes.transpose(1, 2).unflatten(2, (size, size))
        out: Tensor = self.post_quant_conv(pixels.to(self.dtype))
        return out

    def _decoder_features(self, latent: Tensor) -> DecoderFeatures:
        block = self.cond_decoder.cross_att_blocks[0]
        return DecoderFeatures(block.key_value(self.decoder.middle(latent)))  # type: ignore[operator]

    def _decode(self, features: DecoderFeatures, codes: Tensor) -> Tensor:
        p, edge = self.config.patch_size, self.config.latent_size // self.config.patch_size
        vectors = self.post_quant_linear(codes.flatten(0, 1).to(self.dtype))
        patches = vectors.reshape(-1, edge, edge, p, p, self.config.latent_channels)
        latent = patches.permute(0, 5, 1, 3, 2, 4).reshape(
            -1, self.config.latent_channels, edge * p, edge * p
        )
        if self.quant_conv.weight.is_contiguous(memory_format=torch.channels_last):
            latent = latent.contiguous(memory_format=torch.channels_last)
        pixels: Tensor = self.cond_decoder(latent, features.attended)
        return pixels.reshape(*codes.shape[:2], *pixels.shape[1:])


def tokenizer_config(content: dict[str, Any]) -> TokenizerConfig:
    """Configuration from an official or own `config.json`.

    Raises:
        ConfigError: unknown key or inconsistent values.
    """
    values = {k: v for k, v in content.items() if k not in _IGNORED_KEYS}
    for key in ("in_channels", "out_channels"):
        if content.get(key, 3) != 3:
            raise ConfigError(f"tokenizer config: {key} = {content[key]}; allowed: 3")
    if "fsq_levels" in values:
        values["vq_fsq_levels"] = values["dyn_fsq_levels"] = values.pop("fsq_levels")
    return load_config(TokenizerConfig, values)
