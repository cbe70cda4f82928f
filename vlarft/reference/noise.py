"""Addressed noise: Gumbel variables as a pure function of where they are used.

Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) in vectorised
int64 arithmetic. The address is (seed, scene key, member, frame * K + position, token id), so a
token depends on its own past only: not on batch mates, batch splits or the order of computation.
"""

import torch
from torch import Tensor

SHARED_MEMBER = 0xFFFFFFFF  # every member of a group, the expert too, under noise="shared"
EXPERT_MEMBER = 0xFFFFFFFE  # the expert under noise="independent"

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10


def philox(seed: int, counter: tuple[Tensor, Tensor, Tensor, Tensor]) -> tuple[Tensor, ...]:
    """Philox4x32-10.

    Args:
        seed: 64-bit key; its low word is the first key word.
        counter: four int64 tensors of values in [0, 2^32) that broadcast with each other.

    Returns:
        Four int64 tensors of 32-bit results, in the counter's broadcast shape.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = seed & _MASK, (seed >> 32) & _MASK
    for _ in range(_ROUNDS):
        # int64 products wrap, which leaves all 64 bits of the unsigned product in place.
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0 = ((p1 >> 32) & _MASK) ^ c1 ^ k0
        c2 = ((p0 >> 32) & _MASK) ^ c3 ^ k1
        c1, c3 = p1 & _MASK, p0 & _MASK
        k0, k1 = (k0 + _KEY_STEPS[0]) & _MASK, (k1 + _KEY_STEPS[1]) & _MASK
    return tuple(torch.broadcast_tensors(c0, c1, c2, c3))


def gumbel(seed: int, keys: Tensor, members: Tensor, positions: Tensor, tokens: int) -> Tensor:
    """Standard Gumbel noise of every token id at every address.

    Args:
        seed: 64-bit seed.
        keys: scene keys, int64 [P] in [0, 2^32).
        members: member words, int64 [M] in [0, 2^32).
        positions: frame * K + position, int64 [Q].
        tokens: number of token ids C.

    Returns:
        float32 [P, M, Q, C], finite: u = ((x >> 8) + 0.5) * 2^-24 and noise = -log(-log(u)) in
        float64, rounded once (in float32 the largest u would round to 1, whose noise is infinite).
    """
    blocks = torch.arange((tokens + 3) // 4, device=keys.device)
    words = philox(
        seed,
        (blocks, positions[:, None], members[:, None, None], keys[:, None, None, None]),
    )
    bits = torch.stack(words, dim=-1).flatten(-2)[..., :tokens]
    uniform = ((bits >> 8).double() + 0.5) * 2**-24
    return uniform.log_().neg_().log_().neg_().float()


def member_words(rollouts: int, expert: bool, shared: bool, device: torch.device) -> Tensor:
    """Member words of a group's rows, the expert last: int64 [1] when shared, else [N (+1)]."""
    if shared:
        return torch.tensor([SHARED_MEMBER], device=device)
    words = torch.arange(rollouts + int(expert), device=device)
    if expert:
        words[-1] = EXPERT_MEMBER
    return words
