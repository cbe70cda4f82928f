"""Registers, shared memory and spills of CUDA kernels, from the log of a build with -Xptxas=-v.

Fails when a kernel that a bfloat16 rollout runs keeps registers in memory ("spills"). Usage:
python scripts/check_gpu_resources.py build/cuda/log.txt
"""

import re
import sys
from dataclasses import dataclass
from pathlib import Path

_ENTRY = re.compile(r"Compiling entry function '(\w+)' for '(\w+)'")
_SPILL = re.compile(r"(\d+) bytes spill stores, (\d+) bytes spill loads")
_USED = re.compile(r"Used (\d+) registers(?:.*?(\d+) bytes smem)?")
# Kernels that run in bfloat16 name its type; those without a type are in every rollout.
_HOT = re.compile(r"4Bf16|collect_kernel|sample_kernel")
# Heads of more than 64 entries hold twice the keys and values in registers: allowed to spill.
_WIDE_HEAD = re.compile(r"attention_kernel.*Li128E")


@dataclass
class Kernel:
    """One kernel of one architecture."""

    name: str
    arch: str
    spills: int = 0
    registers: int = 0
    shared: int = 0

    @property
    def hot(self) -> bool:
        """Whether it may not spill."""
        return bool(_HOT.search(self.name)) and not _WIDE_HEAD.search(self.name)


def read(log: str) -> list[Kernel]:
    """Kernels in the order of the log, once each."""
    kernels: dict[tuple[str, str], Kernel] = {}
    now: Kernel | None = None
    for line in log.splitlines():
        if found := _ENTRY.search(line):
            now = kernels.setdefault((found[1], found[2]), Kernel(found[1], found[2]))
        elif now is not None and (found := _SPILL.search(line)):
            now.spills = int(found[1]) + int(found[2])
        elif now is not None and (found := _USED.search(line)):
            now.registers, now.shared = int(found[1]), int(found[2] or 0)
            now = None
    return list(kernels.values())


def main(path: str) -> int:
    """Print the table; 1 when a hot kernel spills or there is none."""
    kernels = read(Path(path).read_text(encoding="utf-8"))
    hot = [k for k in kernels if k.hot]
    for k in sorted(hot, key=lambda k: (k.arch, k.name)):
        print(
            f"{k.arch} {k.registers:4d} registers {k.shared:6d} B shared {k.spills:5d} B spilled  "
            f"{k.name}"
        )
    bad = [k for k in hot if k.spills]
    print(f"{len(kernels)} kernels, {len(hot)} of them hot, {len(bad)} hot ones spill")
    if not hot:
        print(f"{path}: no kernel found; was it built with -DCMAKE_CUDA_FLAGS=-Xptxas=-v?")
    return 1 if bad or not hot else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
