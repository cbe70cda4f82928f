"""Writing files: whole, by one process at a time, or the part between two markers."""

import fcntl
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vlarft.errors import DataError


def write_json(path: Path, content: Any) -> None:
    """Write JSON, indented and atomically; missing folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    partial.replace(path)


@contextmanager
def only_writer(lock: Path, written: Path) -> Iterator[None]:
    """Hold `lock`, a file that is made when missing, against other processes that ask for it.

    Args:
        lock: file to hold; missing folders are made.
        written: what it stands for, named in the error.

    Raises:
        DataError: another process holds it.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("ab") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DataError(
                f"{written}: another process is writing it; let that one finish or stop it, then "
                "run this again"
            ) from error
        yield


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
