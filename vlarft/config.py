"""Typed configuration: frozen models that refuse unknown keys, read from YAML and `key=value`."""

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from vlarft.errors import ConfigError

C = TypeVar("C", bound="Config")


class Config(BaseModel):
    """Base of every configuration: immutable, typed, unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    section: ClassVar[str | None] = None
    """Key under which a file of a whole experiment holds this configuration."""


def preset_path(name: str) -> Path:
    """File of a named preset (`tiny`, `small`, `paper`, ...).

    Raises:
        ConfigError: no preset of that name.
    """
    package = Path(__file__).parent
    folder = next(
        (f for f in (package / "configs", package.parent / "configs") if f.is_dir()), None
    )
    known = sorted(f.stem for f in folder.glob("*.yaml")) if folder else []
    if folder is None or name not in known:
        raise ConfigError(
            f"unknown preset '{name}'; known: {', '.join(known) or 'none'}{_near(name, known)}"
        )
    return folder / f"{name}.yaml"


def read_yaml(name_or_file: str | Path) -> dict[str, Any]:
    """Content of a YAML file, or of a preset when the argument is a bare name.

    Raises:
        ConfigError: the file is missing or not a YAML mapping.
    """
    text = str(name_or_file)
    path = Path(text) if text.endswith((".yaml", ".yml")) else preset_path(text)
    try:
        content = yaml.safe_load(path.read_text())
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such configuration file") from error
    except (
        yaml.YAMLError,
        ValueError,
    ) as error:  # also not text, no such date
        raise ConfigError(f"{path}: not valid YAML ({' '.join(str(error).split())})") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: expected a mapping of keys, found {type(content).__name__}")
    return content


def load_config(
    cls: type[C],
    name_or_file: str | Path | dict[str, Any] | None = None,
    overrides: Sequence[str] = (),
) -> C:
    """Build a configuration from defaults, then a file or mapping, then `a.b=value` overrides.

    Of a file with the key `cls.section` only that section counts: one file may hold the recipe of a
    whole experiment.

    Args:
        cls: the configuration class.
        name_or_file: preset name, YAML file, mapping, or None for the defaults.
        overrides: `key=value` texts; dots reach nested keys, values are read as YAML.

    Raises:
        ConfigError: one line naming the key, what is allowed and the nearest known key.
    """
    if isinstance(name_or_file, dict):
        values, where = dict(name_or_file), "configuration"
    else:
        values = read_yaml(name_or_file) if name_or_file is not None else {}
        where = str(name_or_file) if name_or_file is not None else "configuration"
        if cls.section in values:
            values, where = values[cls.section] or {}, f"{where}: {cls.section}"
            if not isinstance(values, dict):
                raise ConfigError(
                    f"{where}: expected a mapping of keys, found {type(values).__name__}"
                )
    for text in overrides:
        _override(values, text)
    try:
        return cls.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"{where}: {_explain(cls, error)}") from error


def dump_config(config: Config, path: Path) -> None:
    """Write the resolved configuration as YAML."""
    dump_values(config.model_dump(mode="json"), path)


def dump_values(values: dict[str, Any], path: Path) -> None:
    """Write plain values as YAML, in their order."""
    path.write_text(yaml.safe_dump(values, sort_keys=False))


def _override(values: dict[str, Any], text: str) -> None:
    """Set one `a.b=value` in nested mappings, which are copied on the way."""
    key, equals, raw = text.partition("=")
    *parents, leaf = key.split(".")
    if not equals or not all([*parents, leaf]):
        raise ConfigError(f"--set {text}: expected key=value")
    for depth, parent in enumerate(parents, start=1):
        group = values.get(parent)
        if group is not None and not isinstance(group, dict):
            raise ConfigError(
                f"--set {text}: {'.'.join(parents[:depth])} is the value {group!r}, no group of "
                "keys; set it as a whole"
            )
        values[parent] = dict(group or {})
        values = values[parent]
    try:
        values[leaf] = yaml.safe_load(raw)
    except (yaml.YAMLError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"--set {text}: the value is not valid YAML ({reason})") from error


def _explain(cls: type[Config], error: ValidationError) -> str:
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        known = _known_keys(cls, first["loc"][:-1])
        return (
            f"unknown key '{key}'{_near(str(first['loc'][-1]), known)}; known: {', '.join(known)}"
        )
    value, words = first.get("input"), first["msg"].removeprefix("Value error, ")
    if first["type"] != "value_error" or not isinstance(value, dict):
        return f"{key} = {value!r}: {words}"
    return words if not key or key in words else f"{key}: {words}"  # how values go together


def _known_keys(cls: type[BaseModel], path: Sequence[Any]) -> list[str]:
    for part in path:
        field = cls.model_fields.get(str(part))
        annotation = field.annotation if field else None
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return []
        cls = annotation
    return list(cls.model_fields)


def _near(name: str, known: Sequence[str]) -> str:
    match = difflib.get_close_matches(name, known, n=1)
    return f" (did you mean '{match[0]}'?)" if match else ""
