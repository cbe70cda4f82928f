"""scripts/constraints.txt: every package that pyproject.toml asks for, at a version it allows."""

import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
ASKED = [
    *PROJECT["build-system"]["requires"],
    *PROJECT["project"]["dependencies"],
    *PROJECT["project"]["optional-dependencies"]["dev"],
]


def pins() -> dict[str, str]:
    lines = (ROOT / "scripts" / "constraints.txt").read_text().splitlines()
    pairs = (line.split("==") for line in lines if line and not line.startswith("#"))
    return {canonicalize_name(name): version for name, version in pairs}


@pytest.mark.parametrize("asked", [text for text in ASKED if not text.startswith("torch")])
def test_asked_package_has_a_version_that_is_allowed(asked: str) -> None:
    requirement = Requirement(asked)
    version = pins().get(canonicalize_name(requirement.name))
    assert version is not None, f"{requirement.name}: no version in scripts/constraints.txt"
    assert version in requirement.specifier


def test_torch_is_left_to_the_machine() -> None:
    assert "torch" not in pins()
