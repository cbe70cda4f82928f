"""The claim and its control: several seeds, two arms that differ in one thing."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vlarft.config import dump_config
from vlarft.data.windows import Windows
from vlarft.engine import RolloutEngine
from vlarft.errors import ConfigError
from vlarft.files import write_json
from vlarft.rft.config import RFTConfig
from vlarft.rft.evaluation import paired_difference, paired_interval
from vlarft.rft.parallel import ALONE, Ranks
from vlarft.rft.policy import TrainablePolicy, as_module
from vlarft.rft.run import RunResult, run_rft, stacked
from vlarft.rft.summary import before_after


def run_experiment(
    engine: RolloutEngine,
    policy: TrainablePolicy,
    training: Windows,
    validation: Windows,
    run: Path,
    config: RFTConfig,
    *,
    seeds: Sequence[int] = (0, 1, 2),
    ranks: Ranks = ALONE,
) -> dict[str, Any]:
    """Several seeds, each with a treatment and a control arm from the same starting policy.

    The arms of a seed differ in one thing: the control's advantages are permuted within each group
    (spec 11.13). Each arm is a run folder `run/seed-S/{treatment,control}` and resumes by itself.

    Args:
        engine: the world model.
        policy: starting point; holds the last seed's treatment afterwards.
        training: windows that steps draw from.
        validation: windows of other episodes.
        run: folder of the experiment, gets `summary.json`.
        config: of the treatment; `seed` and `control` are set here.
        seeds: one or more, all different.
        ranks: the processes that divide the scenes of each step.

    Returns:
        The summary: distances before and after (means over seeds and windows), `distance_change`,
        `control_change` and their `difference` (relative, 95% interval over episodes and seeds).

    Raises:
        ConfigError: no seeds, or repeated ones.
    """
    if not seeds or len(set(seeds)) != len(seeds):
        raise ConfigError(f"seeds {list(seeds)}: expected one or more different numbers")
    module = as_module(policy)
    base = {name: value.clone() for name, value in module.state_dict().items()}
    arms: dict[str, list[RunResult]] = {"control": [], "treatment": []}
    before = None  # every run starts from the same policy: the first one evaluates it
    for seed in seeds:
        for arm, results in arms.items():
            module.load_state_dict(base)
            arm_config = config.model_copy(
                update={"seed": seed, "control": "permuted" if arm == "control" else "none"}
            )
            folder = run / f"seed-{seed}" / arm
            result = run_rft(
                engine,
                policy,
                training,
                validation,
                folder,
                arm_config,
                before=before,
                ranks=ranks,
                title=f"{arm} seed {seed}",
            )
            results.append(result)
            before = result.before
    if ranks.first:
        dump_config(config, run / "config.yaml")
    treatment, control = (stacked(arms[arm], "distance") for arm in ("treatment", "control"))
    episodes = arms["treatment"][0].before.episode
    results = arms["treatment"]
    summary = {
        "kind": "rft-experiment",
        "steps": config.steps,
        "metric": config.reward.metric,
        "windows": len(episodes),
        "episodes": len(set(episodes.tolist())),
        **before_after([r.before for r in results], [r.after for r in results]),
        "control_distance_after": float(control[1].mean()),
        "control_change": paired_interval(*control, episodes).to_dict(),
        "difference": paired_difference(treatment, control, episodes).to_dict(),
        "control_action_l1_after": float(stacked(arms["control"], "action_l1")[1].mean()),
        "seconds": sum(result.seconds for pair in arms.values() for result in pair),
        "seeds": [
            {"seed": seed, **{arm: arms[arm][number].summary for arm in arms}}
            for number, seed in enumerate(seeds)
        ],
    }
    if ranks.first:
        write_json(run / "summary.json", summary)
    return summary
