import pytest
import torch

from vlarft.models.fsq import FSQ

OFFICIAL = (7, 5, 5, 5, 5)


@pytest.mark.parametrize("levels", [OFFICIAL, (5, 5, 5, 5), (3,), (5, 5, 3)])
def test_every_code_survives_the_round_trip(levels):
    fsq = FSQ(levels)
    indices = torch.arange(fsq.size)
    codes = fsq.codes(indices)
    assert codes.abs().max() == 1
    assert len(codes.unique(dim=0)) == fsq.size
    assert torch.equal(fsq.indices(codes), indices)


def test_first_level_is_the_least_significant_digit():
    codes = FSQ(OFFICIAL).codes(torch.tensor([0, 1, 7]))
    assert codes[1, 0] - codes[0, 0] == pytest.approx(1 / 3)
    assert codes[2, 1] - codes[0, 1] == pytest.approx(1 / 2)


def test_the_official_context_offset_changes_no_digit():
    fsq = FSQ(OFFICIAL)
    indices = torch.arange(fsq.size)
    assert torch.equal(fsq.codes(indices), fsq.codes(indices + fsq.size))


def test_quantising_reaches_every_level_and_passes_the_gradient():
    fsq = FSQ(OFFICIAL)
    z = torch.linspace(-4, 4, 2001)[:, None].expand(-1, 5).clone().requires_grad_(True)
    codes = fsq.quantize(z)
    assert [len(codes[:, d].detach().unique()) for d in range(5)] == list(OFFICIAL)
    codes.sum().backward()
    assert z.grad[1000].min() > 0.9  # d tanh / dz at 0, times 1 + 1e-3
