"""Writing files: whole, or the part between two markers."""

import json
from pathlib import Path
from typing import Any

from vlarft.errors import DataError


def write_json(path: Path, content: Any) -> None:
    """Write JSON, indented and atomically; missing folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    partial.replace(path)


def replace_block(path: Path, name: str, body: str) -> None:
    """Replace what stands between `<!-- name:start -->` and `<!-- name:end -->` in a text file.

    Raises:
        DataError: the file is missing, or its markers are.
    """
    start, end = f"<!-- {name}:start -->", f"<!-- {name}:end -->"
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    before, found, rest = text.partition(start)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise DataError(f"{path}: needs the lines {start} and {end}, in this order")
    path.write_text(f"{before}{start}\n{body}\n{end}{after}", encoding="utf-8")
