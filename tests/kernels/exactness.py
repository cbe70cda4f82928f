"""How exact a kernel is, in the same words in every check."""

import torch


def worst(x, truth):
    """Largest absolute error of x against float64."""
    return float((x.cpu().double() - truth).abs().max())


def assert_as_exact(out, honest, truth, case):
    """At most twice the error of plain torch in the same dtype, and two units in the last place.

    The units are of float32 unless the result is bfloat16: plain torch may happen to be exact where
    there are few numbers.
    """
    assert out.shape == truth.shape, case
    assert out.isfinite().all(), case
    unit = torch.finfo(torch.bfloat16 if out.dtype == torch.bfloat16 else torch.float32).eps
    allowed = 2 * worst(honest, truth) + 2 * unit * float(truth.abs().max())
    assert worst(out, truth) <= allowed, f"{case}: {worst(out, truth)} above {allowed}"
