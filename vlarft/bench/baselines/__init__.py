"""What the engine is compared with, stage by stage. To add a baseline, add one line here."""

from vlarft.bench.baselines import frames, hf, hf_prefill, published, reference, static, whole
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
    "decode": {
        "diffusers": Baseline(frames.decode_diffusers, "diffusers' blocks, context once a scene"),
        "published": Baseline(frames.decode_published, "context again for every rollout"),
        "reference": Baseline(reference.decode, "our reference back end"),
    },
    "compare": {
        "lpips": Baseline(frames.compare_lpips, "both images of a pair through the backbone"),
        "reference": Baseline(reference.compare, "our reference back end"),
    },
    "judge": {
        "diffusers+lpips": Baseline(frames.judge_diffusers_lpips, "expert's frames once a scene"),
        "published": Baseline(frames.judge_published, "context and expert for every rollout"),
        "reference": Baseline(reference.judge, "our reference back end"),
    },
    "rollout": {
        "hf+diffusers+lpips": Baseline(whole.hf_diffusers_lpips, "the three one after another"),
        "published": Baseline(whole.published_whole, "as published, all stages"),
        "reference": Baseline(reference.rollout, "our reference back end"),
    },
}
"""Baselines by stage and name."""
