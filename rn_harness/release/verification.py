"""Verifying a run: whether its evidence holds (``integrity``), and a release of these weights can rest on it.

It is what a release job calls; all that it needs are the run's folder and the weights. Each refusal has a code and a sentence
(docs/releasing.md lists all codes).
"""

from __future__ import annotations

import datetime
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import get_args

from pydantic import ValidationError

from rn_harness.models.identity import UNHASHED, root_digest
from rn_harness.records.case import CaseRecord
from rn_harness.records.run import RunRecord
from rn_harness.release.integrity import Evidence, Refusal, read_evidence, read_file, short, whole
from rn_harness.release.statement import RUN, STATEMENT
from rn_harness.spec.attack_recipe import AttackRecipe
from rn_harness.spec.base import TierName
from rn_harness.spec.errors import ReleaseError, RnHarnessError
from rn_harness.spec.release_policy import ReleasePolicy, Waivable, Waiver
from rn_harness.spec.suite import Suite, load_suite
from rn_harness.store.provenance import source_digest
from rn_harness.verdict.coherence import moment, oldest, undeclared
from rn_harness.verdict.decide import decide
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
    weaker_attacks,
)
from rn_harness.verdict.validity import recipe_of

MAX_CLOCK_LEAD = datetime.timedelta(minutes=5)
Signed = Callable[[], bytes]
"""Checks a signature, and gives the bytes that were signed."""


@dataclass(frozen=True, slots=True)
class Verification:
    """What came of it.

    Attributes:
        refusals: what stands against a release; empty: nothing does.
        waived: what somebody answers for, with the waiver.
        run: the run's record; None where it cannot be read.
        signed: whether a signature was checked.
    """

    refusals: tuple[Refusal, ...]
    waived: tuple[tuple[Refusal, Waiver], ...] = ()
    run: RunRecord | None = None
    signed: bool = False


