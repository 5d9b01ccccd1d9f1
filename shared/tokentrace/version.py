"""The one version string of every program here."""

__version__ = "0.1.0"
