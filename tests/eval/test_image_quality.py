import math

import pytest
import torch

from vlarft.errors import ShapeError
from vlarft.eval.image_quality import psnr, squared_error, ssim, ssim_map


def test_psnr_of_known_errors():
    assert psnr(torch.tensor([1.0, 0.01, 1e-4])).tolist() == pytest.approx([0, 20, 40])
    assert psnr(torch.tensor(0.0)).item() == pytest.approx(
        100
    )  # equal images: capped, not infinite


def test_squared_error_counts_masked_pixels_only():
    a, b = torch.zeros(1, 3, 4, 4), torch.full((1, 3, 4, 4), 0.5)
    mask = torch.zeros(1, 4, 4, dtype=torch.bool)
    mask[0, 0, :2] = True
    assert squared_error(a, b, mask).item() == pytest.approx(2 * 3 * 0.25)


def test_ssim_equals_its_formula_written_out_for_one_pixel():
    generator = torch.Generator().manual_seed(1)
    a, b = torch.rand(2, 1, 3, 11, 11, generator=generator).double()
    line = torch.tensor(
        [math.exp(-((i - 5) ** 2) / (2 * 1.5**2)) for i in range(11)], dtype=torch.float64
    )
    window = torch.outer(line, line) / line.sum() ** 2
    channels = []
    for x, y in zip(a[0], b[0], strict=True):
        mx, my = (window * x).sum(), (window * y).sum()
        vx, vy = (window * (x - mx) ** 2).sum(), (window * (y - my) ** 2).sum()
        cov = (window * (x - mx) * (y - my)).sum()
        channels.append(
            ((2 * mx * my + 1e-4) * (2 * cov + 9e-4)) / ((mx**2 + my**2 + 1e-4) * (vx + vy + 9e-4))
        )
    assert ssim(a, b).item() == pytest.approx(torch.stack(channels).mean().item(), abs=1e-12)


def test_ssim_is_1_for_equal_images_and_falls_with_noise():
    image = torch.rand(1, 3, 24, 24, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(1, 3, 24, 24, generator=torch.Generator().manual_seed(1))
    values = [ssim(image, image + s * noise).item() for s in (0.0, 0.05, 0.2)]
    assert values[0] == pytest.approx(1, abs=1e-5)
    assert values[0] > values[1] > values[2]


def test_ssim_map_has_a_value_for_each_pixel_and_sees_where_images_differ():
    a = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    b = a.clone()
    b[..., :8, :8] = 0
    values = ssim_map(a, b)
    assert values.shape == (1, 32, 32)
    assert values[0, 4, 4] < 0.5
    assert values[0, 28, 28] == pytest.approx(1, abs=1e-4)


def test_small_images_are_refused():
    with pytest.raises(ShapeError, match=r">= 11"):
        ssim(torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 8))
