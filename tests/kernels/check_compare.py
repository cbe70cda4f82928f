"""Kernels of the compare stage against plain formulas in float64; run by test_kernels.py."""

import random

import pytest
import torch

from tests.kernels.exactness import assert_as_exact
from vlarft.errors import ShapeError
from vlarft.kernels.compare.average import average
from vlarft.kernels.compare.bias_relu import bias_relu
from vlarft.kernels.compare.perceptual import perceptual
from vlarft.kernels.compare.prepare import prepare


class Case:
    """Numbers of random shape, dtype and size, drawn from a seed."""

    def __init__(self, seed):
        rng = self.rng = random.Random(seed)
        self.generator = torch.Generator().manual_seed(seed)
        self.dtype = rng.choice((torch.float32, torch.bfloat16))
        self.first, self.second, self.pairs = (rng.choice((1, 2, 3)) for _ in range(3))
        self.image = self.index(self.first)
        self.target = self.index(self.second)

    def index(self, size):
        return torch.randint(0, size, (self.pairs,), generator=self.generator)

    def normal(self, *shape):
        return torch.randn(*shape, generator=self.generator)


@pytest.mark.parametrize("seed", range(40))
def test_prepare(seed, device):
    case = Case(seed)
    width = case.rng.choice((3, 3, 1, 5))
    height, columns = case.rng.choice((1, 7, 32, 33)), case.rng.choice((1, 5, 32, 41))
    a = (0.5 + case.normal(case.first, width, height, columns)).to(case.dtype)
    b = (0.5 + case.normal(case.second, width, height, columns)).to(case.dtype)
    if case.rng.random() < 0.5:
        a = a.contiguous(memory_format=torch.channels_last)
    factor, summand = case.normal(width), case.normal(width)
    out = case.rng.choice((torch.float32, torch.bfloat16))
    given = [x.to(device) for x in (factor, summand, b, case.target, case.image)]
    inputs, l1 = prepare(
        a.to(device), given[0], given[1], dtype=out, reference=given[2], target=given[3],
        image=given[4],
    )  # fmt: skip
    shape = (1, width, 1, 1)

    def scaled(x, factor, summand):
        return x[case.image].clamp(0, 1) * factor.view(shape) + summand.view(shape)

    assert inputs.permute(0, 2, 3, 1).is_contiguous()
    truth = scaled(a.double(), factor.double(), summand.double())
    assert_as_exact(inputs, scaled(a.float(), factor, summand).to(out), truth, f"case {seed}")

    def distance(a, b):
        a, b = a.clamp(0, 1)[case.image], b.clamp(0, 1)[case.target]
        return (a - b).abs().mean((1, 2, 3))

    truth = distance(a.double(), b.double())
    assert_as_exact(l1, distance(a.float(), b.float()), truth, f"case {seed}")
    only, nothing = prepare(a.to(device), given[0], given[1], dtype=out)
    assert nothing is None
    assert torch.equal(only[case.image], inputs)
    nothing, same = prepare(a[case.image].to(device), reference=given[2], target=given[3])
    assert nothing is None
    assert torch.equal(same, l1)


def test_prepare_keeps_nan_and_clamps_infinity(device):
    x = torch.tensor([float("nan"), float("inf"), -float("inf"), 0.25], device=device)
    x = x.view(1, 1, 2, 2)
    one, zero = torch.ones(1, device=device), torch.zeros(1, device=device)
    at = torch.zeros(1, dtype=torch.int64, device=device)
    inputs, l1 = prepare(x, one, zero, reference=x, target=at)
    assert str(inputs.flatten().tolist()) == "[nan, 1.0, 0.0, 0.25]"
    assert bool(l1.isnan().all())


