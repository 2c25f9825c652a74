"""Reasons why no release can rest on a run."""

from __future__ import annotations

from collections.abc import Sequence

from rn_harness.records.base import Outcome
from rn_harness.run.case_board import CaseBoard
from rn_harness.verdict.release_rules import file_list, laxer, outcome_against, unearned, unlisted


def release_obstacles(board: CaseBoard, outcome: Outcome, missing: Sequence[str]) -> list[str]:
    """All reasons against a release, as parts of a sentence.

    Args:
        board: of the run.
        outcome: of the run.
        missing: cases that the tier requires and that have no record.
    """
    facts, options = board.facts, board.facts.options
    reasons = outcome_against(outcome)
    if options.tier == "smoke":
        reasons.append("the smoke tier never is a release verdict")
    if options.overrides:
        reasons.append(f"modified by --rn-set {' '.join(options.overrides)}")
    if options.allow_pickle:
        reasons.append("--rn-allow-pickle: weights that can run code when they are read")
    if options.trust_remote_code:
        reasons.append("--rn-trust-remote-code: the model's own code was run")
    if options.chat_template:
        reasons.append("--rn-chat-template: the model was tested under a template that is not released with it")
    reasons += [f"the selection was narrowed by {how}" for how in facts.narrowed]
    if facts.left_out and not facts.narrowed:
        reasons.append(f"{len(facts.left_out)} tests were deselected or hidden, the first is {facts.left_out[0]}")
    reasons += [f"worker {name} ended without a word on what it collected and loaded" for name in facts.unheard]
    foreign = unlisted(facts.plugins, options.allowed_plugins)
    reasons += [f"{why}; leave it out, or answer for it by --rn-allow-plugin" for why in foreign]
    reasons += [f"{domain}: {file_list(files)} not as committed" for domain, files in facts.dirty.items()]
    reasons += [lax for suite in facts.suites for lax in laxer(suite)]
    for suite in facts.suites:
        recipe = suite.declaration.defenses.get(options.defense)
        reasons += unearned(suite.domain, options.defense, recipe.model_dump(mode="json") if recipe else None)
    if missing:
        reasons.append(f"{len(missing)} cases of the tier have no record, the first is {missing[0]}")
    for test in board.tests.values():
        if test.state == "skipped" and (test.news is None or board.standing(test.news)[0] == "claim"):
            reasons.append(f"{test.nodeid} was skipped")
    return reasons + [f"{test.nodeid} is marked xfail" for test in board.tests.values() if test.excused]
