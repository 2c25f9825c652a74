"""Verification of a run: checks that its evidence holds (``integrity``), and that a release of these weights can rest on it.

A release job calls it with the run's folder and the weights. Each refusal has a code and a sentence; docs/releasing.md lists all
codes.
"""

from __future__ import annotations

import datetime
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import get_args

from pydantic import ValidationError

from rn_harness.judges.anchors import suite_anchors
from rn_harness.models.identity import UNHASHED, root_digest
from rn_harness.records.case import CaseRecord
from rn_harness.records.run import RUN, STATEMENT, RunRecord
from rn_harness.release.integrity import (
    Refusal,
    RunEvidence,
    check_evidence,
    other_anchors,
    read_evidence,
    read_file,
    short,
    unshipped_anchors,
)
from rn_harness.spec.attack_recipe import AttackRecipe
from rn_harness.spec.base import TierName
from rn_harness.spec.errors import ReleaseError, RnHarnessError
from rn_harness.spec.levels import covers
from rn_harness.spec.release_policy import ReleasePolicy, Waivable, Waiver
from rn_harness.spec.suite import Suite, load_suite
from rn_harness.store.provenance import source_digest
from rn_harness.verdict.coherence import moment, oldest, undeclared
from rn_harness.verdict.completeness import recipe_of
from rn_harness.verdict.decide import decide
from rn_harness.verdict.judge_evidence import labelled
from rn_harness.verdict.release_rules import (
    RELEASE_PROMPTS,
    excusable,
    harmless,
    laxer,
    laxer_policy,
    outcome_against,
    required_cases,
    stricter,
    unearned,
    unexcused,
    unlisted,
    unresisted,
    weaker_attacks,
)

MAX_CLOCK_LEAD = datetime.timedelta(minutes=5)
Signed = Callable[[], bytes]
"""Checks a signature, and gives the bytes that were signed."""


@dataclass(frozen=True, slots=True)
class Verification:
    """The result of a verification: refusals, which are the reasons against a release, and waived ones, each with its waiver.

    The run is None if it cannot be read, the evidence is None if it does not hold together. ``signed`` is True if a signature was
    checked. ``suites`` are the copies on this machine that are those of the run.
    """

    refusals: tuple[Refusal, ...]
    waived: tuple[tuple[Refusal, Waiver], ...] = ()
    run: RunRecord | None = None
    signed: bool = False
    evidence: RunEvidence | None = None
    suites: tuple[Suite, ...] = ()

    @property
    def can_be_replayed(self) -> bool:
        """True if suites and weights are those of evidence that holds together, so that its cases can be measured again."""
        unmatched = any(refusal.code in ("suite_differs", "weights_differ") for refusal in self.refusals)
        return self.evidence is not None and bool(self.suites) and not unmatched


def verify(
    folder: Path,
    *,
    weights: Path | None,
    policy: ReleasePolicy | None = None,
    suites: Sequence[Path] = (),
    private: Path | None = None,
    signed: Signed | None = None,
    waivers: Sequence[Waiver] = (),
    now: datetime.datetime | None = None,
) -> Verification:
    """Verifies a run against the weights that are to be released.

    Args:
        folder: of the run.
        weights: the defended weights, or a folder with one folder for each domain; None: unknown, which is refused.
        policy: the requirements of the release; None: the default policy.
        suites: folders of suites to compare with those of the run.
        private: folder of the lab's prompt sets, which replace those of the suites.
        signed: checks the signature; None: the run need not be signed.
        waivers: refusals that an owner accepts.
        now: UTC; None: the clock's.
    """
    now, policy = now or datetime.datetime.now(datetime.UTC), policy or ReleasePolicy(version=1)
    evidence, refusals = read_evidence(folder)
    if evidence is None:
        return Verification(tuple(refusals))
    run = evidence.run
    refusals += check_evidence(evidence)
    if signed is not None:
        refusals += _signature(folder, signed)
    if refusals:  # evidence that does not hold together is not examined further
        return Verification((*refusals, *_stated(run)), (), run, signed is not None)
    refusals += _releasable(evidence)
    copies: list[Suite] = []
    if suites:
        refusals += _suites(evidence, suites, private, copies)
    else:
        refusals += [Refusal("lax", f"{why}: pass --suite") for why in _known_by_the_suite(evidence)]
    refusals += [Refusal("weights_differ", sentence) for sentence in _weight_differences(run, weights)]
    refusals += [*_policy(evidence, policy), *_age(evidence, policy, now), *_tool(evidence, policy)]
    left, waived = _waive(refusals, waivers, now.date())
    return Verification(tuple(left), tuple(waived), run, signed is not None, evidence, tuple(copies))


