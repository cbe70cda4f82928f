"""Did a baseline compute what the engine computed? Checked before any ratio is given.

Two correct float programs may draw different tokens where the two best scores, or the mass at the
border of top_p, are closer than rounding. A token that differs is judged against a plain float32
forward of transformers on the tokens before it: it must be one that such rounding allows.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from vlarft.bench.cases import with_expert
from vlarft.bench.measure import Context, Samples, SomeRows
from vlarft.reference.noise import gumbel, member_words

# Allowed error of a score (logit / temperature + noise) and of a probability mass.
SCORE = {torch.float32: 1e-3, torch.bfloat16: 0.1}
MASS = {torch.float32: 1e-4, torch.bfloat16: 0.02}
_VALUES = {torch.float32: 1e-3, torch.bfloat16: 0.1}  # of pixels and distances, absolute
_EQUAL_CODES = 0.995
_MOST_JUDGED = 64  # differing tokens that are looked at


@dataclass(frozen=True)
class Verdict:
    """Result of a check.

    Attributes:
        same: whether ratios may be given.
        detail: facts for the JSON.
    """

    same: bool
    detail: dict[str, Any]


def same_tokens(context: Context, output: Any) -> Verdict:
    """Tokens [P,N,T,K] or `Samples` of a baseline against the engine's."""
    ours: Tensor = context.output
    if isinstance(output, Samples):
        places = [
            (p, n, frame, position)
            for (frame, position), drawn in output.tokens.items()
            for p, n in (drawn != ours[:, :, frame, position]).nonzero().tolist()
        ]
        theirs = {place: int(output.tokens[place[2], place[3]][place[:2]]) for place in places}
        compared = sum(drawn.numel() for drawn in output.tokens.values())
        equal_count = compared - len(places)
    else:
        # After its first difference a row goes its own way: only the first one is judged.
        places, theirs = [], {}
        compared = ours.numel()
        equal_count = int((output == ours).sum())
        for p, n in (output != ours).flatten(2).any(-1).nonzero().tolist():
            first = int((output[p, n] != ours[p, n]).flatten().nonzero()[0, 0])
            place = (p, n, *divmod(first, ours.shape[3]))
            places.append(place)
            theirs[place] = int(output[place])
    wrong = [
        place
        for place in places[:_MOST_JUDGED]
        if not _both_allowed(context, place, (int(ours[place]), theirs[place]))
    ]
    return Verdict(
        not wrong,
        {
            "tokens_compared": compared,
            "tokens_equal": equal_count,
            "differences_by_rounding": len(places) - len(wrong),
            "differences": len(wrong),
        },
    )


def _both_allowed(context: Context, place: tuple[int, ...], candidates: tuple[int, int]) -> bool:
    """Whether rounding explains that two ids were drawn at (scene, rollout, frame, position)."""
    given, dtype = context.material, context.options.dtype
    world, sampling = given.world, given.sampling
    scene, rollout, frame, position = place
    logits = _logits(context, scene, rollout, frame, position)
    score_error, mass_error = SCORE[dtype], MASS[dtype]
    if sampling.temperature == 0:
        best = float(logits.max())
        return all(float(logits[c]) >= best - 2 * score_error for c in candidates)
    logits = logits / sampling.temperature
    members = member_words(given.case.rollouts, False, sampling.noise == "shared", logits.device)
    place_word = torch.tensor([frame * world.frame_tokens + position], device=logits.device)
    member = members[rollout if len(members) > 1 else 0][None]
    key = torch.tensor([scene], device=logits.device)
    noise = gumbel(sampling.seed, key, member, place_word, world.frame_codes)
    scores = logits + noise[0, 0, 0]
    ordered, ids = torch.softmax(logits.double(), -1).sort(descending=True, stable=True)
    if sampling.top_k is not None:
        ordered = ordered[: sampling.top_k] / ordered[: sampling.top_k].sum()
        ids = ids[: sampling.top_k]
    before = torch.full_like(scores, torch.inf, dtype=torch.float64)
    before[ids] = ordered.cumsum(-1) - ordered
    before[ids[0]] = 0.0
    surely = before < sampling.top_p - mass_error
    surely[ids[0]] = True
    best = float(scores[surely].max())
    return all(
        float(before[c]) < sampling.top_p + mass_error
        and float(scores[c]) >= best - 2 * score_error
        for c in candidates
    )


def _logits(context: Context, scene: int, rollout: int, frame: int, position: int) -> Tensor:
    """Float32 logits of the frame codes at one place, given the engine's tokens before it."""
    given = context.material
    world = given.world
    prompt = world.prompt_ids(given.context[scene], given.first[scene])
    actions = world.action_ids(given.actions[scene, rollout])
    tokens = context.output[scene, rollout]
    past = torch.cat((actions[:frame], tokens[:frame]), dim=1).flatten()
    ids = torch.cat((prompt, past, actions[frame], tokens[frame, :position]))
    with torch.inference_mode():
        out = world.transformer(input_ids=ids[None], logits_to_keep=1).logits
    logits: Tensor = out[0, -1, : world.frame_codes].float()
    return logits


def nearly_equal(context: Context, output: Any) -> Verdict:
    """Codes must agree but for the few on a quantiser's border, which rounding decides."""
    share = float((context.output == output).float().mean())
    return Verdict(share >= _EQUAL_CODES, {"equal_share": share})


def close(context: Context, output: Any) -> Verdict:
    """Pixels or distances must agree within the rounding of the dtype."""
    ours: Tensor = context.output
    if isinstance(output, SomeRows):
        ours, output = output.of(ours), output.values
    error = float((ours - output).abs().max())
    return Verdict(error <= _VALUES[context.options.dtype], {"largest_difference": error})


def nothing(context: Context, output: Any) -> Verdict:  # noqa: ARG001 - the same form as others
    """Keys and values stay inside: `imagine` checks what comes of them."""
    return Verdict(True, {})


def same_rollout(context: Context, output: Any) -> Verdict:
    """Tokens by `same_tokens`, distances where a rollout's tokens and its expert's are equal.

    Tokens are [P,N+1,T,K] with the expert last, distances [P,N,T,2]; a sampled baseline judges the
    engine's own tokens.
    """
    (tokens, distances), (their_tokens, theirs) = context.output, output
    imagined = replace(context, material=with_expert(context.material), output=tokens)
    verdict = same_tokens(imagined, their_tokens)
    if isinstance(their_tokens, Samples):
        equal_rows = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
    else:
        equal_rows = (tokens == their_tokens).flatten(2).all(-1)
    rows = equal_rows[:, :-1] & equal_rows[:, -1:]
    if isinstance(theirs, SomeRows):
        distances, rows, theirs = theirs.of(distances), theirs.of(rows), theirs.values
    error = float((distances - theirs).abs()[rows].max()) if bool(rows.any()) else 0.0
    detail = {**verdict.detail, "rows_equal": int(rows.sum()), "largest_difference": error}
    return Verdict(verdict.same and error <= _VALUES[context.options.dtype], detail)
