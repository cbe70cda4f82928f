"""Errors a user can meet. Each message says what was given, what is allowed and what to do."""


class VlarftError(Exception):
    """Base of every error that vlarft raises on purpose."""


class ShapeError(VlarftError, ValueError):
    """A tensor has the wrong number of dimensions or a wrong size."""


class DtypeError(VlarftError, TypeError):
    """A tensor has the wrong element type."""


class PlanError(VlarftError):
    """A request does not fit in memory; the message names what fits."""


class CheckpointError(VlarftError):
    """A checkpoint is missing, damaged or of another architecture."""


class DataError(VlarftError):
    """A data file is missing, truncated, empty or not in the expected layout."""


class ConfigError(VlarftError, ValueError):
    """A configuration or command-line value is unknown or out of range."""


class UnsupportedModelError(VlarftError):
    """A model's configuration is not supported by the selected back end."""


class BackendError(VlarftError):
    """A back end is not available here, or failed; the message gives the reason."""


class SimulatorError(VlarftError):
    """An episode failed for a technical reason: the simulator stopped or its physics diverged."""
