"""Lines of JSON between this process and a simulator's; arrays travel as base64.

Both sides may run different versions of Python and numpy, so nothing is pickled.
"""

import base64
import json
from typing import Any

import numpy as np


def encode(value: Any) -> bytes:
    """One line of JSON of plain values and numpy arrays."""
    return json.dumps(value, default=_array_to_json).encode() + b"\n"


def decode(line: bytes) -> Any:
    """The value of a line; tuples come back as lists."""
    return json.loads(line, object_hook=_array_from_json)


def _array_to_json(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if not isinstance(value, np.ndarray):
        raise TypeError(f"a {type(value).__name__} cannot be sent to or from a simulator")
    data = base64.b64encode(np.ascontiguousarray(value).tobytes()).decode()
    return {"array": data, "dtype": value.dtype.str, "shape": value.shape}


def _array_from_json(value: dict[str, Any]) -> Any:
    if value.keys() != {"array", "dtype", "shape"}:
        return value
    flat = np.frombuffer(base64.b64decode(value["array"]), np.dtype(value["dtype"]))
    return flat.reshape(value["shape"]).copy()