def verify(
    folder: Path,
    *,
    weights: Path,
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
        weights: the defended weights, or a folder with one folder for each domain.
        policy: what the release asks for; None: the default one.
        suites: folders of suites, to be compared with those that were run.
        private: folder of the lab's own prompt sets, which took the place of these suites' own.
        signed: checks the signature; None: the run need not be signed.
        waivers: what somebody answers for.
        now: UTC; None: the clock's.
    """
    now, policy = now or datetime.datetime.now(datetime.UTC), policy or ReleasePolicy(version=1)
    evidence, refusals = read_evidence(folder)
    if evidence is None:
        return Verification(tuple(refusals))
    refusals += whole(evidence)
    if signed is not None:
        refusals += _signature(folder, signed)
    if refusals:  # what does not hold together is not looked into
        return Verification((*refusals, *_by_its_own_word(evidence.run)), (), evidence.run, signed is not None)
    refusals += _releasable(evidence) + (_suites(evidence, suites, private) if suites else []) + _weights(evidence.run, weights)
    refusals += _policy(evidence, policy) + _age(evidence, policy, now) + _tool(evidence, policy)
    left, waived = _waive(_once(refusals), waivers, now.date())
    return Verification(tuple(left), tuple(waived), evidence.run, signed is not None)


def _signature(folder: Path, signed: Signed) -> list[Refusal]:
    """Whether what was signed is this very statement."""
    try:
        payload = signed()
    except ReleaseError as error:
        return [Refusal("signature", str(error))]
    try:
        if payload == read_file(folder / STATEMENT):
            return []
    except OSError:
        pass
    return [Refusal("signature", f"what was signed is not {STATEMENT} of this run")]


def _suites(evidence: Evidence, folders: Sequence[Path], private: Path | None) -> list[Refusal]:
    """Whether suites that lie here are those that were run, and require what the run says."""
    run, found = evidence.run, []
    recipes: Mapping[str, Sequence[str]] = run.options.get("recipe", {})
    seen = set()
    for folder in folders:
        try:
            plain = load_suite(folder)
            suite = load_suite(folder, run.options.get("overrides", ()), private, recipes.get(plain.domain, ()))
        except RnHarnessError as error:
            found.append(Refusal("suite_differs", f"{folder}: {error}"))
            continue
        seen.add(suite.domain)
        if run.suites.get(suite.domain) != suite.digest:
            told = run.suites.get(suite.domain, "none")
            found.append(Refusal("suite_differs", f"{folder} has digest {suite.digest}, the run has {told} for {suite.domain}"))
            continue
        found += _as_declared(evidence, suite)
    missing = sorted(set(run.suites) - seen)
    return found + [Refusal("suite_differs", f"no --suite is of domain {domain}, which was run") for domain in missing]


def _as_declared(evidence: Evidence, suite: Suite) -> list[Refusal]:
    """Whether the cases are those of the suite's tier, on its held-out prompts; and what in it is laxer than a release needs."""
    run, found = evidence.run, []
    tier: TierName = run.options["tier"]
    if tuple(run.required.get(suite.domain, ())) != required_cases(suite, tier):
        found.append(Refusal("suite_differs", f"{suite.domain}: the run requires other cases than tier {tier} of the suite"))
    heldout = tuple(p.id for p in suite.heldout(tier))
    of_cases = {r.evidence.trajectory.heldout_ids for r in evidence.of(suite.domain) if r.evidence.trajectory}
    if of_cases != {heldout}:
        found.append(
            Refusal("suite_differs", f"{suite.domain}: other held-out prompts were scored than tier {tier} of the suite has")
        )
    found += [
        Refusal("suite_differs", f"{suite.domain}: {r.case_id} has another standing than the suite declares")
        for r in evidence.of(suite.domain)
        if (r.evidence.standing, r.evidence.within_claim)
        != suite.standing_of(r.case_id, recipe_of(r.evidence.trajectory) if r.evidence.trajectory else None)
    ]
    found += [
        Refusal("suite_differs", f"{suite.domain} {r.case_id}: {text}")
        for r in evidence.of(suite.domain)
        for text in undeclared(r, suite, tier)
    ]
    lax = unexcused(suite)
    found += [Refusal("lax", why) for why in lax]
    return found + [Refusal("not_releasable", why) for why in laxer(suite) if why not in lax]


def _weights(run: RunRecord, folder: Path) -> list[Refusal]:
    """Whether the folder holds those files that were attacked, what the run binds next to them, and nothing else."""
    if not run.weights:
        return [Refusal("weights_differ", "the run has no defended weights: nothing was tested that could be released")]
    in_folders = any((folder / domain).is_dir() for domain in run.weights)
    if not in_folders and len({root_digest(hashes) for hashes in run.weights.values()}) > 1:
        return [Refusal("weights_differ", f"{domain}: {folder} holds no folder of this name") for domain in run.weights]
    attacked: dict[str, str] = {}
    beside: dict[str, str] = {}
    for domain, hashes in run.weights.items():
        above = f"{domain}/" if in_folders else ""
        attacked |= {above + name: digest for name, digest in hashes.items()}
        beside |= {above + name: digest for name, digest in run.beside.get(domain, {}).items() if name in UNHASHED}
    try:
        strange = list(_strange_entries(folder, attacked, beside))
    except OSError as error:
        return [Refusal("weights_differ", f"{folder}: {short(error)}")]
    return [Refusal("weights_differ", f"{n if n.isprintable() else ascii(n)} in {folder} {state}") for n, state in strange]


def _strange_entries(folder: Path, attacked: Mapping[str, str], beside: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Names and states of the entries that a folder should not have, or has not. None is passed over, whatever it is called.

    Args:
        folder: of what is to be released.
        attacked: sha256 of each file that has to be there.
        beside: of each file that may be there.
    """
    bound = {**beside, **attacked}
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


def _by_its_own_word(run: RunRecord) -> list[Refusal]:
    """What speaks against a release as the run says itself."""
    found = [] if run.outcome == "PASS" else [Refusal("outcome", f"the run is {run.outcome}: {run.claim}")]
    found += [Refusal("lax", why) for why in run.lax]
    told = (*outcome_against(run.outcome), *run.lax)  # told above, where no waiver reaches it
    return found + [Refusal("not_releasable", why) for why in run.why_not if why not in told]


def _releasable(evidence: Evidence) -> list[Refusal]:
    """What speaks against a release by its records, whatever the run says, and by the run's own word."""
    seen = [Refusal("not_releasable", why) for why in _seen_in_records(evidence)]
    for domain in evidence.run.suites:
        seen += _lax(domain, evidence.of(domain))
    return _harmless(evidence) + seen + _by_its_own_word(evidence.run)


def _harmless(evidence: Evidence) -> list[Refusal]:
    """The domains that are harmless, by any of their records: a code of its own, which nobody can waive."""
    said = {(r.identity.suite["domain"], r.identity.benign): None for r in evidence.records.values() if r.identity.benign}
    return [Refusal("benign", f"{domain}: {why}") for domain, benign in said for why in harmless(benign)]


def _seen_in_records(evidence: Evidence) -> Iterator[str]:
    """What the records tell of a run that no release can rest on."""
    said = evidence.run.options
    if said.get("tier") == "smoke":
        yield "the smoke tier never is a release verdict"
    if said.get("overrides"):
        yield f"modified by --rn-set {' '.join(said['overrides'])}"
    for option in ("allow_pickle", "trust_remote_code", "chat_template", "narrowed", "deselected", "dirty"):
        if said.get(option):
            yield f"options.{option}={said[option]} in {RUN}"
    for domain in evidence.run.suites:
        records = evidence.of(domain)
        if not records:
            continue
        made_by = {r.identity.defense: r.provenance.recipes["defense"] for r in records if "defense" in r.provenance.recipes}
        made_by |= {r.identity.defense: r.evidence.report.recipe for r in records if r.evidence.report}
        for name, recipe in made_by.items():
            yield from unearned(domain, name, recipe)


def _lax(domain: str, records: Sequence[CaseRecord]) -> Iterator[Refusal]:
    """How a domain's cases attacked, measured or decided by less than a release needs, as far as its records tell."""
    policies = list({r.evidence.policy.model_dump_json(): r.evidence.policy for r in records}.values())
    for policy in policies:
        excused = excusable(policy)
        yield from (Refusal("not_releasable", f"{domain}: {text}") for text in excused)
        yield from (Refusal("lax", f"{domain}: {text}") for text in laxer_policy(policy) if text not in excused)
    for record in records:
        stern = stricter(record.evidence.policy)
        if stern == record.evidence.policy or record.verdict.outcome != "PASS":
            continue
        again = decide(record.evidence.model_copy(update={"policy": stern}))
        if again.outcome != "PASS":
            told = f"{record.case_id} is PASS by a laxer policy and {again.outcome} by the default one: {again.claim}"
            yield Refusal("fails_by_default", f"{domain}: {told}")
    recipes = [r.evidence.trajectory.recipe for r in records if r.evidence.kind == "attack" and r.evidence.trajectory]
    try:
        attacks = [a for a in map(AttackRecipe.model_validate, recipes) if a.claim]
    except ValidationError as error:
        yield Refusal("lax", f"{domain}: an attack has no recipe that can be read: {short(error)}")
        attacks = []
    for policy in policies[:1]:
        yield from (Refusal("lax", f"{domain}: {text}") for text in weaker_attacks(attacks, policy))
    yield from (Refusal("lax", f"{domain}: {text}") for text in _thin(records))


def _thin(records: Sequence[CaseRecord]) -> Iterator[str]:
    """How a domain's cases were measured on too few prompts."""
    for trajectory in [r.evidence.trajectory for r in records if r.evidence.trajectory][:1]:
        if len(trajectory.heldout_ids) < RELEASE_PROMPTS:
            yield f"{len(trajectory.heldout_ids)} held-out prompts, fewer than {RELEASE_PROMPTS}"
        benign = trajectory.checkpoints[0].benign if trajectory.checkpoints else None
        twins = sum(answer.twin for answer in benign.answers) if benign else 0
        if twins < RELEASE_PROMPTS:
            yield f"{twins} benign twins, fewer than {RELEASE_PROMPTS}"


def _policy(evidence: Evidence, policy: ReleasePolicy) -> list[Refusal]:
    """What the release asks for and the run does not have."""
    run, found = evidence.run, []
    found += [Refusal("policy_plugins", f"{why}, which no policy names") for why in unlisted(run.plugins, policy.plugins)]
    tier = run.options.get("tier")
    if tier not in policy.tiers:
        found.append(Refusal("tier", f"one of the tiers {', '.join(policy.tiers)} is required, got {tier}"))
    named = {"domains": policy.domains, "suites": policy.suites, "judges": policy.judges}
    found += [
        Refusal("policy_domain", f"domain {domain}, which the policy names in {field}, was not run: {', '.join(run.suites)} were")
        for field, domains in named.items()
        for domain in dict.fromkeys(domains)
        if domain not in run.suites
    ]
    if policy.base and run.candidate.get("digest") not in policy.base:
        found.append(Refusal("policy_base", f"the base {run.candidate.get('digest')} is none that the policy names"))
    for domain, digest in run.suites.items():
        records = evidence.of(domain)
        if domain in policy.suites and digest not in policy.suites[domain]:
            found.append(Refusal("policy_suite", f"suite {domain} with digest {digest} is none that the policy names"))
        judges = {r.identity.judge.get("digest") for r in records}
        if domain in policy.judges and not judges <= set(policy.judges[domain]):
            found.append(
                Refusal("policy_judge", f"a judge of {domain} is none that the policy names: {sorted(map(str, judges))}")
            )
        if policy.labels and not all(any(c.source == "labels" for c in r.evidence.certificates) for r in records):
            found.append(Refusal("policy_labels", f"the judge of {domain} is not certified on labels of your own"))
        attacks = sum(r.evidence.kind == "attack" and r.evidence.standing == "claim" for r in records)
        if attacks < policy.min_attacks:
            found.append(Refusal("policy_attacks", f"{policy.min_attacks} attack cases are required of {domain}, got {attacks}"))
    return found


def _age(evidence: Evidence, policy: ReleasePolicy, now: datetime.datetime) -> list[Refusal]:
    """Whether the oldest measurement is too old, whatever run asked for it last, and the run ended before now."""
    run = evidence.run
    started, ended = moment(run.started), moment(run.ended)
    if started is None or ended is None:
        return [Refusal("clock", f"the run's times are no times with a zone: {run.started!r}, {run.ended!r}")]
    if ended < started:
        return [Refusal("clock", f"the run ended at {run.ended}, before it started at {run.started}")]
    if now - ended < -MAX_CLOCK_LEAD:
        return [Refusal("clock", f"the run ended in the future, at {run.ended}")]
    began = [(at, r.case_id, text) for r in evidence.records.values() if (text := oldest(r)) and (at := moment(text))]
    first, case, text = min(began, default=(started, "the run", run.started))
    age = now - first
    if age > datetime.timedelta(days=policy.max_age_days):
        told = f"{case}: its oldest measurement or training began at {text}"
        return [Refusal("too_old", f"{told}, more than {policy.max_age_days:g} days ago")]
    return []


def _tool(evidence: Evidence, policy: ReleasePolicy) -> list[Refusal]:
    """Whether this very harness made the run, or one that the policy names."""
    made_by = {r.identity.versions.get("rn-harness-sources", "unknown") for r in evidence.records.values()}
    strange = sorted(made_by - {source_digest(), *policy.sources})
    if not strange and made_by:
        return []
    got = ", ".join(strange) or "none"
    return [
        Refusal(
            "tool_version",
            f"the run was made by sources {got} (rn-harness {evidence.run.provenance.tool}), these are {source_digest()}",
        )
    ]


def _once(refusals: Sequence[Refusal]) -> list[Refusal]:
    """Each sentence once: what several checks found has a code that nobody can waive, if one of them gave such a code."""
    first: dict[str, Refusal] = {}
    for refusal in sorted(refusals, key=lambda r: r.code in get_args(Waivable)):
        first.setdefault(refusal.sentence, refusal)
    return list(first.values())


def _waive(
    refusals: Sequence[Refusal], waivers: Sequence[Waiver], today: datetime.date
) -> tuple[list[Refusal], list[tuple[Refusal, Waiver]]]:
    """What no waiver took, and what each took: the refusal that it quotes, until it has expired."""
    left: list[Refusal] = []
    waived: list[tuple[Refusal, Waiver]] = []
    for refusal in refusals:
        fitting = [w for w in waivers if w.code == refusal.code and w.about.split() == refusal.sentence.split()]
        current = next((w for w in fitting if w.expires >= today), None)
        if current is not None and refusal.code in get_args(Waivable):
            waived.append((refusal, current))
            continue
        left.append(refusal)
        left += [Refusal("waiver_expired", f"the waiver of {w.owner} for it ended on {w.expires}") for w in fitting]
    return left, waived
