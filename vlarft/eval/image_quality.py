"""PSNR and SSIM in plain torch, over all pixels or over a mask. Images are float in [0, 1]."""

import torch
import torch.nn.functional as F
from torch import Tensor

from vlarft.errors import ShapeError

SSIM_WINDOW = 11  # pixels
SSIM_SIGMA = 1.5  # pixels
_C1, _C2 = 0.01**2, 0.03**2  # (K * data range)^2 with data range 1; Wang et al. 2004
SMALLEST_MSE = 1e-10  # equal images count as 100 dB instead of infinity, so that means exist


def psnr(mse: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB, `-10 log10(MSE)` for a data range of 1, at most 100 dB.

    Args:
        mse: mean squared errors, any shape.
    """
    return -10 * torch.log10(mse.clamp_min(SMALLEST_MSE))


def squared_error(a: Tensor, b: Tensor, mask: Tensor) -> Tensor:
    """Sum of squared errors over the pixels of a mask and the 3 channels.

    Args:
        a: [..., 3, H, W].
        b: broadcastable to `a`.
        mask: bool, broadcastable to [..., H, W].

    Returns:
        float64 [...]. Divide by 3 times the number of masked pixels for the MSE.
    """
    error = (a - b).square().sum(-3)
    return (error * mask).sum((-2, -1), dtype=torch.float64)


def ssim_map(a: Tensor, b: Tensor) -> Tensor:
    """Structural similarity around each pixel, mean of the channels (Wang et al. 2004).

    Gaussian window of 11 pixels and sigma 1.5, data range 1, population covariance; borders are
    reflected.

    Args:
        a: [B, 3, H, W], H and W at least 11.
        b: as `a`.

    Returns:
        [B, H, W], in [-1, 1].

    Raises:
        ShapeError: shapes differ or images are too small.
    """
    if a.shape != b.shape or a.dim() != 4 or min(a.shape[-2:]) < SSIM_WINDOW:
        raise ShapeError(
            f"ssim: {list(a.shape)} and {list(b.shape)} must be equal [B, 3, H, W], H and W >= "
            f"{SSIM_WINDOW}"
        )
    channels = a.shape[1]
    offsets = torch.arange(SSIM_WINDOW, dtype=a.dtype, device=a.device) - SSIM_WINDOW // 2
    weights = torch.exp(-offsets.square() / (2 * SSIM_SIGMA**2))
    weights = weights / weights.sum()
    column = weights.view(1, 1, -1, 1).expand(channels, 1, -1, 1)
    row = weights.view(1, 1, 1, -1).expand(channels, 1, 1, -1)

    def blur(x: Tensor) -> Tensor:
        x = F.pad(x, [SSIM_WINDOW // 2] * 4, mode="reflect")
        return F.conv2d(F.conv2d(x, column, groups=channels), row, groups=channels)

    mean_a, mean_b = blur(a), blur(b)
    var_a = blur(a * a) - mean_a.square()
    var_b = blur(b * b) - mean_b.square()
    covariance = blur(a * b) - mean_a * mean_b
    value = ((2 * mean_a * mean_b + _C1) * (2 * covariance + _C2)) / (
        (mean_a.square() + mean_b.square() + _C1) * (var_a + var_b + _C2)
    )
    return value.mean(1)


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Mean SSIM over the pixels whose whole window lies inside the image, as commonly published.

    Args:
        a: [B, 3, H, W] in [0, 1].
        b: as `a`.

    Returns:
        [B].
    """
    edge = SSIM_WINDOW // 2
    return ssim_map(a, b)[:, edge:-edge, edge:-edge].mean((-2, -1))
