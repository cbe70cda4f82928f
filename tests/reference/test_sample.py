import math

import pytest
import torch

from vlarft.reference.noise import gumbel
from vlarft.reference.sample import kept_ids, sample


def brute_force(probabilities, top_k, top_p):
    """The definition, one id at a time."""
    order = sorted(range(len(probabilities)), key=lambda i: (-probabilities[i], i))[:top_k]
    total = math.fsum(probabilities[i] for i in order)
    kept, before = set(), 0.0
    for i in order:
        if kept and before >= top_p:
            break
        kept.add(i)
        before += probabilities[i] / total
    return kept


@pytest.mark.parametrize("top_k", [None, 1, 3, 50])
@pytest.mark.parametrize("top_p", [1e-6, 0.3, 0.8, 0.999, 1.0])
def test_kept_ids_equal_brute_force(top_k, top_p):
    logits = torch.randn(20, 37, generator=torch.Generator().manual_seed(0)) * 3
    logits[::2] = logits[::2].round()  # many ties
    kept = kept_ids(logits, top_k, top_p)
    for row, mask in zip(torch.softmax(logits, -1).tolist(), kept, strict=True):
        assert set(mask.nonzero()[:, 0].tolist()) == brute_force(row, top_k, top_p)


def test_top_p_keeps_the_id_that_crosses():
    logits = torch.tensor([0.5, 0.25, 0.125, 0.125]).log()
    assert kept_ids(logits, None, 0.6).tolist() == [True, True, False, False]
    # exactly reached: the mass before the third id is 0.75, not below 0.75
    assert kept_ids(logits, None, 0.75).tolist() == [True, True, False, False]
    assert kept_ids(logits, None, 0.76).tolist() == [True, True, True, False]


def test_ties_keep_the_lower_id():
    logits = torch.zeros(6)
    assert kept_ids(logits, 2, 1.0).tolist() == [True, True, False, False, False, False]
    assert kept_ids(logits, None, 0.4).tolist() == [True, True, True, False, False, False]


def test_top_p_is_measured_on_what_top_k_kept():
    logits = torch.tensor([0.4, 0.3, 0.2, 0.1]).log()
    # of the first two ids the first has 0.571, so it alone reaches 0.5; of all four it has 0.4
    assert kept_ids(logits, 2, 0.5).tolist() == [True, False, False, False]
    assert kept_ids(logits, None, 0.5).tolist() == [True, True, False, False]


def test_an_overwhelming_id_is_kept_alone():
    logits = torch.tensor([0.0, 100.0, 0.0])
    assert kept_ids(logits, None, 1e-9).tolist() == [False, True, False]


def test_greedy_takes_the_lowest_of_equal_ids_and_ignores_noise():
    logits = torch.tensor([[1.0, 3.0, 3.0, 0.0]])
    noise = torch.tensor([[99.0, 0.0, 1.0, 99.0]])
    assert sample(logits, noise, temperature=0, top_k=None, top_p=0.8).tolist() == [1]


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    [(1.0, None, 1.0), (0.7, None, 0.8), (1.5, 4, 1.0), (1.0, 5, 0.7)],
)
def test_frequencies_follow_the_exact_probabilities(temperature, top_k, top_p):
    logits = torch.tensor([1.5, 0.0, 1.5, -1.0, 0.7, -3.0, 0.2])
    draws = 40_000
    noise = gumbel(3, torch.tensor([0]), torch.tensor([0]), torch.arange(draws), 7)[0, 0]
    settings = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    ids = sample(logits.expand(draws, 7), noise, **settings)
    counts = torch.bincount(ids, minlength=7).double()
    exact = torch.softmax(logits.double() / temperature, -1)
    kept = sorted(brute_force(exact.tolist(), top_k, top_p))
    dropped = [i for i in range(7) if i not in kept]
    assert counts[dropped].sum() == 0
    expected = exact[kept] / exact[kept].sum() * draws
    chi_square = float(((counts[kept] - expected) ** 2 / expected).sum())
    freedom = len(kept) - 1
    # mean + 5 standard deviations of the chi-square distribution
    assert chi_square < freedom + 5 * math.sqrt(2 * freedom)
