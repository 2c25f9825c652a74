"""Malicious fine-tunes: the families, the attack loop, the search for settings.

It must not know runs or verdicts. Authors of families import `AttackFamily` and its types from here.
"""

from rn_harness.attacks.family import AttackContext, AttackFamily

__all__ = ["AttackContext", "AttackFamily"]