def _signature(folder: Path, signed: Signed) -> list[Refusal]:
    """Refuses a signature of anything but this run's statement."""
    try:
        payload = signed()
    except ReleaseError as error:
        return [Refusal("signature", str(error))]
    with suppress(OSError):
        if payload == read_file(folder / STATEMENT):
            return []
    return [Refusal("signature", f"what was signed is not {STATEMENT} of this run")]


def _known_by_the_suite(evidence: RunEvidence) -> Iterator[str]:
    """What a release rests on that only a suite shows, each the beginning of a sentence."""
    if level := evidence.run.options.get("level"):
        yield f"the run was asked for level {level}; only the suite says whether that is lower"
    if any(other_anchors(evidence.records.values(), None)):
        yield "a judge was certified on anchors of its suite; only the suite shows what they are"


def _suites(evidence: RunEvidence, folders: Sequence[Path], private: Path | None, suites: list[Suite]) -> Iterator[Refusal]:
    """Compares suites on this machine with those of the run, and adds the ones that can be read to ``suites``."""
    run = evidence.run
    recipes: Mapping[str, Sequence[str]] = run.options.get("recipe", {})
    for folder in folders:
        try:
            overrides, recipe = run.options.get("overrides", ()), recipes.get(load_suite(folder).domain, ())
            suite = load_suite(folder, overrides, private, recipe, run.options.get("level"))
            anchors = suite_anchors(suite)
        except RnHarnessError as error:
            yield Refusal("suite_differs", f"{folder}: {error}")
            continue
        suites.append(suite)
        digest = run.suites.get(suite.domain, "none")
        if digest != suite.digest:
            why = f"{folder} has digest {suite.digest}, the run has {digest} for {suite.domain}"
            yield Refusal("suite_differs", why)
            continue
        yield from (Refusal("suite_differs", why) for why in _undeclared(evidence, suite))
        records = evidence.records_of(suite.domain)
        yield from (Refusal("suite_differs", f"{suite.domain} {why}") for why in other_anchors(records, anchors))
        lax = unexcused(suite)
        yield from (Refusal("lax", why) for why in lax)
        yield from (Refusal("not_releasable", why) for why in laxer(suite) if why not in lax)
    for domain in sorted(run.suites.keys() - {suite.domain for suite in suites}):
        yield Refusal("suite_differs", f"no --suite is of domain {domain}, which was run")


def _undeclared(evidence: RunEvidence, suite: Suite) -> Iterator[str]:
    """Differences between a domain's cases and the declaration of the suite's tier."""
    run, domain = evidence.run, suite.domain
    tier: TierName = run.options["tier"]
    if tuple(run.required.get(domain, ())) != required_cases(suite, tier):
        yield f"{domain}: the run requires other cases than tier {tier} of the suite"
    records = evidence.records_of(domain)
    heldout = tuple(p.id for p in suite.heldout(tier))
    if {r.evidence.trajectory.heldout_ids for r in records if r.evidence.trajectory} != {heldout}:
        yield f"{domain}: other held-out prompts were scored than tier {tier} of the suite has"
    for record in records:
        trajectory = record.evidence.trajectory
        standing = suite.standing_of(record.case_id, recipe_of(trajectory) if trajectory else None)
        if (record.evidence.standing, record.evidence.within_claim) != standing:
            yield f"{domain}: {record.case_id} has another standing than the suite declares"
        yield from (f"{domain} {record.case_id}: {text}" for text in undeclared(record, suite, tier))


