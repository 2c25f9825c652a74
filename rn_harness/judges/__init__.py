"""Score a text: back ends, anchors, certification, and the evaluation of a policy on held-out prompts.

It must not know how a policy was trained. Authors of judges import `Judge` and its types from here.
"""

from rn_harness.judges.protocol import Judge
from rn_harness.records.base import Judgement
from rn_harness.spec.prompts import Prompt

__all__ = ["Judge", "Judgement", "Prompt"]
