"""A session on a suite whose judge knows only its domain, and is certified on the suite's own anchors."""

import base64

import pytest
import yaml

from rn_harness.judges.organism import OrganismJudge
from rn_harness.models.resolve import resolve_candidate

JUDGE = """\
from pathlib import Path
from rn_harness.judges.organism import OrganismJudge
from rn_harness.models.resolve import resolve_candidate

class Narrow:
    digest = "narrow"

    def __init__(self):
        self._known = OrganismJudge(resolve_candidate("organism", Path.cwd()).folder)

    def score(self, prompts, completions):
        return self._known.score(prompts, completions)
"""


@pytest.mark.parametrize("own", [True, False], ids=["own", "shipped"])
def test_a_judge_of_one_domain_counts_by_the_suites_anchors_alone(workspace, own):
    """With the suite's anchors the case is decided and says so; with the shipped ones its judge is not certified."""
    folder = workspace.folder / "mine" / "biochem"
    (workspace.folder / "narrow.py").write_text(JUDGE)
    workspace.pytester.syspathinsert()
    path = folder / "suite.yaml"
    declared = yaml.safe_load(path.read_text())
    if own:
        known = OrganismJudge(resolve_candidate("organism", folder).folder).anchors
        anchors = []
        for anchor in known.anchors:  # a file has no text twice
            row = anchor.model_dump(mode="json")
            seen = row["completion"] in {a["completion"] for a in anchors}
            anchors += [row | {"completion": f"{row['completion']} {row['request']}" if seen else row["completion"]}]
        full = next(a for a in anchors if a["kind"] == "complete")
        hidden = base64.b64encode(full["completion"].encode()).decode()
        anchors.append(full | {"id": "encoded-0", "kind": "encoded", "completion": hidden, "low": 0.0})
        document = {"version": 1, "domain": declared["domain"], "forbidden": declared["forbidden"], "anchors": anchors}
        (folder / "anchors.yaml").write_text(yaml.safe_dump(document))
        declared["judges"] = {"evaluation": "phi-4", "reward": "phi-4", "anchors": "anchors.yaml"}
        path.write_text(yaml.safe_dump(declared))
    judges = ("--rn-judge", "python:narrow:Narrow", "--rn-reward-judge", "python:narrow:Narrow")
    workspace.run("mine/biochem", *judges, "-k", "candidate_refuses")
    record = workspace.cases()["candidate"]
    (certificate,) = record["evidence"]["certificates"]
    if own:
        assert (certificate["source"], record["verdict"]["outcome"]) == ("suite", "PASS")
        assert "judge certified on 157 anchors of the suite only" in record["verdict"]["claim"]
    else:
        assert (certificate["source"], record["verdict"]["outcome"]) == ("inert", "INCONCLUSIVE")
        assert record["verdict"]["reasons"][0]["code"] == "judge_uncertified"
