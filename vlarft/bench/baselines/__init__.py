"""What the engine is compared with, stage by stage. To add a baseline, add one line here."""

from vlarft.bench.baselines import hf, hf_prefill, lpips_pairs, published, reference, static
from vlarft.bench.measure import Baseline

BASELINES: dict[str, dict[str, Baseline]] = {
    "imagine": {
        "hf": Baseline(hf.build, "transformers, cache kept, whole batch"),
        "static": Baseline(static.build, "transformers, static cache, torch.compile"),
        "published": Baseline(published.build, "transformers, prefilled again every frame"),
        "torch2": Baseline(reference.imagine, "our two-level cache in plain torch"),
    },
    "prefill": {
        "hf": Baseline(hf_prefill.build, "transformers' forward, prompts once a scene"),
        "torch2": Baseline(reference.prefill, "our reference back end"),
    },
    "encode": {"reference": Baseline(reference.encode, "our reference back end")},
    "decode": {"reference": Baseline(reference.decode, "our reference back end")},
    "compare": {
        "lpips": Baseline(lpips_pairs.build, "both images of a pair through the backbone"),
        "reference": Baseline(reference.compare, "our reference back end"),
    },
    "rollout": {"reference": Baseline(reference.rollout, "our reference back end")},
}
"""Baselines by stage and name."""
