"""The version, in one place that any layer may read."""

__version__ = "0.1.0"
