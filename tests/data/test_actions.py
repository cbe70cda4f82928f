import numpy as np
import pytest
import torch

from vlarft.data.actions import (
    ActionBinner,
    ActionNormalizer,
    ProprioceptionNormalizer,
    binarize_gripper,
)
from vlarft.errors import DataError, ShapeError

LOW = [-0.5, -1.0, -1.0]
HIGH = [0.5, 1.0, 1.0]


def test_bins_match_the_official_formula():
    rng = np.random.default_rng(0)
    low, high = np.r_[np.full(6, -0.9375), -1.0], np.r_[np.full(6, 0.9375), 1.0]
    raw = rng.uniform(-1.2, 1.2, (5, 8, 7)).astype(np.float32)
    executed = raw.copy()
    executed[..., 6] = np.where(raw[..., 6] > 0, 1, -1)
    unit = np.clip((executed - low) / (high - low + 1e-8), 0, 1)
    expected = np.minimum(np.floor(256 * unit), 255).astype(np.int64)
    bins = ActionBinner(low, high).bins(torch.from_numpy(raw))
    assert bins.dtype == torch.int64
    assert (bins.numpy() == expected).mean() > 0.999  # float32 against float64 at a bin's edge
    assert np.abs(bins.numpy() - expected).max() <= 1
    assert set(bins[..., 6].flatten().tolist()) == {0, 255}


def test_ends_of_the_range_and_beyond():
    binner = ActionBinner(LOW, HIGH, 10)
    raw = torch.tensor([[-0.5, -9.0, 0.0], [0.5, 9.0, 1e-6], [0.0, 0.19, -0.2]])
    assert binner.bins(raw).tolist() == [[0, 0, 0], [9, 9, 9], [5, 5, 0]]
    assert ActionBinner([0.2, -1], [0.2, 1], 4).bins(torch.tensor([0.2, 1.0])).tolist() == [0, 3]


def test_gripper_zero_opens_and_nothing_else_changes():
    raw = torch.tensor([[0.3, 0.0], [0.3, 0.01], [0.3, -7.0]])
    assert binarize_gripper(raw).tolist() == [
        [pytest.approx(0.3), -1.0],
        [pytest.approx(0.3), 1.0],
        [pytest.approx(0.3), -1.0],
    ]


def test_normalize_and_back():
    normalizer = ActionNormalizer([-0.5, 0.2, -1.0], [0.3, 0.2, 1.0])
    raw = torch.tensor([[-0.5, 0.2, 0.7], [0.3, 0.2, -1.0], [-0.1, 0.2, 5.0]])
    normalized = normalizer.normalize(raw)
    torch.testing.assert_close(
        normalized, torch.tensor([[-1.0, 0.0, 0.7], [1.0, 0.0, -1.0], [0.0, 0.0, 5.0]])
    )
    torch.testing.assert_close(normalizer.denormalize(normalized), raw)
    # Outside the quantiles: normalize clips, denormalize does not; a constant dimension stays.
    assert normalizer.normalize(torch.tensor([9.0, 9.0, 0.0])).tolist() == [1.0, 0.0, 0.0]
    torch.testing.assert_close(
        normalizer.denormalize(torch.tensor([2.0, 3.0, 0.0])), torch.tensor([0.7, 0.2, 0.0])
    )


def test_denormalize_is_differentiable():
    normalized = torch.zeros(3, requires_grad=True)
    ActionNormalizer([-0.5, 0.2, -1.0], [0.3, 0.2, 1.0]).denormalize(normalized).sum().backward()
    torch.testing.assert_close(normalized.grad, torch.tensor([0.4, 0.0, 1.0]))


def test_proprioception_scales_every_entry():
    normalizer = ProprioceptionNormalizer([0.0, 1.0, 2.0], [2.0, 1.0, 4.0])
    values = torch.tensor([[0.5, 1.0, 4.0], [9.0, 3.0, 3.0]])
    torch.testing.assert_close(
        normalizer.normalize(values), torch.tensor([[-0.5, 0.0, 1.0], [1.0, 0.0, 0.0]])
    )


def test_errors():
    binner = ActionBinner(LOW, HIGH)
    with pytest.raises(ShapeError, match=r"expected floating point \[\.\.\., 3\]"):
        binner.bins(torch.zeros(2, 4))
    with pytest.raises(ShapeError):
        binner.bins(torch.zeros(2, 3, dtype=torch.int64))
    with pytest.raises(DataError, match="NaN"):
        binner.bins(torch.tensor([0.0, float("nan"), 0.0]))
    with pytest.raises(DataError, match="low <= high"):
        ActionBinner(HIGH, LOW)
    with pytest.raises(DataError, match="one length"):
        ActionNormalizer(LOW, HIGH[:2])
    with pytest.raises(DataError, match="2 or more"):
        ActionBinner(LOW, HIGH, 1)
