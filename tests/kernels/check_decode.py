"""Kernels of the decode stage against plain formulas in float64; run by test_kernels.py."""

import random

import pytest
import torch
import torch.nn.functional as F

from tests.kernels.exactness import assert_as_exact
from vlarft.errors import ConfigError, DtypeError, ShapeError
from vlarft.kernels.decode.codes import codes
from vlarft.kernels.decode.group_norm import group_norm
from vlarft.kernels.decode.interleave import folded, interleave
from vlarft.kernels.decode.moments import moments
from vlarft.models.fsq import FSQ

EPS = 1e-6
# numpy, which interprets, warns where exp(-y) is infinite: beyond the borders.
pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered in exp")


class Case:
    """An activation of random shape, dtype and size of its numbers, drawn from a seed."""

    def __init__(self, seed):
        rng = random.Random(seed)
        self.generator = torch.Generator().manual_seed(seed)
        self.group_width = rng.choice((1, 1, 2, 3, 4, 5, 8))
        self.groups = rng.choice((1, 2, 3, 7, 8, 32))
        self.width = self.groups * self.group_width
        self.batch = rng.choice((1, 1, 2, 3))
        self.pixels = rng.choice((2, 3, 16, 35, 64, 127, 128, 129, 257, 300))
        self.dtype = rng.choice((torch.float32, torch.bfloat16))
        self.middle = rng.choice((0, 0, 1, -30, 1e3))
        self.spread = rng.choice((1, 1, 1e-12, 1e4, 1e15))
        self.silu, self.add, self.biased = (rng.random() < 0.5 for _ in range(3))
        self.name = f"case {seed}: " + str(
            {k: v for k, v in vars(self).items() if k != "generator"}
        )

    def normal(self, *shape):
        return torch.randn(*shape, generator=self.generator)

    def activation(self):
        x = self.normal(self.batch, self.pixels, self.width) + self.middle
        return (x * self.spread).to(self.dtype)


def formula(x, weight, bias, case):
    """GroupNorm of [B,P,C], float64, in two sweeps: torch's own cancels where the mean is large."""
    grouped = x.unflatten(2, (case.groups, -1))
    away = grouped - grouped.mean((1, 3), keepdim=True)
    deviation = (away.square().mean((1, 3), keepdim=True) + EPS).sqrt()
    y = (away / deviation).flatten(2) * weight + bias
    return F.silu(y) if case.silu else y


def plain(x, weight, bias, case):
    """GroupNorm of [B,P,C] in x's dtype, as torch has it."""
    y = F.group_norm(x.transpose(1, 2), case.groups, weight.to(x.dtype), bias.to(x.dtype), EPS)
    return (F.silu(y) if case.silu else y).transpose(1, 2)


@pytest.mark.parametrize("seed", range(80))
def test_group_norm(seed, device):
    case = Case(seed)
    x, residual = case.activation(), case.activation()
    weight, bias = case.normal(case.width), case.normal(case.width)
    added = case.normal(case.width) * case.spread
    whole, exact = x, x.double()
    if case.add:
        whole, exact = whole + residual, exact + residual.double()
    if case.biased:
        whole, exact = whole + added.to(case.dtype), exact + added.double()
    # The sum is rounded to the dtype where it is written, by torch and by the kernel alike.
    given = x.clone().to(device)
    known = moments(
        given,
        residual.to(device) if case.add else None,
        added.to(device) if case.biased and case.add else None,
    )
    if case.add:
        assert_as_exact(given, whole, exact, case.name)
        whole, exact = given.cpu(), given.cpu().double()
    y = group_norm(
        given, known, weight.to(device), bias.to(device), groups=case.groups, eps=EPS,
        silu=case.silu, added=added.to(device) if case.biased and not case.add else None,
    )  # fmt: skip
    truth = formula(exact, weight.double(), bias.double(), case)
    assert_as_exact(y, plain(whole, weight, bias, case), truth, case.name)


def test_group_norm_of_a_constant_image_is_its_bias(device):
    x = torch.full((2, 37, 6), 3.0, device=device)
    weight, bias = torch.ones(6, device=device), torch.arange(6.0, device=device)
    y = group_norm(x, moments(x), weight, bias, groups=3, eps=EPS, silu=False)
    assert torch.equal(y, bias.expand_as(y))


def test_group_norm_in_place(device):
    case = Case(3)
    x = case.activation().to(device)
    weight, bias = (case.normal(case.width).to(device) for _ in range(2))
    apart = group_norm(x, moments(x), weight, bias, groups=case.groups, eps=EPS)
    assert group_norm(x, moments(x), weight, bias, groups=case.groups, eps=EPS, out=x) is x
    assert torch.equal(x, apart)