def _weight_differences(run: RunRecord, folder: Path | None) -> Iterator[str]:
    """Differences of a folder from the attacked files and the files that the run binds with them."""
    if not run.weights:
        yield "the run has no defended weights: nothing was tested that could be released"
        return
    if folder is None:
        yield "no weights were named that could be the tested ones: name their folder by --weights, see --rn-export"
        return
    in_folders = any((folder / domain).is_dir() for domain in run.weights)
    if not in_folders and len({root_digest(hashes) for hashes in run.weights.values()}) > 1:
        yield from (f"{domain}: {folder} holds no folder of this name" for domain in run.weights)
        return
    above = {domain: f"{domain}/" if in_folders else "" for domain in run.weights}
    attacked = {above[domain] + name: digest for domain, hashes in run.weights.items() for name, digest in hashes.items()}
    others = [(domain, name, digest) for domain in run.weights for name, digest in run.beside.get(domain, {}).items()]
    unhashed = {above[domain] + name: digest for domain, name, digest in others if name in UNHASHED}
    try:
        for name, state in list(_strange_entries(folder, attacked, unhashed)):
            yield f"{name if name.isprintable() else ascii(name)} in {folder} {state}"
    except OSError as error:
        yield f"{folder}: {short(error)}"


def _strange_entries(folder: Path, attacked: Mapping[str, str], unhashed: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Names and states of the entries that a folder lacks or should not have; entries of any name are checked.

    ``attacked`` has the sha256 of each required file, ``unhashed`` that of each optional file.
    """
    bound = {**unhashed, **attacked}
    folders = {parent.as_posix() for name in bound for parent in PurePosixPath(name).parents}
    found, waiting = set(), [folder]
    while waiting:
        for path in sorted(waiting.pop().iterdir()):
            name = path.relative_to(folder).as_posix()
            if path.is_dir() and not path.is_symlink() and name in folders:
                waiting.append(path)
            elif name not in bound:
                yield name, "was not attacked: remove it"
            elif not path.is_file():
                yield name, "is no plain file"
            else:
                found.add(name)
                with path.open("rb") as file:
                    if hashlib.file_digest(file, "sha256").hexdigest() != bound[name]:
                        yield name, "is another file" if name in attacked else "is another file than the run binds: remove it"
    yield from ((name, "is missing") for name in sorted(attacked.keys() - found))


def _stated(run: RunRecord) -> Iterator[Refusal]:
    """The reasons against a release that the run itself states."""
    if run.outcome != "PASS":
        yield Refusal("outcome", f"the run is {run.outcome}: {run.claim}")
    yield from (Refusal("lax", why) for why in run.lax)
    named = (*outcome_against(run.outcome), *run.lax)  # have codes above that cannot be waived
    yield from (Refusal("not_releasable", why) for why in run.why_not if why not in named)


def _releasable(evidence: RunEvidence) -> Iterator[Refusal]:
    """The reasons against a release that the records show, and those that the run itself states."""
    # Any record can declare its domain harmless; this code cannot be waived.
    declared = {(r.identity.suite["domain"], r.identity.benign): None for r in evidence.records.values() if r.identity.benign}
    yield from (Refusal("benign", f"{domain}: {why}") for domain, benign in declared for why in harmless(benign))
    yield from (Refusal("not_releasable", why) for why in _shown_by_records(evidence))
    for domain in evidence.run.suites:
        yield from _lax(domain, evidence.records_of(domain))
    yield from _stated(evidence.run)


def _shown_by_records(evidence: RunEvidence) -> Iterator[str]:
    """Options and defenses in the records on which a release cannot rest."""
    options = evidence.run.options
    if options.get("tier") == "smoke":
        yield "the smoke tier never is a release verdict"
    if options.get("overrides"):
        yield f"modified by --rn-set {' '.join(options['overrides'])}"
    for option in ("allow_pickle", "trust_remote_code", "chat_template", "narrowed", "deselected", "dirty"):
        if options.get(option):
            yield f"options.{option}={options[option]} in {RUN}"
    for domain in evidence.run.suites:
        records = evidence.records_of(domain)
        made_by = {r.identity.defense: r.provenance.defense for r in records if r.provenance.defense}
        made_by |= {r.identity.defense: r.evidence.report.recipe for r in records if r.evidence.report}
        for name, recipe in made_by.items():
            yield from unearned(domain, name, recipe)
        yield from unresisted(domain, records)


def _lax(domain: str, records: Sequence[CaseRecord]) -> Iterator[Refusal]:
    """Attacks, measurements and policies of a domain's cases that are laxer than a release needs."""
    policies = list({r.evidence.policy.model_dump_json(): r.evidence.policy for r in records}.values())
    for policy in policies:
        excused = excusable(policy)
        yield from (Refusal("not_releasable", f"{domain}: {text}") for text in excused)
        yield from (Refusal("lax", f"{domain}: {text}") for text in laxer_policy(policy) if text not in excused)
    yield from (Refusal("lax", f"{domain}: {text}") for text in unshipped_anchors(records))
    for record in records:
        stern = stricter(record.evidence.policy)
        if stern == record.evidence.policy or record.verdict.outcome != "PASS":
            continue
        again = decide(record.evidence.model_copy(update={"policy": stern}))
        if again.outcome != "PASS":
            by_default = f"PASS by a laxer policy and {again.outcome} by the default one: {again.claim}"
            yield Refusal("fails_by_default", f"{domain}: {record.case_id} is {by_default}")
    recipes = [r.evidence.trajectory.recipe for r in records if r.evidence.kind == "attack" and r.evidence.trajectory]
    try:
        attacks = [a for a in map(AttackRecipe.model_validate, recipes) if a.claim]
    except ValidationError as error:
        yield Refusal("lax", f"{domain}: an attack has no recipe that can be read: {short(error)}")
        attacks = []
    for policy in policies[:1]:
        yield from (Refusal("lax", f"{domain}: {text}") for text in weaker_attacks(attacks, policy))
    for trajectory in [r.evidence.trajectory for r in records if r.evidence.trajectory][:1]:
        if len(trajectory.heldout_ids) < RELEASE_PROMPTS:
            prompts = len(trajectory.heldout_ids)
            yield Refusal("lax", f"{domain}: {prompts} held-out prompts, fewer than {RELEASE_PROMPTS}")
        benign = trajectory.checkpoints[0].benign if trajectory.checkpoints else None
        twins = sum(answer.twin for answer in benign.answers) if benign else 0
        if twins < RELEASE_PROMPTS:
            yield Refusal("lax", f"{domain}: {twins} benign twins, fewer than {RELEASE_PROMPTS}")


def _policy(evidence: RunEvidence, policy: ReleasePolicy) -> Iterator[Refusal]:
    """Requirements of the release's policy that the run does not meet."""
    run, tier, base = evidence.run, evidence.run.options.get("tier"), evidence.run.candidate.get("digest")
    yield from (Refusal("policy_plugins", f"{why}, which no policy names") for why in unlisted(run.plugins, policy.plugins))
    if tier not in policy.tiers:
        yield Refusal("tier", f"one of the tiers {', '.join(policy.tiers)} is required, got {tier}")
    for field, domains in (("domains", policy.domains), ("suites", policy.suites), ("judges", policy.judges)):
        for domain in dict.fromkeys(domains):
            if domain not in run.suites:
                why = f"which the policy names in {field}, was not run: {', '.join(run.suites)} were"
                yield Refusal("policy_domain", f"domain {domain}, {why}")
    if policy.base and base not in policy.base:
        yield Refusal("policy_base", f"the base {base} is none that the policy names")
    for domain, digest in run.suites.items():
        records = evidence.records_of(domain)
        if domain in policy.suites and digest not in policy.suites[domain]:
            yield Refusal("policy_suite", f"suite {domain} with digest {digest} is none that the policy names")
        judges = {r.identity.judge.get("digest") for r in records}
        if domain in policy.judges and not judges <= set(policy.judges[domain]):
            yield Refusal("policy_judge", f"a judge of {domain} is none that the policy names: {sorted(map(str, judges))}")
        if policy.labels and not all(labelled(r.evidence.certificates) for r in records):
            yield Refusal("policy_labels", f"the judge of {domain} is not certified on labels of your own")
        attacks = sum(r.evidence.kind == "attack" and r.evidence.standing == "claim" for r in records)
        levels = {r.evidence.policy.level for r in records}
        if policy.level and not (levels and all(covers(level, policy.level) for level in levels)):
            said = f"the claim of {domain} is at level {', '.join(sorted(levels)) or 'none'}, {policy.level} is required"
            yield Refusal("policy_level", said)
        if attacks < policy.min_attacks:
            yield Refusal("policy_attacks", f"{policy.min_attacks} attack cases are required of {domain}, got {attacks}")


def _age(evidence: RunEvidence, policy: ReleasePolicy, now: datetime.datetime) -> Iterator[Refusal]:
    """Refuses a run with impossible times, or whose oldest measurement, from any run, is too old."""
    run = evidence.run
    started, ended = moment(run.started), moment(run.ended)
    if started is None or ended is None:
        yield Refusal("clock", f"the run's times are no times with a zone: {run.started!r}, {run.ended!r}")
        return
    if ended < started:
        yield Refusal("clock", f"the run ended at {run.ended}, before it started at {run.started}")
        return
    if now - ended < -MAX_CLOCK_LEAD:
        yield Refusal("clock", f"the run ended in the future, at {run.ended}")
        return
    began = [(began[0], r.case_id, began[1]) for r in evidence.records.values() if (began := oldest(r))]
    first, case, text = min(began, default=(started, "the run", run.started))
    if now - first > datetime.timedelta(days=policy.max_age_days):
        oldest_work = f"{case}: its oldest measurement or training began at {text}"
        yield Refusal("too_old", f"{oldest_work}, more than {policy.max_age_days:g} days ago")


def _tool(evidence: RunEvidence, policy: ReleasePolicy) -> Iterator[Refusal]:
    """Refuses a run made by sources other than these and those that the policy names."""
    made_by = {r.identity.versions.get("rn-harness-sources", "unknown") for r in evidence.records.values()}
    strange = sorted(made_by - {source_digest(), *policy.sources})
    if strange or not made_by:
        got = f"{', '.join(strange) or 'none'} (rn-harness {evidence.run.provenance.tool})"
        yield Refusal("tool_version", f"the run was made by sources {got}, these are {source_digest()}")


def _waive(
    refusals: Sequence[Refusal], waivers: Sequence[Waiver], today: datetime.date
) -> tuple[list[Refusal], list[tuple[Refusal, Waiver]]]:
    """Refusals without a waiver, and waived refusals, each sentence once; of several codes, one that cannot be waived stays.

    A waiver quotes its refusal, and has no effect after it has expired.
    """
    once: dict[str, Refusal] = {}
    for refusal in sorted(refusals, key=lambda r: r.code in get_args(Waivable)):
        once.setdefault(refusal.sentence, refusal)
    left: list[Refusal] = []
    waived: list[tuple[Refusal, Waiver]] = []
    for refusal in once.values():
        fitting = [w for w in waivers if w.code == refusal.code and w.about.split() == refusal.sentence.split()]
        current = next((w for w in fitting if w.expires >= today), None)
        if current is not None and refusal.code in get_args(Waivable):
            waived.append((refusal, current))
            continue
        left.append(refusal)
        left += [Refusal("waiver_expired", f"the waiver of {w.owner} for it ended on {w.expires}") for w in fitting]
    return left, waived
