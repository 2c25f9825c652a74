"""rn-harness: does an open-weight model withstand malicious fine-tuning? A pytest plugin that decides."""

__version__ = "0.1.0"
