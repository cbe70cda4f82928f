"""How tokens are drawn."""

from typing import Any, Literal

from pydantic import Field, ValidationError

from vlarft.config import Config
from vlarft.errors import ConfigError


class Sampling(Config):
    """Settings of one imagination.

    Raises:
        ConfigError: a value is out of range or unknown.
    """

    seed: int = Field(default=0, ge=0, lt=2**64)  # of the addressed noise
    temperature: float = Field(default=1.0, ge=0, allow_inf_nan=False)  # 0 = greedy
    top_k: int | None = Field(default=None, ge=1)  # ids kept before top_p; None = all
    top_p: float = Field(default=0.8, gt=0, le=1)  # mass kept
    noise: Literal["shared", "independent"] = "shared"  # one noise a group, or one a member
    # Source of guesses, whose number the plan chooses (docs/imagine.md); never changes tokens.
    speculate: Literal["auto", "off", "jacobi", "logits"] = "auto"

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(str(part) for part in first["loc"])
            message = f"Sampling: {key} = {first.get('input')!r}: {first['msg']}"
            if first["type"] == "extra_forbidden":
                message += f"; known: {', '.join(type(self).model_fields)}"
            raise ConfigError(message) from error
