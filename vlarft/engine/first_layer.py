"""Codes -> output of the decoder's first convolution, as one matrix: exact algebra, at load."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from vlarft.models.tokenizer import Tokenizer


@dataclass(frozen=True)
class FirstLayer:
    """The map from codes to the latent and the first convolution, on 3x3 patches of codes.

    Each patch of codes carries a one, which the bias of the linear map multiplies; patches outside
    the image have zeros, as the convolution's padding has.
    """

    matrix: Tensor  # [9 (D+1), p p C]
    bias: Tensor  # [p p C]
    patch: int

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> "FirstLayer":
        """Fold a tokenizer's layers; float32 on their device."""
        p, linear = tokenizer.config.patch_size, tokenizer.post_quant_linear
        conv = tokenizer.cond_decoder.conv_in
        # What one code makes of the patches around it: the convolution of its patch alone.
        columns = torch.cat((linear.weight.T, linear.bias[None])).detach().double()
        alone = columns.unflatten(1, (p, p, -1)).permute(0, 3, 1, 2)
        seen = F.conv2d(F.pad(alone, (p, p, p, p)), conv.weight.detach().double(), padding=1)
        seen = seen.unflatten(2, (3, p)).unflatten(4, (3, p))  # D+1, C, 3, p, 3, p
        # The patch above a code's finds that code below itself: flip.
        matrix = seen.flip(2, 4).permute(2, 4, 0, 3, 5, 1).flatten(0, 2).flatten(1)
        assert conv.bias is not None
        bias = conv.bias.detach().float().expand(p * p, -1).flatten()
        return cls(matrix.float().contiguous(), bias, p)

    def __call__(self, codes: Tensor, out: Tensor) -> None:
        """Codes [B,K,D] -> `out` [B,h,w,C], filled."""
        p, edge = self.patch, out.shape[1] // self.patch
        grid = F.pad(codes, (0, 1), value=1.0).unflatten(1, (edge, edge))
        grid = F.pad(grid, (0, 0, 1, 1, 1, 1))
        around = grid.unfold(1, 3, 1).unfold(2, 3, 1).permute(0, 1, 2, 4, 5, 3)  # B e e 3 3 D+1
        patches = torch.addmm(self.bias, around.flatten(3).flatten(0, 2), self.matrix)
        blocks = out.unflatten(1, (edge, p)).unflatten(3, (edge, p))  # B e p e p C
        blocks.copy_(patches.view(-1, edge, edge, p, p, out.shape[3]).transpose(2, 3))
