"""`vlarft data inspect|subset|render|scenes|branch|stats`."""

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table

from vlarft.data.branches import branch_files
from vlarft.data.inspect import inspect_files, inspection_table
from vlarft.data.libero import ACTION_NAMES, SPLITS, Split, find_files, read_episodes
from vlarft.data.render import render_files
from vlarft.data.scenes import draw_scenes
from vlarft.data.statistics import Statistics, compute_statistics
from vlarft.data.subset import subset_files
from vlarft.errors import ConfigError, DataError
from vlarft.terminal import Jobs, JsonFile, Python, console_for, write_result

app = typer.Typer(no_args_is_help=True, help="LIBERO demonstrations: look, cut, draw, measure.")

Paths = Annotated[list[Path], typer.Argument(help="HDF5 files or folders of them.")]
DropNoops = Annotated[
    bool, typer.Option("--drop-noops", help="Leave out actions that do nothing: docs/data.md.")
]
Out = Annotated[Path, typer.Option(help="Folder of the new files.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace existing files.")]
Size = Annotated[int, typer.Option(help="Edge of the pictures in pixels, 16 to 1024.")]
Seed = Annotated[int, typer.Option(help="Of what is drawn.")]
Camera = Annotated[str, typer.Option(help="agentview_rgb, eye_in_hand_rgb or another one's.")]

PROPRIOCEPTION_NAMES = ("x", "y", "z", "ax", "ay", "az", "finger 1", "finger 2")


@app.command("inspect")
def inspect_command(
    paths: Paths, camera: Camera = "agentview_rgb", json_file: JsonFile = None
) -> None:
    """Read every array of the files, check it, and say what is there.

    Example: vlarft data inspect vlarft/assets/demos/libero_object_64
    """
    with _files_progress("reading") as progress:
        rows = inspect_files(paths, camera=camera, progress=progress)
    _result(rows, json_file, lambda: inspection_table(rows))


@app.command("subset")
def subset_command(
    paths: Paths,
    out: Out,
    train: Annotated[int, typer.Option(help="Training episodes of each file.")] = 3,
    val: Annotated[int, typer.Option(help="Validation episodes of each file.")] = 2,
    camera: Camera = "agentview_rgb",
    drop_noops: DropNoops = False,
    limit_mb: Annotated[
        float | None, typer.Option(help="Refuse a larger result, in 10^6 bytes.")
    ] = None,
    overwrite: Overwrite = False,
    json_file: JsonFile = None,
) -> None:
    """Copy the first episodes of each split of each file, losslessly and much smaller.

    Example: vlarft data subset rendered/libero_object --out small --train 3 --val 2
    """
    with _files_progress("cutting") as progress:
        written = subset_files(
            paths,
            out,
            train,
            val,
            camera=camera,
            drop_noops=drop_noops,
            limit_bytes=None if limit_mb is None else int(limit_mb * 1e6),
            overwrite=overwrite,
            progress=progress,
        )
    rows = [
        {"file": str(item.file), "episodes": list(item.episodes), "bytes": item.size}
        for item in written
    ]
    _result(rows, json_file, lambda: _subset_table(rows))


