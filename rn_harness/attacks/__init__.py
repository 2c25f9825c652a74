"""Malicious fine-tunes: the families, the attack loop, the search for settings.

It must not know runs. Authors of families import `AttackFamily` and `AttackContext` from here.
"""

from rn_harness.attacks.family import AttackContext, AttackFamily

__all__ = ["AttackContext", "AttackFamily"]
