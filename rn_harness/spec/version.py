"""The version of rn-harness."""

__version__ = "0.1.0"