@app.command("render")
def render_command(
    paths: Paths,
    out: Out,
    size: Size = 64,
    camera: Annotated[
        list[str] | None, typer.Option(help="agentview (default) or another one; repeat.")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Only the first episodes of each file.")] = None,
    jobs: Jobs = 1,
    python: Python = None,
    overwrite: Overwrite = False,
    json_file: JsonFile = None,
) -> None:
    """Draw recorded simulator states (NAME_states.hdf5 to NAME_demo.hdf5).

    Needs the extra `libero`. Software rendering takes up to 0.1 s a picture at any size. Files that
    exist are kept.

    Example: vlarft data render recordings/libero_object --out rendered/libero_object --jobs 2
    """
    if limit is not None and limit < 1:
        raise ConfigError(f"--limit {limit}; allowed: 1 or more")
    cameras = camera or ["agentview"]
    sources = find_files(paths)
    targets = [out / f"{source.stem.removesuffix('_states')}_demo.hdf5" for source in sources]
    if len(set(targets)) < len(targets):
        raise DataError(f"{out}: two source files have one name; draw them into two folders")
    rows: list[dict[str, Any]] = []
    work: list[tuple[Path, Path]] = []
    for source, target in zip(sources, targets, strict=True):
        if target.exists() and not overwrite:
            rows.append({"file": str(target), "kept": True})
        else:
            work.append((source, target))
    with episodes_progress() as progress:
        drawn = render_files(work, size, cameras, limit, jobs, progress, python=python)
    for (_, target), (episodes, frames) in zip(work, drawn, strict=True):
        rows.append({"file": str(target), "kept": False, "episodes": episodes, "frames": frames})
    _result(rows, json_file, lambda: _render_table(rows))


@app.command("scenes")
def scenes_command(
    paths: Paths,
    out: Out,
    count: Annotated[int, typer.Option(help="Scenes of each task, 12 or more.")] = 1200,
    size: Size = 64,
    seed: Seed = 0,
    jobs: Jobs = 1,
    python: Python = None,
    overwrite: Overwrite = False,
    json_file: JsonFile = None,
) -> None:
    """Draw recorded scenes with objects traded and moved, and note where they are.

    For `vlarft train encoder`. Needs the extra `libero`. Takes recordings with simulator states, as
    `record` and `render` write them; only training episodes are used. Files that exist are kept.

    Example: vlarft data scenes rendered/libero_object --out scenes/libero_object --jobs 2
    """
    with _new_files(paths, out, "scenes", "scenes", count, overwrite, json_file) as (work, show):
        draw_scenes(work, count, size, seed=seed, jobs=jobs, python=python, progress=show)


@app.command("branch")
def branch_command(
    paths: Paths,
    out: Out,
    count: Annotated[int, typer.Option(help="Branches of each task.")] = 400,
    each: Annotated[int, typer.Option(help="Branches from one recorded state.")] = 4,
    length: Annotated[int, typer.Option(help="Actions of a branch.")] = 8,
    at_grasp: Annotated[
        float | None,
        typer.Option(
            help="Share of states in whose next actions the gripper closes (default: as recorded).",
        ),
    ] = None,
    seed: Seed = 0,
    jobs: Jobs = 1,
    python: Python = None,
    overwrite: Overwrite = False,
    json_file: JsonFile = None,
) -> None:
    """Execute changed actions from recorded states: what a world model should know besides.

    Short episodes of simulator states, to be drawn by `vlarft data render` and given to
    `vlarft train world-model` beside the recordings. Needs the extra `libero`. Files that exist are
    kept.

    Example: vlarft data branch recordings/libero_object --out branches --jobs 2
    """
    with _new_files(paths, out, "states", "branches", count, overwrite, json_file) as (work, show):
        branch_files(
            work,
            count,
            each,
            length,
            at_grasp=at_grasp,
            seed=seed,
            jobs=jobs,
            python=python,
            progress=show,
        )


@app.command("stats")
def stats_command(
    paths: Paths,
    split: Annotated[str, typer.Option(help="train, val or all.")] = "train",
    drop_noops: DropNoops = False,
    json_file: JsonFile = None,
) -> None:
    """Quantiles and ranges of actions and proprioception, as models store them.

    Example: vlarft data stats vlarft/assets/demos/libero_object_64 --json statistics.json
    """
    chosen: dict[str, Split | None] = {name: name for name in SPLITS} | {"all": None}
    if split not in chosen:
        raise ConfigError(f"--split {split}; allowed: {', '.join(chosen)}")
    with _files_progress("reading") as progress:
        episodes = read_episodes(paths, chosen[split], drop_noops=drop_noops, progress=progress)
        statistics = compute_statistics(episodes)
    _result(statistics.to_dict(), json_file, lambda: _statistics_table(statistics, split))


def _result(value: Any, json_file: str | None, table: Callable[[], Table]) -> None:
    """Print a table, or JSON alone when it goes to standard output."""
    if json_file != "-":
        console_for().print(table())
    write_result(json_file, value)


@contextlib.contextmanager
def _files_progress(verb: str) -> Iterator[Callable[[Path, int, int], None]]:
    """A bar on a terminal, otherwise one plain line a file, on standard error either way."""
    with _bar() as bar:
        if bar is None:
            yield lambda file, done, total: typer.echo(
                f"{verb} {done}/{total} {file.name}", err=True
            )
            return
        task = bar.add_task(verb, total=None)
        yield lambda file, done, total: bar.update(
            task, completed=done, total=total, description=f"{verb} {file.name}"
        )


@contextlib.contextmanager
def _bar() -> Iterator[Progress | None]:
    if not sys.stderr.isatty():
        yield None
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        yield bar


@contextlib.contextmanager
def episodes_progress() -> Iterator[Callable[[Path, str, int, int], None]]:
    """A bar a file on a terminal, otherwise one plain line an episode."""
    with _bar() as bar:
        if bar is None:
            yield lambda file, name, done, total: typer.echo(
                f"drawn {file.name} {name} ({done}/{total})", err=True
            )
            return
        tasks: dict[Path, TaskID] = {}

        def show(file: Path, _: str, done: int, total: int) -> None:
            if file not in tasks:
                tasks[file] = bar.add_task(file.name, total=total)
            bar.update(tasks[file], completed=done)

        yield show


def _subset_table(rows: list[dict[str, Any]]) -> Table:
    table = Table(title="subset")
    table.add_column("file", overflow="fold")
    table.add_column("episodes", overflow="fold")
    table.add_column("KB", justify="right")
    for row in rows:
        names = " ".join(name.removeprefix("demo_") for name in row["episodes"])
        table.add_row(Path(row["file"]).name, names, f"{row['bytes'] / 1e3:.0f}")
    table.add_section()
    table.add_row(
        f"{len(rows)} files",
        str(sum(len(row["episodes"]) for row in rows)),
        f"{sum(row['bytes'] for row in rows) / 1e3:.0f}",
    )
    return table


def _render_table(rows: list[dict[str, Any]]) -> Table:
    table = Table(title="drawn")
    table.add_column("file", overflow="fold")
    table.add_column("episodes", justify="right")
    table.add_column("frames", justify="right")
    for row in rows:
        if row["kept"]:
            table.add_row(Path(row["file"]).name, "exists,", "kept")
        else:
            table.add_row(Path(row["file"]).name, str(row["episodes"]), str(row["frames"]))
    return table


def _targets(sources: list[Path], out: Path, ending: str) -> list[tuple[Path, Path]]:
    """Pairs of source and NAME_ENDING.hdf5."""
    stems = [source.stem.removesuffix("_states").removesuffix("_demo") for source in sources]
    if len(set(stems)) < len(stems):
        raise DataError(f"{out}: two source files have one name; use two folders")
    targets = [out / f"{stem}_{ending}.hdf5" for stem in stems]
    for source, target in zip(sources, targets, strict=True):
        if source.resolve() == target.resolve():
            raise DataError(f"--out {out}: {target.name} there is a source; name another folder")
    return list(zip(sources, targets, strict=True))


@contextlib.contextmanager
def _new_files(
    paths: list[Path],
    out: Path,
    ending: str,
    what: str,
    count: int,
    overwrite: bool,
    json_file: str | None,
) -> Iterator[tuple[list[tuple[Path, Path]], Callable[[Path, int, int], None]]]:
    """Pairs of source and target to work on inside, and its progress; then a row a file."""
    pairs = _targets(find_files(paths), out, ending)
    work = [pair for pair in pairs if overwrite or not pair[1].exists()]
    with episodes_progress() as show:
        yield work, lambda file, done, total: show(file, what, done, total)
    rows: list[dict[str, Any]] = [
        {"file": str(pair[1])} | ({"kept": False, what: count} if pair in work else {"kept": True})
        for pair in pairs
    ]
    _result(rows, json_file, lambda: _count_table(rows, what))


def _count_table(rows: list[dict[str, Any]], what: str) -> Table:
    table = Table(title=what)
    table.add_column("file", overflow="fold")
    table.add_column(what, justify="right")
    for row in rows:
        made = "exists, kept" if row["kept"] else str(row[what])
        table.add_row(Path(row["file"]).name, made)
    return table


def _statistics_table(statistics: Statistics, split: str) -> Table:
    table = Table(
        title=f"split {split}: {statistics.episodes} episodes, {statistics.steps} steps, "
        f"frames {statistics.orientation}"
    )
    for heading in ("entry", "1%", "99%", "least", "most"):
        table.add_column(heading, justify="left" if heading == "entry" else "right")
    for index, name in enumerate(ACTION_NAMES):
        values = (
            statistics.action_q01[index],
            statistics.action_q99[index],
            statistics.action_min[index],
            statistics.action_max[index],
        )
        table.add_row(f"action {name}", *(f"{value:.4f}" for value in values))
    table.add_section()
    for index, name in enumerate(PROPRIOCEPTION_NAMES):
        quantiles = statistics.proprioception_q01[index], statistics.proprioception_q99[index]
        table.add_row(f"proprioception {name}", *(f"{value:.4f}" for value in quantiles))
    return table
