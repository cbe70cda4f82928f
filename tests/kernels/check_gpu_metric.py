"""LPIPS around the kernels against the reference metric; run by test_kernels.py."""

import pytest
import torch

from vlarft.engine.compare import embed, pair_distances
from vlarft.engine.gpu_metric import GpuLPIPS
from vlarft.models import LPIPS

INDEX = torch.tensor([0, 3, 3, 1, 2]), torch.tensor([1, 0, 1, 1, 0])


def network(net):
    """Real weights where they are bundled."""
    return LPIPS.load("alex") if net == "alex" else LPIPS.random(net, seed=1)


def images(count, height, width, seed, device):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, 3, height, width, generator=generator).to(device)


def own_pairs(metric, a, b):
    i, j = (index.to(a.device) for index in INDEX)
    return metric.pairs((a, metric.features(a)), (b, metric.features(b)), i, j)


@torch.inference_mode()
@pytest.mark.parametrize(("net", "size"), [("alex", (64, 64)), ("alex", (37, 53)),
                                           ("squeeze", (37, 53)), ("vgg", (32, 32))])  # fmt: skip
def test_distances_are_those_of_the_reference(net, size, device):
    lpips = network(net).to(device)
    a, b = images(4, *size, 1, device), images(2, *size, 2, device)
    i, j = (index.to(device) for index in INDEX)
    near, far = own_pairs(GpuLPIPS(lpips), a, b)
    plain = (a, embed(lpips, a, 4)), (b, embed(lpips, b, 4))
    plain_near, plain_far = pair_distances(lpips, *plain, i, j, batch=2)
    truth = (a[i].double() - b[j].double()).abs().mean((1, 2, 3))
    assert (near - truth).abs().max() <= max(2 * (plain_near - truth).abs().max(), 1e-7)
    assert torch.allclose(far, plain_far, rtol=1e-5, atol=1e-7)


@torch.inference_mode()
def test_bfloat16_is_as_exact_as_plain_torch(device):
    lpips, low = network("alex").to(device), network("alex").to(device, torch.bfloat16)
    a, b = images(4, 64, 64, 1, device), images(2, 64, 64, 2, device)
    _, far = own_pairs(GpuLPIPS(lpips, torch.bfloat16), a, b)
    i, j = (index.to(device) for index in INDEX)
    truth, plain = lpips(a[i], b[j]), low(a[i].bfloat16(), b[j].bfloat16())
    assert (far - truth).abs().max() <= 2 * (plain - truth).abs().max()
    assert torch.equal(far.argsort(), truth.argsort())


@torch.inference_mode()
def test_one_pass_over_frames_with_one_reference_each(device):
    lpips = network("alex").to(device)
    metric, a, b = GpuLPIPS(lpips), images(3, 37, 53, 1, device), images(2, 37, 53, 2, device)
    target, each = torch.tensor([1, 0, 1], device=device), torch.arange(3, device=device)
    reference = (b, metric.features(b))
    near, far = metric.distances(4 * a - 1, reference, None, target)  # beyond [0, 1]
    a = (4 * a - 1).clamp(0, 1)
    same = metric.pairs((a, metric.features(a)), reference, each, target)
    assert torch.equal(near, same[0])
    assert torch.equal(far, same[1])


@torch.inference_mode()
def test_equal_images_are_exactly_zero_apart(device):
    a = images(4, 64, 64, 1, device)
    near, far = own_pairs(GpuLPIPS(network("alex").to(device)), a, torch.stack((a[3], a[1])))
    assert (near == 0).tolist() == (far == 0).tolist() == [False, True, False, True, False]


@torch.inference_mode()
def test_the_network_it_was_made_from_is_left_alone(device):
    lpips = network("alex").to(device)
    before = {k: v.clone() for k, v in lpips.state_dict().items()}
    metric, a = GpuLPIPS(lpips), images(2, 64, 64, 1, device)
    first = [level.clone() for level in metric.features(a)]
    metric.features(images(2, 64, 64, 2, device))
    assert all(torch.equal(x, y) for x, y in zip(first, metric.features(a), strict=True))
    assert all(torch.equal(v, before[k]) for k, v in lpips.state_dict().items())