@pytest.mark.parametrize("seed", range(40))
def test_interleave_is_upsampling_and_convolution(seed, device):
    rng, case = random.Random(seed), Case(seed)
    width, depth = rng.choice((1, 3, 5, 32, 65)), rng.choice((1, 2, 7))
    batch, height, columns = rng.choice((1, 1, 3)), rng.choice((1, 2, 5, 9)), rng.choice((1, 3, 8))
    x = case.normal(batch, depth, height, columns)
    weight, bias = case.normal(width, depth, 3, 3), case.normal(width)
    parts = F.conv2d(x.double(), folded(weight.double()), padding=1).to(case.dtype)
    parts = parts.permute(0, 2, 3, 1).contiguous()
    out, known = interleave(parts.to(device), bias.to(device))
    large = F.interpolate(x.double(), scale_factor=2.0, mode="nearest")
    truth = F.conv2d(large, weight.double(), bias.double(), padding=1).permute(0, 2, 3, 1)
    honest = (truth - bias.double()).to(case.dtype) + bias.to(case.dtype)
    assert_as_exact(out, honest, truth, f"case {seed}")
    again = moments(out.clone().flatten(1, 2))
    assert torch.equal(known.values, again.values)
    assert (known.pixels, known.tile) == (again.pixels, again.tile)


@pytest.mark.parametrize("levels", [(3,), (5, 5, 3), (7, 5, 5, 5, 5), (9, 3, 3, 11, 3, 5, 7)])
def test_codes_are_those_of_fsq(levels, device):
    fsq, generator = FSQ(levels), torch.Generator().manual_seed(len(levels))
    for shape in ((1, 1), (3, 257), (5, 64)):
        indices = torch.randint(0, 3 * fsq.size, shape, generator=generator)
        assert torch.equal(codes(indices.to(device), levels).cpu(), fsq.codes(indices))
    last = torch.tensor([[0, fsq.size - 1, 2**40]])
    assert torch.equal(codes(last.to(device), levels).cpu(), fsq.codes(last))


def test_results_do_not_depend_on_batch_mates(device):
    case = Case(0)
    x = case.normal(5, 300, 96).to(device)
    weight, bias = (case.normal(96).to(device) for _ in range(2))

    def normalised(some):
        some = some.clone()
        known = moments(some, some.clone(), bias)
        return group_norm(some, known, weight, bias, groups=32, eps=EPS)

    whole = normalised(x)
    assert all(torch.equal(normalised(x[i : i + 1])[0], whole[i]) for i in range(5))
    parts = case.normal(5, 4, 7, 4 * 96).to(device)
    out, known = interleave(parts, bias)
    for i in range(5):
        alone, its = interleave(parts[i : i + 1], bias)
        assert torch.equal(alone[0], out[i])
        assert torch.equal(its.values[0], known.values[i])


def test_nothing_is_written_outside(device):
    guarded = torch.full((3, 129, 33), 7.0, device=device)
    x, ones = guarded[1:2], torch.ones(33, device=device)
    known = moments(x, x.clone(), ones)
    group_norm(x, known, ones, ones, groups=11, eps=EPS, out=x)
    assert bool((guarded[::2] == 7).all())


def test_refusals(device):
    x, w = torch.ones(2, 6, 4, device=device), torch.ones(4, device=device)
    known = moments(x)
    with pytest.raises(
        ShapeError, match=r"x must be \[B,P,C\] without empty sizes, got \[2, 0, 4\]"
    ):
        moments(x[:, :0])
    with pytest.raises(ShapeError, match="x must be contiguous"):
        moments(x.transpose(1, 2))
    with pytest.raises(DtypeError, match="x must be float32 or bfloat16, got float64"):
        moments(x.double())
    with pytest.raises(DtypeError, match="residual must be float32, got bfloat16"):
        moments(x, x.bfloat16())
    with pytest.raises(ShapeError, match="groups must divide the 4 channels, got 3"):
        group_norm(x, known, w, w, groups=3, eps=EPS)
    with pytest.raises(ShapeError, match=r"moments are those of \[2, 6, 4\], x is \[1, 6, 4\]"):
        group_norm(x[:1], known, w, w, groups=2, eps=EPS)
    with pytest.raises(ShapeError, match=r"parts must be \[B,H\+1,W\+1,16\]"):
        interleave(torch.ones(1, 3, 3, 4, device=device), w)
    with pytest.raises(ConfigError, match=r"levels must be odd and at least 3, got \[4\]"):
        codes(torch.zeros(1, 1, dtype=torch.int64, device=device), [4])
