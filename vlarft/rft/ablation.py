"""Ablations: one change at a time, every result judged alike.

Each variation fine-tunes the same starting policy with a few settings changed. Whatever it is
rewarded with, it is judged by the base's evaluation on the same validation windows and noise, so
variations can be compared with the base in pairs.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from vlarft.config import Config, load_config
from vlarft.data.windows import Windows
from vlarft.engine import RolloutEngine
from vlarft.errors import ConfigError, DataError
from vlarft.models.flow_policy import FlowPolicy
from vlarft.rft.config import RFTConfig
from vlarft.rft.evaluation import Change, Evaluation, paired_difference, paired_interval
from vlarft.rft.judge import load_classifier
from vlarft.rft.run import RunResult, run_rft, stacked

BASE = "base"
SAME_BASE = 5e-4  # of its relative change: what another machine's rounding may do


class AblationConfig(Config):
    """What varies; preset `ablations`."""

    rft: str = "rft-small"
    """Preset or file of the base."""
    rft_set: tuple[str, ...] = ()
    """Overrides of it, `key=value`."""
    seeds: Annotated[tuple[int, ...], Field(min_length=1)] = (0,)
    """Seeds of every variation."""
    groups: dict[str, dict[str, tuple[str, ...]]]
    """Name of a group -> name of a variation -> its settings, `key=value`. No settings: the
    base, which runs once."""

    @model_validator(mode="after")
    def _names_are_folders(self) -> Self:
        for group, variations in self.groups.items():
            for name in (group, *variations):
                if not name or any(c in name for c in "/\\ \t\n") or name.startswith("."):
                    raise ValueError(f"'{name}' names a folder: no spaces, slashes, leading dots")
        return self


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table.

    Attributes:
        group: what is varied.
        name: the variation.
        settings: what differs from the base; empty for the base itself.
        distance: relative change of the imagined distance from before to after.
        action_l1: the same of the action error.
        to_base: change of the distance minus the base's; None for the base.
        seconds: of steps and evaluations, all seeds.
    """

    group: str
    name: str
    settings: tuple[str, ...]
    distance: Change
    action_l1: Change
    to_base: Change | None
    seconds: float

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """As written by `dataclasses.asdict`."""
        changes = {
            name: values[name] and Change(values[name]["relative"], tuple(values[name]["interval"]))
            for name in ("distance", "action_l1", "to_base")
        }
        return cls(**values | changes | {"settings": tuple(values["settings"])})


def run_ablations(
    engine: RolloutEngine,
    policy: Path,
    training: Windows,
    validation: Windows,
    run: Path,
    config: AblationConfig,
    say: Callable[[str], None] = lambda _: None,
) -> list[Row]:
    """Run every variation that is not finished yet, in the order of the configuration.

    Args:
        engine: the world model, with the base's metric.
        policy: folder of the starting policy.
        training: windows that steps draw from.
        validation: windows of other episodes.
        run: folder; each run is `run/NAME/seed-S` and resumes by itself.
        config: what varies.
        say: takes a line for each variation.

    Raises:
        ConfigError, CheckpointError: a setting is unknown, or names what cannot be loaded; before
            anything runs.
    """
    base_config = load_config(RFTConfig, config.rft, config.rft_set)
    plans = {name: _plan(config, settings) for _, name, settings in variations(config)}
    for changed in {wanted.exploration.settings() for wanted in plans.values()}:
        FlowPolicy.from_pretrained(policy, settings=changed)  # refuses before anything runs
    for wanted in plans.values():
        load_classifier(engine, wanted.reward)  # likewise
    results: dict[str, list[RunResult]] = {}
    before: dict[tuple[str, ...], Evaluation] = {}  # by starting policy
    for name, wanted in plans.items():
        done, changed = [], wanted.exploration.settings()
        for seed in config.seeds:
            start = FlowPolicy.from_pretrained(policy, settings=changed)
            result = run_rft(
                engine,
                start,
                training,
                validation,
                run / name / f"seed-{seed}",
                wanted.model_copy(update={"seed": seed}),
                before=before.get(changed),
                judged_by=base_config,
                title=f"{name} seed {seed}",
            )
            before[changed] = result.before
            done.append(result)
        results[name] = done
        change = paired_interval(*stacked(done, "distance"), done[0].before.episode)
        say(f"{name}: distance {_words(change)}")
    return [
        _row(group, name, settings, results)
        for group, members in config.groups.items()
        for name, settings in members.items()
    ]


