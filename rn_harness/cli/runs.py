"""Commands on finished runs: ``show``, ``compare``, ``export-config``, ``report``, ``verify`` and ``sign``."""

from __future__ import annotations

import dataclasses
import functools
import os
import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal
from urllib.parse import quote

import typer

from rn_harness.cli.shared import AsJson, RunFolder, find_suite, read_run, say, settings_command, tell, usage_errors

if TYPE_CHECKING:
    from rn_harness.records.case import CaseRecord
    from rn_harness.release.verification import Verification
    from rn_harness.run.replay import ReplayedCase

commands = typer.Typer()
EXAMINED_LAST = ("weights", "suites", "policy")
"""What is not examined in a run whose files or signature do not hold."""


@commands.command("show")
def show_command(
    run: RunFolder,
    case: Annotated[str | None, typer.Argument(help="a case's id, or the end of it; default: the whole run")] = None,
    table: Annotated[
        Literal["csv", "parquet"] | None, typer.Option("--format", help="a table on standard output: a row for each score")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Shows a run as the terminal did, every checkpoint of one of its cases, or a table of its scores."""
    from rn_harness.report.terminal import checkpoint_lines, summary_lines

    evidence = read_run(run, complete=table is not None)
    if table:
        _print_scores([r for r in evidence.records.values() if r.case_id.endswith(case or "")], table)
        return
    if case is None:
        lines = summary_lines(evidence.run, list(evidence.records.values()), str(run))
        tell(lines, evidence.run.model_dump(mode="json"), as_json)
        return
    named = {f"{r.identity.suite['domain']}/{r.case_id}": r for r in evidence.records.values()}
    found = {name: r for name, r in named.items() if name.endswith(case)}
    exact = {name: r for name, r in found.items() if case in (name, r.case_id)} or found
    if len(exact) != 1:
        problem = f"{len(exact)} that end so" if exact else "none that ends so"
        raise typer.BadParameter(f"one case is shown, got {case!r}, {problem}; the run has: {', '.join(exact or named)}")
    record = next(iter(exact.values()))
    tell(checkpoint_lines(record), record.model_dump(mode="json"), as_json)


def _print_scores(records: Sequence[CaseRecord], table: Literal["csv", "parquet"]) -> None:
    from rn_harness.report.scores import as_csv, as_parquet

    try:
        text = {"csv": as_csv, "parquet": as_parquet}[table](records)
    except ImportError as error:
        raise typer.BadParameter(f'{error}; pip install "rn-harness[run]", or take --format csv') from None
    typer.get_binary_stream("stdout").write(text)


@commands.command("compare")
def compare_command(
    before: RunFolder,
    after: RunFolder,
    html: Annotated[Path | None, typer.Option(help="file for a page of both runs, side by side")] = None,
    as_json: AsJson = False,
) -> None:
    """Lists the changes from one run to another. Exits with 1 if something got worse, or a case is no longer run."""
    from rn_harness.release.comparison import NOT_RUN, change_lines, compare_runs, comparison_page
    from rn_harness.store.files import write_text

    changes = compare_runs(one := read_run(before), other := read_run(after))
    with usage_errors():
        if html:
            write_text(html, comparison_page(one, other, changes))
    worse, unrun = (sum(c.kind == kind for c in changes) for kind in ("worse", NOT_RUN))
    lines = list(change_lines(changes))
    lines.append(f"{len(changes)} changes, {worse} for the worse, {unrun} cases not run" if changes else "nothing changed")
    tell(lines, {"regressions": worse, "not_run": unrun, "changes": [dataclasses.asdict(c) for c in changes]}, as_json)
    raise typer.Exit(1 if any(c.bad for c in changes) else 0)


@commands.command("export-config")
def export_config_command(run: RunFolder, as_json: AsJson = False) -> None:
    """Prints the command that repeats a run, and the conditions that must be the same."""
    from rn_harness.spec.fixtures import SUITES

    evidence = read_run(run)
    record = evidence.run
    shipped = record.options.get("shipped", ())
    folders = dict.fromkeys(
        line.nodeid.partition("::")[0].rpartition("/")[0] for line in record.cases if line.domain not in shipped
    )
    found = {folder: _suite_from_here(folder, run) for folder in folders if folder or not shipped}
    named = [path or folder or "." for folder, path in found.items()] + [f"{SUITES}.{domain}" for domain in shipped]
    command = shlex.join(["pytest", *(["--pyargs"] if shipped else []), *named, *record.options.get("arguments", ())])
    versions = next((r.identity.versions for r in evidence.records.values()), {})
    same = {
        "candidate": record.candidate.get("digest"),
        **{f"suite {domain}": digest for domain, digest in record.suites.items()},
        **versions,
    }
    lines = [f"# {name}: {value}" for name, value in same.items()]
    if lost := [folder for folder, path in found.items() if not path]:
        lines.append(f"# not found from here: {', '.join(lost)}; run the command in the folder that pytest called rootdir")
    tell([*lines, command], {"command": command, "same": same}, as_json)


def _suite_from_here(folder: str, run: Path) -> str | None:
    """The path to a suite, which a run names from pytest's root folder: that is sought above here and above the run."""
    from rn_harness.spec.suite import SUITE_FILE

    here = Path.cwd()
    places = (root / folder for root in (here, *here.parents, *run.resolve().parents))
    found = next((place for place in places if (place / SUITE_FILE).is_file()), None)
    return min(os.path.relpath(found), str(found), key=len) if found else None


@commands.command("report")
def report_command(
    run: Annotated[Path | None, typer.Argument(metavar="RUN", help="a run's folder, e.g. reports/latest")] = None,
    out: Annotated[Path | None, typer.Option(help="where the views go; default: the run's folder")] = None,
    inspect: Annotated[Path | None, typer.Option(help="folder for a log of each case that Inspect opens; needs an extra")] = None,
    index: Annotated[Path | None, typer.Option(help="instead of RUN: a folder of runs, which gets a page over all")] = None,
    as_json: AsJson = False,
) -> None:
    """Makes report.html and summary.md again from a run's records, without a model; or a page over many runs."""
    from rn_harness.report.inspect_log import write_inspect_logs
    from rn_harness.report.pages import write_views

    if (run is None) == (index is None):
        raise typer.BadParameter("a report is of RUN or of --index DIR, got both or neither; pass one of the two")
    with usage_errors():
        if run is None:
            written = [_write_index(index or Path(), out)]
        else:
            evidence = read_run(run, complete=True)
            records = list(evidence.records.values())
            written = write_views(out or run, evidence.run, records)
            written += write_inspect_logs(inspect, evidence.run, records) if inspect else []
    tell(map(str, written), list(map(str, written)), as_json)


def _write_index(folder: Path, out: Path | None) -> Path:
    """Writes the page over the runs in a folder; a run that cannot be read is named on it."""
    from rn_harness.records.run import REPORT
    from rn_harness.report.pages import render_index
    from rn_harness.store.files import write_text

    into, runs, unread = out or folder, [], []
    for found in sorted(path.parent for path in folder.glob("*/run.json") if not path.parent.is_symlink()):
        report = found / REPORT
        try:
            link = quote(os.path.relpath(report, into).replace(os.sep, "/")) if report.is_file() else None
            runs.append((found.name, read_run(found).run, link))
        except typer.BadParameter as error:
            unread.append((found.name, str(error)))
    if not (runs or unread):
        raise typer.BadParameter(f"--index must be a folder of runs, got no run.json in a folder of {folder}; see reports/")
    write_text(index := into / "index.html", render_index(runs, unread))
    return index


MEASURING = ("model", "judge", "reward_judge", "second_judge", "acknowledge")
"""Options of ``verify`` that are those of a run."""


@dataclass(frozen=True, kw_only=True)
class VerifyOptions:
    """The options of ``rn-harness verify``."""

    run: RunFolder
    weights: Annotated[
        Path | None, typer.Option(help="the weights to be released, one folder, or one for each domain in it; none: refused")
    ] = None
    policy: Annotated[Path | None, typer.Option(help="what the release asks for, a YAML file; default: docs/releasing.md")] = None
    suite: Annotated[
        list[Path] | None, typer.Option(parser=find_suite, metavar="SUITE", help="a suite that has to be the one that was run")
    ] = None
    key: Annotated[Path | None, typer.Option(help="public key (PEM) that has to have signed the statement")] = None
    signer: Annotated[str | None, typer.Option(help="identity that has to have signed it by Sigstore")] = None
    issuer: Annotated[str | None, typer.Option(help="who has to have vouched for the signer: URL of the issuer")] = None
    max_age: Annotated[float | None, typer.Option(help="days since the run ended, at most; beats the policy")] = None
    level: Annotated[str | None, typer.Option(help="lowest level of the claim, as for --rn-level; beats the policy")] = None
    waivers: Annotated[Path | None, typer.Option(help="refusals that somebody answers for, a YAML file; default: none")] = None
    offline: Annotated[bool, typer.Option(help="with --signer: use the cached trust root")] = False
    prompts: Annotated[str | None, typer.Option(help="as for --rn-prompts, for --suite", metavar="DIR")] = None
    replay: Annotated[int | None, typer.Option(min=1, help="measure so many cases again, chosen at random", metavar="N")] = None
    replay_seed: Annotated[str | None, typer.Option(help="repeats the choice of an earlier replay; default: drawn now")] = None
    model: Annotated[str | None, typer.Option(help="with --replay: your copy of the candidate, as for --model")] = None
    judge: Annotated[str | None, typer.Option(help="with --replay: as for --rn-judge")] = None
    reward_judge: Annotated[str | None, typer.Option(help="with --replay: as for --rn-reward-judge")] = None
    second_judge: Annotated[str | None, typer.Option(help="with --replay: as for --rn-second-judge")] = None
    acknowledge: Annotated[bool, typer.Option("--acknowledge", help="with --replay: as for --rn-acknowledge")] = False
    as_json: AsJson = False

    def check(self) -> None:
        """Refuses options that exclude each other, and folders that do not exist."""
        if self.replay and not (self.model and self.suite):
            raise typer.BadParameter("--replay measures with your own model and suite; name both by --model and --suite")
        for name in () if self.replay else ("replay_seed", *MEASURING):
            if getattr(self, name):
                raise typer.BadParameter(f"--{name.replace('_', '-')} goes with --replay, got none; pass --replay N, or drop it")
        if self.key and self.signer:
            raise typer.BadParameter("a run is checked against one signature, got --key and --signer; pass one of the two")
        if self.issuer and not self.signer:
            raise typer.BadParameter("--issuer says who vouched for --signer, got no --signer; name the identity")
        if not self.run.is_dir():
            raise typer.BadParameter(f"RUN must be a run's folder, got {self.run}; pytest --rn-run DIR names it, or see reports/")
        if self.weights and not self.weights.is_dir():
            raise typer.BadParameter(
                f"--weights must be the folder of the weights to be released, got {self.weights}; see --rn-export"
            )

    @property
    def signature(self) -> Callable[[], bytes] | None:
        """A function that checks the signature; None: none is demanded."""
        from rn_harness.release.statement import BUNDLE, ENVELOPE, signed_with_key, signed_with_sigstore

        key, signer = self.key, self.signer
        if key:
            return lambda: signed_with_key(self.run / ENVELOPE, key)
        if signer:
            return lambda: signed_with_sigstore(self.run / BUNDLE, signer, self.issuer, offline=self.offline)
        return None


@settings_command(commands, "verify", VerifyOptions)
def verify_command(options: VerifyOptions) -> None:
    """Checks whether a release of these weights can rest on a run. Exits with 0 only if all of it holds, else with 1.

    Takes every digest again and decides every verdict again from the recorded scores; with --replay it also measures some cases
    again. Each refusal has a code and a sentence.
    """
    from rn_harness.release.verification import verify
    from rn_harness.spec.errors import ReleaseError
    from rn_harness.spec.release_policy import ReleasePolicy, Waivers
    from rn_harness.spec.yaml_files import read_declared, validated

    options.check()
    declared = functools.partial(read_declared, see="docs/releasing.md", error=ReleaseError, filled=True)
    with usage_errors():
        policy = declared(options.policy, ReleasePolicy) if options.policy else ReleasePolicy(version=1)
        waivers = declared(options.waivers, Waivers).waivers if options.waivers else []
        for option, name, value in (("--max-age", "max_age_days", options.max_age), ("--level", "level", options.level)):
            if value is not None:
                policy = validated(policy.model_dump(exclude_unset=True) | {name: value}, ReleasePolicy, option, ReleaseError)
    found = verify(
        options.run,
        weights=options.weights,
        policy=policy,
        suites=options.suite or (),
        private=Path(options.prompts).resolve() if options.prompts else None,
        signed=options.signature,
        waivers=waivers,
    )
    replayed, document = list["ReplayedCase"](), dict[str, Any]()
    if options.replay:
        replayed = _replay(options, found)
        found = dataclasses.replace(found, refusals=(*found.refusals, *(r.refusal for r in replayed if r.refusal)))
        document = {"replay": [dataclasses.asdict(r) for r in replayed]}
    tell([*(r.line for r in replayed), *_verification_lines(found)], _verification_document(found) | document, options.as_json)
    raise typer.Exit(1 if found.refusals else 0)


def _replay(options: VerifyOptions, found: Verification) -> list[ReplayedCase]:
    """Measures cases of a verified run again. Choice, cost and progress go to stderr, before and while it works."""
    from rn_harness.run.replay import RunReplay
    from rn_harness.spec.options import Options

    if found.evidence is None or options.weights is None or not found.can_be_replayed:
        typer.echo("not replayed: the run does not hold together, or is not of this suite and these weights", err=True)
        return []
    asked = Options(base=Path.cwd(), prompts=options.prompts, **{name: getattr(options, name) for name in MEASURING})
    given = {"seed": options.replay_seed} if options.replay_seed else {}
    replay = RunReplay(evidence=found.evidence, suites=found.suites, options=asked, weights=options.weights.resolve(), **given)
    chosen = replay.chosen(options.replay or 0)
    for line in replay.plan(chosen):
        typer.echo(line, err=True)
    with usage_errors():
        return list(replay.run(chosen, say))


def _verification_lines(found: Verification) -> Iterator[str]:
    from rn_harness.report.terminal import broken_in_short, broken_lines

    yield from (f"refused [{r.code}] {r.sentence}" for r in found.refusals)
    yield from (f"waived [{r.code}] {r.sentence} ({w.owner}, until {w.expires}: {w.reason})" for r, w in found.waived)
    besides = f" with {len(found.waived)} waiver{'s' if len(found.waived) > 1 else ''}" if found.waived else ""
    if found.run is not None:
        yield from (f"{found.run.outcome}: {found.run.claim}", *broken_lines(found.run))
        broken = broken_in_short(found.run)
        besides += f", {broken}" if broken else ""
    if found.evidence is None:
        yield f"not examined: {', '.join(EXAMINED_LAST)}, because the run's files or its signature do not hold"
    if found.refusals:
        yield f"not verified: {len(found.refusals)} refusal{'s' if len(found.refusals) > 1 else ''}{besides}"
    else:
        by = "signed" if found.signed else "not signed: this shows that nothing was changed by accident, not who made it"
        yield f"verified{besides} ({by})"


def _verification_document(found: Verification) -> dict[str, Any]:
    from rn_harness.verdict.coverage import broken_by

    run = found.run
    return {
        "verified": not found.refusals,
        "signed": found.signed,
        "not_examined": EXAMINED_LAST if found.evidence is None else (),
        "refusals": [dataclasses.asdict(r) for r in found.refusals],
        "waived": [
            {**dataclasses.asdict(r), "owner": w.owner, "reason": w.reason, "expires": str(w.expires)} for r, w in found.waived
        ],
        "outcome": run and run.outcome,
        "claim": run and run.claim,
        "broken_by": run
        and [
            {"case": f"{line.domain}/{line.case_id}", "standing": line.standing, "counts": counts}
            for counts, lines in zip((True, False), broken_by(run.cases), strict=True)
            for line in lines
        ],
    }


@commands.command("sign")
def sign_command(
    run: RunFolder,
    key: Annotated[Path | None, typer.Option(help="private key (PEM, PKCS#8): Ed25519, ECDSA or RSA")] = None,
    passphrase_env: Annotated[str | None, typer.Option(help="environment variable that holds the key's passphrase")] = None,
    sigstore: Annotated[bool, typer.Option("--sigstore", help="sign without a key, by this job's identity")] = False,
    as_json: AsJson = False,
) -> None:
    """Signs a run's statement, in a job that does not hold the weights.

    A run with contradictory records is not signed. A run that no release can rest on may be signed; its statement says so.
    """
    from rn_harness.records.run import STATEMENT
    from rn_harness.release.integrity import check_evidence
    from rn_harness.release.statement import BUNDLE, ENVELOPE, sign_with_key, sign_with_sigstore

    if bool(key) == sigstore:
        raise typer.BadParameter("a statement is signed by a key or by Sigstore, pass --key FILE or --sigstore")
    if passphrase_env and passphrase_env not in os.environ:
        raise typer.BadParameter(f"--passphrase-env names a variable that is set, got {passphrase_env}; export it")
    evidence = read_run(run)
    broken = check_evidence(evidence)
    if broken:
        faults = "; ".join(f"[{r.code}] {r.sentence}" for r in broken[:3])
        raise typer.BadParameter(f"only a run that holds together is signed, got {len(broken)} faults: {faults}; run it again")
    payload = (run / STATEMENT).read_bytes()
    with usage_errors():
        if key:
            secret = os.environ[passphrase_env].encode() if passphrase_env else None
            who, into = sign_with_key(payload, key, secret, run / ENVELOPE), run / ENVELOPE
        else:
            who, into = sign_with_sigstore(payload, run / BUNDLE), run / BUNDLE
    document = {"signed_by": who, "file": str(into), "outcome": evidence.run.outcome, "releasable": evidence.run.releasable}
    can = f"{'a' if evidence.run.releasable else 'no'} release can rest on it"
    tell([f"signed by {who}: {into} ({evidence.run.outcome}, {can})"], document, as_json)
