"""The distribution's version; its one place."""

__version__ = "2.0.0a1"
