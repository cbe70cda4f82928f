"""float8 keys and values: scales that no input exceeds, and what is read back."""

import math

import pytest
import torch
from torch import nn

from vlarft.reference import float8

HIDDEN, HEADS, DIM = 24, 3, 8


@pytest.fixture
def projection():
    torch.manual_seed(1)
    linear = nn.Linear(HIDDEN, HEADS * DIM, bias=False)
    with torch.no_grad():
        linear.weight[DIM:].mul_(37)  # heads of different sizes
    return linear


def norm_weight():
    return torch.rand(HIDDEN, generator=torch.Generator().manual_seed(2)) + 0.5


def normed(x, norm):
    return x / x.square().mean(-1, keepdim=True).sqrt() * norm


def worst(projection, norm):
    """For each entry, the normalised input that makes it largest: its own row."""
    return normed(projection.weight * norm, norm)


def test_no_value_exceeds_448_and_little_of_the_range_is_lost(projection):
    norm = norm_weight()
    scale = float8.value_scale(projection, norm, DIM)
    entries = projection(worst(projection, norm)).diagonal().view(HEADS, DIM) / scale
    largest = entries.amax(-1)
    assert (largest <= 448).all()
    assert (largest > 448 / 2.1).all()  # powers of two lose at most a factor of 2
    assert torch.equal(scale.log2().round().exp2(), scale)
    assert scale[1] > 8 * scale[0]


def test_no_key_exceeds_448_at_any_angle(projection):
    """The two entries that rotate together, both as large as an input can make them."""
    norm, half = norm_weight(), DIM // 2
    scale = float8.key_scale(projection, norm, DIM, turn=1.3)
    rows = (projection.weight * norm).detach().view(HEADS, DIM, HIDDEN)
    low, high = rows[:, :half], rows[:, half:]
    for angle in torch.linspace(0, math.pi, 9):
        turned = 1.3 * (low * angle.cos() - high * angle.sin())  # of the input x / rms(x)
        entries = math.sqrt(HIDDEN) * turned.norm(dim=-1) / scale
        assert (entries <= 448).all()


def test_a_bias_counts():
    linear = nn.Linear(HIDDEN, DIM)
    with torch.no_grad():
        linear.weight.zero_()
        linear.bias.fill_(1000.0)
    assert float(float8.value_scale(linear, norm_weight(), DIM)) == 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_read_back_is_near_and_exactly_of_the_format(dtype):
    x = torch.randn(5, HEADS, DIM, generator=torch.Generator().manual_seed(3)).to(dtype) * 20
    scale = torch.tensor([[0.25], [1.0], [8.0]], dtype=dtype)
    back = float8.rounded(x, scale)
    assert back.dtype == dtype
    assert torch.equal(float8.rounded(back, scale), back)
    error = (back - x).abs().float()
    assert (error <= torch.maximum(x.abs() / 16, scale * 2**-10).float()).all()
    assert error.max() > 0


def test_what_is_not_finite_stays_so():
    x = torch.tensor([float("nan"), float("inf"), 1.0]).view(3, 1, 1)
    assert float8.rounded(x, torch.ones(1, 1)).flatten().isnan().tolist() == [True, True, False]


def test_a_head_of_zeros_or_nan_keeps_the_scale_1():
    for value in (0.0, float("nan")):
        linear = nn.Linear(HIDDEN, DIM, bias=False)
        with torch.no_grad():
            linear.weight.fill_(value)
        assert float(float8.value_scale(linear, norm_weight(), DIM)) == 1
