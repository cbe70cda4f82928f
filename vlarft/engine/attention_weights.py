"""Weights of the tokenizer's two attention blocks as the accelerated networks multiply them."""

from typing import Any

import torch
import torch.nn.functional as F

from vlarft.models import autoencoder as models


class SelfAttentionWeights:
    """Copied weights: queries, keys and values as one matrix.

    Args:
        block: one head over all pixels.
        dtype: of the copies.
    """

    def __init__(self, block: models.SelfAttention, dtype: torch.dtype) -> None:
        layers = (block.to_q, block.to_k, block.to_v)
        self.weight = torch.cat([layer.weight for layer in layers]).detach().to(dtype)
        self.bias = torch.cat([layer.bias for layer in layers]).detach().to(dtype)
        out: Any = block.to_out[0]
        self.out_weight = out.weight.detach().to(dtype, copy=True)
        self.out_bias = out.bias.detach().to(dtype, copy=True)
        self.nbytes: int = self.weight.nbytes + self.out_weight.nbytes


class CrossAttentionWeights:
    """Copied weights of the queries; keys and values belong to the scene.

    Args:
        block: pixels attend to those of their scene's context frame.
        dtype: of the copies.
    """

    def __init__(self, block: models.CrossAttentionBlock, dtype: torch.dtype) -> None:
        width = block.att.out_proj.in_features
        weight, bias = block.att.in_proj_weight[:width], block.att.in_proj_bias[:width]
        self.weight = weight.detach().to(dtype, copy=True)
        # Position enters the query through the same matrix: one summand a pixel.
        self.bias = F.linear(block.q_pos_emb, weight, bias).detach().to(dtype)
        self.out_weight = block.att.out_proj.weight.detach().to(dtype, copy=True)
        self.out_bias = block.att.out_proj.bias.detach().to(dtype, copy=True)
        self.nbytes: int = self.weight.nbytes + self.bias.nbytes + self.out_weight.nbytes
