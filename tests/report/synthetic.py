"""A run folder like those of `vlarft demo`, filled with invented numbers."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from vlarft.report.scenes import SceneFrames, save_scenes

STEPS = 50


def change(relative: float, width: float) -> dict[str, Any]:
    return {"relative": relative, "interval": [relative - width, relative + width]}


def arm_summary(relative: float, action: float) -> dict[str, Any]:
    return {
        "distance_before": 0.1412,
        "distance_after": 0.1412 * (1 + relative),
        "distance_change": change(relative, 0.03),
        "action_l1_before": 0.2104,
        "action_l1_after": 0.2104 * (1 + action),
        "action_l1_change": change(action, 0.01),
        "seconds": 52.0,
    }


def world_summary() -> dict[str, Any]:
    levels = {"world_model": 16.2, "swapped": 14.4, "copy": 11.9, "tokenizer": 19.5}
    quality = {
        method: {
            region: {
                "psnr": [level + lift + 4 - 0.5 * t for t in range(1, 9)],
                "psnr_pooled": [level + lift + 3.8 - 0.5 * t for t in range(1, 9)],
                "ssim": [0.93 - 0.01 * t for t in range(1, 9)],
                "lpips": [0.01 * t for t in range(1, 9)],
            }
            for region, lift in (("all", 9.0), ("moving", 0.0))
        }
        for method, level in levels.items()
    }

    def compare(against: str, region: str, value: float) -> dict[str, Any]:
        d = {"value": value, "interval": [value - 0.6, value + 0.6]}
        return {"against": against, "region": region, "frame": 8, "difference": d, "pooled": d}

    return {
        "kind": "world-model",
        "windows": 128,
        "moving_windows": 126,
        "episodes": 60,
        "frames": 8,
        "metric": "lpips-alex",
        "sampling": {},
        "quality": quality,
        "comparisons": [
            compare("copy", "moving", 4.3),
            compare("swapped", "moving", 1.8),
            compare("copy", "all", 1.4),
        ],
        "listens_to_actions": True,
        "not_below_copying": True,
    }


def scenes(count: int = 2) -> list[SceneFrames]:
    size, frames = 64, 8

    def video(dx: float, blur: float) -> Any:
        y, x = np.mgrid[0:size, 0:size]
        out = np.zeros((frames, size, size, 3), dtype=np.uint8)
        for t in range(frames):
            table = np.stack([170 + 0.4 * y, 150 + 0.2 * x, 120 + 0 * x], -1)
            arm = np.exp(-(((x - 18 - dx * t) ** 2 + (y - 20 - 2 * t) ** 2) / (60 + blur)))[
                ..., None
            ]
            box = (np.abs(x - 44) < 7) & (np.abs(y - 46) < 6)
            picture = table * (1 - arm) + np.array([40, 44, 52]) * arm
            picture[box] = [176, 62, 48]
            out[t] = np.clip(picture, 0, 255)
        return out

    return [
        SceneFrames(
            title=(
                "pick up the tomato sauce and place it in the basket",
                "pick up the milk and place it in the basket",
            )[i],
            note=f"validation episode demo_{3 + 7 * i}, from step {24 * (i + 1)}",
            pictures={
                "recorded": video(3, 0),
                "expert": video(3, 15),
                "before": video(1.6, 15),
                "after": video(2.7, 15),
            },
            distances={"before": 0.151 - 0.01 * i, "after": 0.117 - 0.01 * i},
        )
        for i in range(count)
    ]


def write_experiment(run: Path, effect: float = -0.164) -> Path:
    """A finished experiment of 3 seeds with two arms."""
    run.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    for seed in range(3):
        for arm, total in (("treatment", effect), ("control", -0.021)):
            folder = run / f"seed-{seed}" / arm
            folder.mkdir(parents=True)
            lines = []
            for step in range(STEPS + 1):
                progress = 1 - math.exp(-step / 22)
                record: dict[str, Any] = {"step": step}
                if step:
                    record |= {
                        "reward_mean": -0.16 * (1 + total * progress)
                        + 0.008 * random.standard_normal(),
                        "group_spread": 0.021 + 0.002 * random.standard_normal(),
                        "sigma_mean": 0.126 - 0.0002 * step,
                        "ratio_max": 1.0,
                        "anchor_loss": 0.31 + 0.02 * random.standard_normal(),
                        "gradient_norm": 0.8 + 0.1 * random.standard_normal(),
                        "l1": None,
                        "seconds": {
                            "encode": 0.02,
                            "sample": 0.04,
                            "rollout": 0.61,
                            "update": 0.13,
                            "total": 0.8,
                        },
                    }
                if step % 10 == 0:
                    record["validation_distance"] = (
                        0.1412 * (1 + total * progress) + 0.0008 * random.standard_normal()
                    )
                    record["validation_action_l1"] = 0.2104 * (1 + 0.15 * total * progress)
                lines.append(json.dumps(record))
            (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    summary = {
        "kind": "rft-experiment",
        "steps": STEPS,
        "metric": "lpips-alex",
        "windows": 64,
        "episodes": 20,
        **arm_summary(effect, -0.031),
        "control_change": change(-0.021, 0.02),
        "difference": change(effect + 0.021, 0.035),
        "seconds": 312.0,
        "seeds": [
            {
                "seed": s,
                "treatment": arm_summary(effect + 0.01 * s, -0.03),
                "control": arm_summary(-0.02, -0.01),
            }
            for s in range(3)
        ],
        "world_model": world_summary(),
        "stage_seconds": {"world-model evaluation": 41.0},
        "command": "vlarft demo",
    }
    (run / "summary.json").write_text(json.dumps(summary))
    (run / "config.yaml").write_text("steps: 50\nscenes: 4\nrollouts: 8\n")
    (run / "environment.json").write_text(
        json.dumps({"vlarft": "0.1.0", "cpu": "A <processor> & more", "cores": 2})
    )
    save_scenes(run, scenes())
    return run
