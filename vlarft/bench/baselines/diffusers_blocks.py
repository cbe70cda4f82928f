"""The tokenizer's decoders built from diffusers' own blocks, with the same weights.

The official tokenizer is made of these blocks; only its cross-attention and its quantisers are not
diffusers' and stay as they are.
"""

import copy
import importlib
from importlib.metadata import version
from typing import Any

import torch
from torch import nn

from vlarft.bench.measure import Context, Skip
from vlarft.models.autoencoder import Decoder, MidBlock, UpBlock
from vlarft.models.tokenizer import Tokenizer

_EPS = 1e-6


def diffusers_tokenizer(context: Context) -> Tokenizer:
    """The case's tokenizer with diffusers' mid and up blocks, channels last, in the dtype.

    Raises:
        Skip: diffusers is not installed.
    """

    def make() -> Tokenizer:
        try:
            blocks = importlib.import_module("diffusers.models.unets.unet_2d_blocks")
        except ImportError as error:
            raise Skip(f"diffusers cannot be imported ({error}); pip install diffusers") from error
        own = copy.deepcopy(context.material.world.tokenizer).eval().requires_grad_(False)
        for decoder in (own.decoder, own.cond_decoder):
            _exchange(decoder, blocks)
        own.to(context.options.dtype)
        own.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return own

    tokenizer: Tokenizer = context.shared("diffusers tokenizer", make)
    return tokenizer


def diffusers_version() -> str:
    """Of the installed package."""
    return version("diffusers")


def _exchange(decoder: Decoder, blocks: Any) -> None:
    """Put diffusers' blocks where ours are; their parameters have the same names."""
    decoder.mid_block = _with_weights(_middle(decoder.mid_block, blocks), decoder.mid_block)
    decoder.up_blocks = nn.ModuleList(
        [_with_weights(_up(block, blocks), block) for block in decoder.up_blocks]  # type: ignore[arg-type]
    )


def _with_weights(new: Any, old: nn.Module) -> Any:
    new.load_state_dict(old.state_dict())
    return new.eval().requires_grad_(False)


def _middle(block: MidBlock, blocks: Any) -> Any:
    norm: Any = block.resnets[0].norm1
    width = norm.num_channels
    return blocks.UNetMidBlock2D(
        in_channels=width,
        temb_channels=None,
        resnet_eps=_EPS,
        resnet_groups=norm.num_groups,
        attention_head_dim=width,
        add_attention=bool(len(block.attentions)),
    )


def _up(block: UpBlock, blocks: Any) -> Any:
    first: Any = block.resnets[0]
    return blocks.UpDecoderBlock2D(
        in_channels=first.conv1.in_channels,
        out_channels=first.conv1.out_channels,
        num_layers=len(block.resnets),
        resnet_eps=_EPS,
        resnet_groups=first.norm1.num_groups,
        add_upsample=block.up,
    )
