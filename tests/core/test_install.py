"""What an installed vlarft holds besides its Python files, editable or from a wheel."""

import importlib.metadata
from pathlib import Path

import pytest

import vlarft
from vlarft import _native
from vlarft.config import preset_path
from vlarft.errors import ConfigError


@pytest.mark.parametrize("preset", ["tiny", "small", "paper"])
def test_presets_are_found(preset):
    assert preset_path(preset).read_text().strip()


def test_unknown_preset_names_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'small'"):
        preset_path("smal")


def test_one_version_everywhere():
    assert importlib.metadata.version("vlarft") == vlarft.__version__
    assert _native.build_info()["version"] == vlarft.__version__


def test_types_are_announced():
    assert (Path(vlarft.__file__).parent / "py.typed").exists()


def test_command_is_registered():
    scripts = importlib.metadata.entry_points(group="console_scripts")
    assert scripts["vlarft"].value == "vlarft.cli:main"
