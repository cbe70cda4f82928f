import math

import numpy as np
import pytest
import torch

from vlarft.reference.noise import EXPERT_MEMBER, SHARED_MEMBER, gumbel, member_words, philox

KNOWN_ANSWERS = [  # Random123's kat_vectors, philox4x32 with 10 rounds: counter, key, result
    (
        "00000000 00000000 00000000 00000000",
        "00000000 00000000",
        "6627e8d5 e169c58d bc57ac4c 9b00dbd8",
    ),
    (
        "ffffffff ffffffff ffffffff ffffffff",
        "ffffffff ffffffff",
        "408f276d 41c83b0e a20bc7c6 6d5451fd",
    ),
    (
        "243f6a88 85a308d3 13198a2e 03707344",
        "a4093822 299f31d0",
        "d16cfe09 94fdcceb 5001e420 24126ea1",
    ),
]


def words(text):
    return [int(word, 16) for word in text.split()]


@pytest.mark.parametrize(("counter", "key", "result"), KNOWN_ANSWERS)
def test_philox_gives_the_published_vectors(counter, key, result):
    low, high = words(key)
    parts = tuple(torch.tensor([word]) for word in words(counter))
    out = philox(low | high << 32, parts)
    assert [int(word) for word in out] == words(result)


def test_gumbel_is_addressed_as_specified():
    seed, key, member, place, tokens = 2**63 + 12345, 7, 0xFFFFFFFE, 515, 11
    noise = gumbel(seed, torch.tensor([key]), torch.tensor([member]), torch.tensor([place]), tokens)
    for token in range(tokens):
        counter = tuple(torch.tensor([c]) for c in (token // 4, place, member, key))
        x = int(philox(seed, counter)[token % 4])
        u = ((x >> 8) + 0.5) * 2**-24
        assert float(noise[0, 0, 0, token]) == pytest.approx(-math.log(-math.log(u)), rel=1e-6)


def test_gumbel_does_not_depend_on_its_neighbours():
    keys, members, places = torch.arange(3), torch.arange(4), torch.arange(5)
    whole = gumbel(9, keys, members, places, 10)
    part = gumbel(9, keys[2:], members[1:2], places[3:], 7)
    assert torch.equal(whole[2:, 1:2, 3:, :7], part)
    assert not torch.equal(whole, gumbel(10, keys, members, places, 10))
    assert whole.flatten().unique().numel() == whole.numel()


def test_gumbel_has_the_moments_of_its_distribution():
    noise = gumbel(1, torch.arange(4), torch.arange(5), torch.arange(50), 100).double()
    assert noise.isfinite().all()
    assert float(noise.mean()) == pytest.approx(0.57722, abs=0.01)
    assert float(noise.var()) == pytest.approx(math.pi**2 / 6, abs=0.03)


def test_native_core_draws_the_same_noise():
    native = pytest.importorskip("vlarft._native", reason="vlarft._native is not built")
    keys, members, places, codes = [0, 5, 2**32 - 1], [SHARED_MEMBER, 3], [0, 511], 45
    noise = gumbel(77, torch.tensor(keys), torch.tensor(members), torch.tensor(places), codes)
    rows = [(q, m, p) for p in keys for m in members for q in places]
    out = np.empty((len(rows), codes), dtype=np.float32)
    native.gumbel(np.array(rows, dtype=np.uint32), out, 77)
    assert np.allclose(noise.reshape(-1, codes).numpy(), out, rtol=1e-6, atol=1e-7)


def test_member_words():
    cpu = torch.device("cpu")
    assert member_words(3, True, True, cpu).tolist() == [SHARED_MEMBER]
    assert member_words(2, True, False, cpu).tolist() == [0, 1, EXPERT_MEMBER]
    assert member_words(2, False, False, cpu).tolist() == [0, 1]