def variations(config: AblationConfig) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """(group, folder, settings) of every run: the base, then what differs from it."""
    yield "", BASE, ()
    for group, members in config.groups.items():
        for name, settings in members.items():
            if settings:
                yield group, f"{group}-{name}", settings


def only(config: AblationConfig, names: Sequence[str]) -> AblationConfig:
    """The same with some variations only; every name of the base stays.

    Args:
        config: what varies.
        names: folders of variations, GROUP-NAME.

    Raises:
        ConfigError: no such variation.
    """
    known = [name for _, name, _ in variations(config)][1:]
    if unknown := [name for name in names if name not in known]:
        raise ConfigError(f"--only {unknown[0]}; allowed: {', '.join(known)}")
    groups = {
        group: {
            name: settings
            for name, settings in members.items()
            if not settings or f"{group}-{name}" in names
        }
        for group, members in config.groups.items()
    }
    return config.model_copy(update={"groups": {k: v for k, v in groups.items() if v}})


def merged(path: Path, summary: dict[str, Any], config: AblationConfig) -> dict[str, Any]:
    """A stored summary with the rows of a new one put in, in the configuration's order.

    Args:
        path: a `summary.json` of `vlarft ablate`; not changed.
        summary: of variations that were run now.
        config: of all variations.

    Returns:
        The stored one; `merged` lists the commands that added to it.

    Raises:
        DataError: the file is something else, or the two have different bases: configurations,
            seeds, or a base that came out otherwise.
    """
    there, rows = read_rows(path), [Row.from_dict(values) for values in summary["rows"]]
    stored: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    same = stored["seeds"] == summary["seeds"] and load_config(
        RFTConfig, stored["base"]
    ) == load_config(RFTConfig, summary["base"])
    bases = [row.distance for side in (there, rows) for row in side if not row.settings]
    values = [base.relative for base in bases]
    if not same or max(values) - min(values) > SAME_BASE:
        raise DataError(
            f"{path}: its base ({_words(bases[0])}) is another than that of this run "
            f"({_words(bases[-1])}); only rows of the same models, data and settings can be merged"
        )
    places = [(group, name) for group, members in config.groups.items() for name in members]
    found = {(row.group, row.name): row for row in there}
    found |= {(row.group, row.name): row for row in rows if row.settings}
    order = {place: number for number, place in enumerate(places)}
    ordered = sorted(found, key=lambda place: order.get(place, len(order)))
    return stored | {
        "rows": to_dict([found[place] for place in ordered]),
        "merged": [*stored.get("merged", []), summary["command"]],
    }


def table(rows: Sequence[Row]) -> str:
    """A markdown table with 95% intervals."""
    lines = [
        "| what varies | variation | distance | minus the base's | action L1 | minutes |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        name = f"{row.name}: `{' '.join(row.settings)}`" if row.settings else f"{row.name} (base)"
        to_base = "" if row.to_base is None else _words(row.to_base, " points")
        cells = (row.group, name, _words(row.distance), to_base, _words(row.action_l1))
        lines.append(f"| {' | '.join(cells)} | {row.seconds / 60:.1f} |")
    return "\n".join(lines)


def read_rows(path: Path) -> list[Row]:
    """Rows of a `summary.json` of `vlarft ablate`.

    Raises:
        DataError: the file is missing or is something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return [Row.from_dict(values) for values in content["rows"]]
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: no summary.json of vlarft ablate ({error})") from error


def to_dict(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """As written to `summary.json`."""
    return [asdict(row) for row in rows]


def _words(change: Change, unit: str = "%") -> str:
    low, high = change.interval
    return f"{100 * change.relative:+.1f}{unit} ({100 * low:+.1f} to {100 * high:+.1f})"


def _plan(config: AblationConfig, settings: Sequence[str]) -> RFTConfig:
    """A variation's configuration."""
    return load_config(RFTConfig, config.rft, [*config.rft_set, *settings])


def _row(
    group: str, name: str, settings: tuple[str, ...], results: dict[str, list[RunResult]]
) -> Row:
    base, own = results[BASE], results[f"{group}-{name}" if settings else BASE]
    episodes = base[0].before.episode
    distance, unchanged = stacked(own, "distance"), stacked(base, "distance")
    return Row(
        group=group,
        name=name,
        settings=settings,
        distance=paired_interval(*distance, episodes),
        action_l1=paired_interval(*stacked(own, "action_l1"), episodes),
        to_base=paired_difference(distance, unchanged, episodes) if settings else None,
        seconds=sum(result.seconds for result in own),
    )
