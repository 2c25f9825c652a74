"""The shipped classifier for the benign domain baking: its training texts and its training. Floor 2 (adapters)."""
