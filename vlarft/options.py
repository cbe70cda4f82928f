"""Options that several commands share, and how their values are read."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console

from vlarft.errors import ConfigError
from vlarft.terminal import say

Data = Annotated[
    list[Path] | None,
    typer.Option("--data", help="LIBERO HDF5 files or folders (default: bundled episodes)."),
]
World = Annotated[
    Path | None, typer.Option("--world", help="World-model folder (default: bundled).")
]
PolicyFolder = Annotated[
    Path | None, typer.Option("--policy", help="Policy folder (default: bundled).")
]
Settings = Annotated[
    list[str] | None, typer.Option("--set", help="key=value; dots reach nested keys.")
]
Backend = Annotated[
    Literal["auto", "native", "reference"], typer.Option(help="Of the world model.")
]
Dtype = Annotated[Literal["float32", "bfloat16"], typer.Option(help="Of the world model.")]
CacheDtype = Annotated[
    Literal["float8_e4m3fn"] | None,
    typer.Option(help="Of its keys and values (default: of the world model)."),
]
Attention = Annotated[
    Literal["sdpa", "flash-attn", "xformers"], typer.Option(help="Of the prompt's prefill.")
]
Device = Annotated[str, typer.Option(help="cpu or cuda.")]
Metric = Annotated[
    str,
    typer.Option(help="lpips-alex (bundled), lpips-vgg, lpips-squeeze or tokenizer-features."),
]
Seed = Annotated[int, typer.Option(help="Of the world model's noise.")]
Temperature = Annotated[
    float | None, typer.Option(help="0 is greedy (default: of the world's layout.json).")
]
TopP = Annotated[
    float | None, typer.Option(help="Probability mass that may be drawn (default: likewise).")
]
Noise = Annotated[str | None, typer.Option(help="shared or independent (default: likewise).")]


def done(console: Console, lines: Sequence[str], path: Path) -> None:
    """Say some lines, then where the report is."""
    for line in [*lines, f"report: {path.resolve()}"]:
        say(console, line)


def ranges(option: str, text: str | None) -> list[int]:
    """Whole numbers of a text such as 0-4,7; none of None."""
    numbers: list[int] = []
    try:
        for part in text.split(",") if text else []:
            first, _, last = part.partition("-")
            numbers += range(int(first), int(last or first) + 1)
    except ValueError as error:
        raise ConfigError(f"{option} {text}: expected whole numbers such as 0-4,7") from error
    return numbers


def sampling_of(engine: Any, **wanted: Any) -> Any:
    """What was asked for, and the world model's defaults for the rest."""
    from vlarft.engine import Sampling

    defaults = engine.world.layout.sampling.model_dump()
    return Sampling(**defaults | {k: v for k, v in wanted.items() if v is not None})
