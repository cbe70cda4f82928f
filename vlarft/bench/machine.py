"""This machine: caches, commit, and the nearest known name."""

import difflib
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from vlarft.report.environment import environment


def machine() -> dict[str, Any]:
    """Versions, processor, caches, threads and commit, for the JSON of a result."""
    return {
        **environment(),
        "last_cache_bytes": last_cache_bytes(),
        "commit": commit(),
    }


def commit() -> str:
    """Short commit of this checkout, with `+` when files differ from it; `unknown` without git."""
    folder = Path(__file__).resolve().parent

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    try:
        short = git("rev-parse", "--short=12", "HEAD")
        return short + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def last_cache_bytes() -> int:
    """Size of the last cache level; 32 MiB where the system does not say."""
    sizes = []
    for file in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = file.read_text().strip()
        factor = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}.get(text[-1:], 1)
        sizes.append(int(text.rstrip("KMG")) * factor)
    return max(sizes, default=32 << 20)


def near(name: str, known: Iterable[str]) -> str:
    """` (did you mean 'x'?)`, or nothing."""
    match = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean '{match[0]}'?)" if match else ""
