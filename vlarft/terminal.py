"""What every command of `vlarft` prints and writes: lines, tables, JSON."""

import json
import os
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

WIDTH_OF_FILES = 1000  # columns where tables take what they need

JsonFile = Annotated[
    str | None,
    typer.Option("--json", metavar="FILE", help="Write the result as JSON; - is standard output."),
]
Jobs = Annotated[int, typer.Option(min=1, help="Simulators at a time, each a process.")]
Python = Annotated[
    Path | None,
    typer.Option(help="Interpreter that has LIBERO (default: the one that runs vlarft)."),
]


def console_for(json_file: str | None = None) -> Console:
    """Standard output, or standard error when standard output carries JSON.

    Where no terminal sets a width (a pipe, a file), tables are as wide as they need.
    """
    console = Console(stderr=json_file == "-")
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = WIDTH_OF_FILES
    return console


def say(console: Console, line: str) -> None:
    """One line as it is: not wrapped, no colours, no markup."""
    console.print(line, highlight=False, markup=False, soft_wrap=True)


def write_result(json_file: str | None, content: Any) -> None:
    """The value of `--json`: nothing, standard output, or a file in a folder that exists."""
    text = json.dumps(content, indent=2) + "\n"
    if json_file == "-":
        sys.stdout.write(text)
    elif json_file is not None:
        Path(json_file).write_text(text, encoding="utf-8")


def torchrun_rank() -> tuple[int, int]:
    """Number of this process and how many torchrun started; (0, 1) without torchrun."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return 0, 1
    return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])


def command_line() -> str:
    """The command that is running, as a shell takes it."""
    return shlex.join(["vlarft", *sys.argv[1:]])
