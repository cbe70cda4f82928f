"""Native distances against the reference metric and float64."""

import copy

import pytest
import torch

from vlarft import _native
from vlarft.engine.compare import embed, pair_distances
from vlarft.engine.native_metric import NativeLPIPS
from vlarft.engine.team import Team
from vlarft.errors import ShapeError
from vlarft.models import LPIPS
from vlarft.models.lpips import NETS

INDEX = torch.tensor([0, 3, 3, 1, 2]), torch.tensor([1, 0, 1, 1, 0])


def network(net):
    """Real weights where they are bundled; random positive heads otherwise."""
    return LPIPS.load("alex") if net == "alex" else LPIPS.random(net, seed=1)


def images(count, height, width, seed):
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(seed))


@torch.inference_mode()
def distances(metric, a, b, index=INDEX):
    return pair_distances(
        metric, (a, embed(metric, a, 3)), (b, embed(metric, b, 3)), *index, batch=2
    )


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("size", [(64, 64), (37, 53)])
def test_distances_are_as_exact_as_plain_torch(net, size):
    lpips = network(net)
    a, b = images(4, *size, seed=1), images(2, *size, seed=2)
    near, far = distances(NativeLPIPS(lpips, Team()), a, b)
    plain_near, plain_far = distances(lpips, a, b)
    i, j = INDEX
    truth = (a[i].double() - b[j].double()).abs().mean((1, 2, 3))
    assert (near - truth).abs().max() <= max(2 * (plain_near - truth).abs().max(), 1e-8)
    assert torch.allclose(far, plain_far, rtol=1e-5, atol=1e-7)
    # the sums alone, on the same features in float64
    native = NativeLPIPS(lpips, Team())
    with torch.inference_mode():
        maps = [[level.double() for level in native.features(x)] for x in (a, b)]
    exact = torch.zeros(5, dtype=torch.float64)
    for x, y, weight in zip(*maps, lpips.lins, strict=True):
        x, y = (f / (f.square().sum(-1, keepdim=True).sqrt() + 1e-10) for f in (x, y))
        exact += ((x[i] - y[j]).square() * weight.double()).sum(-1).mean(-1)
    assert (far - exact).abs().max() <= max(2 * (plain_far - exact).abs().max(), 1e-6 * exact.max())


def test_equal_images_are_exactly_zero_apart():
    lpips = network("alex")
    a = images(4, 64, 64, seed=1)
    b = torch.stack((a[3], a[1]))
    near, far = distances(NativeLPIPS(lpips, Team()), a, b)
    assert (near == 0).tolist() == (far == 0).tolist() == [False, True, False, True, False]


def test_the_network_it_was_made_from_is_left_alone():
    lpips = network("alex")
    before = copy.deepcopy(lpips.state_dict())
    native = NativeLPIPS(lpips, Team())
    a = images(2, 64, 64, seed=1)
    with torch.inference_mode():
        native.features(a)
        first = [level.clone() for level in native.features(a)]
        native.features(images(2, 64, 64, seed=2))
        assert all(torch.equal(x, y) for x, y in zip(first, native.features(a), strict=True))
    assert all(torch.equal(v, before[k]) for k, v in lpips.state_dict().items())
    assert not any(getattr(layer, "inplace", False) for layer in lpips.features_net)


def test_wrong_indices_are_refused():
    workers, a, out = _native.Workers(1), torch.ones(2, 4), torch.zeros(1)
    index, beyond = torch.tensor([0]), torch.tensor([2])
    with pytest.raises(ShapeError, match=r"second must lie in \[0, 2\), got 2"):
        _native.l1(workers, a, a, index, beyond, out)
    maps = torch.ones(2, 3, 4)
    with pytest.raises(ShapeError, match=r"first must lie in \[0, 2\), got 2"):
        _native.perceptual(workers, maps, maps, torch.ones(4), beyond, index, out)
    with pytest.raises(ShapeError, match="weight must be"):
        _native.perceptual(workers, maps, maps, torch.ones(5), index, index, out)


@pytest.mark.parametrize("net", NETS)
@torch.inference_mode()
def test_maps_that_are_not_kept_give_the_same_distances(net):
    """Frame after frame in the same memory, of changing sizes and numbers; kept maps stay."""
    lpips = network(net)
    native, b = NativeLPIPS(lpips, Team()), images(2, 64, 64, seed=2)
    reference = (b, native.features(b))
    for count, seed in ((11, 3), (2, 4), (5, 5)):
        a = images(count, 64, 64, seed=seed)
        image = torch.arange(count).repeat(2)  # not in order, every frame twice
        target = torch.cat((torch.zeros(count, dtype=torch.int64), torch.ones_like(image[:count])))
        kept = (a, native.features(a))
        near, far = native.distances(a, reference, image, target)
        expected = native.pairs(kept, reference, image, target)
        assert torch.equal(near, expected[0])
        assert torch.allclose(far, expected[1], rtol=1e-6)
        small = images(3, 37, 53, seed=seed)
        other = (small[:1], native.features(small[:1]))
        same = native.distances(small, other, torch.arange(3), torch.zeros(3, dtype=torch.int64))
        assert float(same[0][0]) == float(same[1][0]) == 0