@pytest.mark.parametrize("seed", range(60))
def test_perceptual(seed, device):
    case = Case(seed)
    width = case.rng.choice((1, 3, 64, 65, 100, 192, 512))
    pixels = case.rng.choice((1, 2, 16, 63, 65, 225))
    size = case.rng.choice((1, 1, 1e-15, 1e8))
    a = (case.normal(case.first, pixels, width) * size).to(case.dtype)
    b = (case.normal(case.second, pixels, width) * size).to(case.dtype)
    a[0, 0] = 0  # a pixel without features
    weight = case.normal(width).abs()

    def distance(a, b, weight):
        a, b = (x / (x.square().sum(-1, keepdim=True).sqrt() + 1e-10) for x in (a, b))
        return ((a[case.image] - b[case.target]).square() * weight).sum(-1).mean(-1)

    out = torch.full((case.pairs,), 0.5, device=device)
    given = [x.to(device) for x in (a, b, weight, case.image, case.target)]
    perceptual(*given, out)
    truth = 0.5 + distance(a.double(), b.double(), weight.double())
    assert_as_exact(out, 0.5 + distance(a.float(), b.float(), weight), truth, f"case {seed}")


def test_equal_maps_are_exactly_zero_apart(device):
    a = torch.randn(3, 37, 65, generator=torch.Generator().manual_seed(1)).to(device)
    at, out = torch.arange(3, device=device), torch.zeros(3, device=device)
    perceptual(a, a.clone(), torch.ones(65, device=device), at, at, out)
    assert not bool(out.any())


def test_results_do_not_depend_on_batch_mates(device):
    g = torch.Generator().manual_seed(2)
    a, b = (torch.randn(4, 300, 65, generator=g).to(device) for _ in range(2))
    x, y = (torch.rand(4, 3, 41, 37, generator=g).to(device) for _ in range(2))
    weight = torch.rand(65, generator=g).to(device)
    image, target = torch.tensor([3, 0, 1, 3, 2]), torch.tensor([1, 1, 0, 2, 3])

    def distances(i, j):
        far = torch.zeros(len(i), device=device)
        perceptual(a, b, weight, i.to(device), j.to(device), far)
        _, near = prepare(x, reference=y, image=i.to(device), target=j.to(device))
        return torch.stack((near, far))

    whole = distances(image, target)
    for n in range(5):
        assert torch.equal(distances(image[n : n + 1], target[n : n + 1])[:, 0], whole[:, n])


@pytest.mark.parametrize("seed", range(20))
def test_bias_relu(seed, device):
    case = Case(seed)
    shape = case.rng.choice((1, 5, 64, 129)), case.rng.choice((1, 3, 64, 65, 192))
    x, bias = case.normal(*shape).to(case.dtype), case.normal(shape[1])
    given = x.to(device, copy=True)
    assert bias_relu(given, bias.to(device)) is given
    truth = (x.double() + bias.double()).relu()
    assert_as_exact(given, (x + bias.to(case.dtype)).relu(), truth, f"case {seed}")


def test_bias_relu_keeps_nan(device):
    x, bias = torch.tensor([[float("nan"), -1.0]], device=device), torch.zeros(2, device=device)
    assert str(bias_relu(x, bias).tolist()) == "[[nan, 0.0]]"


def test_many_tiles_are_averaged(device):
    sums = torch.rand(2, 2500, generator=torch.Generator().manual_seed(3))
    out = torch.zeros(2, device=device)
    average(sums.to(device), 100, out)
    assert_as_exact(out, sums.sum(1) / 100, sums.double().sum(1) / 100, "2500 tiles")


def test_refusals(device):
    x, at = torch.ones(2, 3, 4, 4, device=device), torch.zeros(2, dtype=torch.int64, device=device)
    ones = torch.ones(3, device=device)
    with pytest.raises(ShapeError, match="give factor and summand together"):
        prepare(x, ones)
    with pytest.raises(ShapeError, match="or all four"):
        prepare(x)
    with pytest.raises(ShapeError, match=r"target must be \[2\]"):
        prepare(x, reference=x, target=at[:1])
    with pytest.raises(ShapeError, match="images must have rows without gaps"):
        prepare(x[..., :2], ones, ones)
    maps, out = torch.ones(2, 5, 3, device=device), torch.zeros(2, device=device)
    with pytest.raises(ShapeError, match=r"b must be \[J,5,3\]"):
        perceptual(maps, maps[:, :4], ones, at, at, out)
    with pytest.raises(ShapeError, match=r"out must be \[2\]"):
        perceptual(maps, maps, ones, at, at, out[:1])
