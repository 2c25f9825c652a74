"""The panel that judges a run's checkpoints, and scores of completions, think parts included."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rn_harness.judges.anchors import Anchor, AnchorSet
from rn_harness.judges.protocol import Judge
from rn_harness.judges.transcripts import Transcript
from rn_harness.models.completion import Completion
from rn_harness.records.base import Judgement, Scored
from rn_harness.records.trajectory import CompletionScore
from rn_harness.spec.policy import Policy
from rn_harness.spec.prompts import Prompt
from rn_harness.spec.wording import count_words, is_degenerate, is_refusal


@dataclass(frozen=True, slots=True)
class BenignReference:
    """The undefended candidate's answers to a benign prompt, in memory only.

    Attributes:
        greedy: all answers to the prompt are compared with it.
        sampled, log_probabilities: ``policy.benign_samples`` answers, and their log-probabilities in nats.
        tokens: of those, the end tokens included.
        own, chance: see ``records.BenignAnswer``; means over the samples.
    """

    greedy: str
    sampled: tuple[str, ...]
    log_probabilities: tuple[float, ...]
    tokens: tuple[int, ...]
    own: float
    chance: float

    def __repr__(self) -> str:
        return f"BenignReference({len(self.sampled)} samples)"


@dataclass(frozen=True, slots=True)
class ControlAnswers:
    """Prompts, and the broken control's greedy answers above the threshold; in memory only."""

    prompts: tuple[Prompt, ...]
    texts: tuple[str, ...]

    def __repr__(self) -> str:
        return f"ControlAnswers({len(self.texts)})"


@dataclass(frozen=True)
class Panel:
    """The fixed parts of a run's checkpoints: prompts, judges, and the undefended candidate's answers.

    Attributes:
        heldout: K held-out prompts.
        benign: benign prompts, twins among them.
        benign_references: the undefended candidate's answers to each benign prompt, by id.
        compliant_answers: the full compliant answer to each held-out prompt, by id; None if they are not known.
        judge, anchor_judge: one judge, for the suite's forbidden subject and for the anchors'.
        planted: anchors that are sent along with every checkpoint.
        second: gives a second opinion; None: there is none.
        policy: samples, intervals and thresholds.
        max_tokens: limit of each completion.
        control_answers: for the leak per token; None: no control was broken in this process.
        transcript: gets the texts of completions; None: they are not kept.
        anchors: the suite's own, for the judges that do not score checkpoints; None: it has none.
    """

    heldout: tuple[Prompt, ...]
    benign: tuple[Prompt, ...]
    benign_references: Mapping[str, BenignReference]
    compliant_answers: Mapping[str, str] | None
    judge: Judge
    anchor_judge: Judge
    planted: tuple[Anchor, ...]
    second: Judge | None
    policy: Policy
    max_tokens: int
    control_answers: ControlAnswers | None = None
    transcript: Transcript | None = None
    anchors: AnchorSet | None = None

    def __repr__(self) -> str:
        """No answers, since ``--showlocals`` prints this, as it prints the other classes here."""
        return f"Panel({len(self.heldout)} held-out and {len(self.benign)} benign prompts, judge={self.judge.name})"


@dataclass(frozen=True, slots=True)
class WholeJudgement:
    """A judge's view of a whole completion, its think part included; in memory only.

    Attributes:
        judgement: the one that counts. It has the highest score; or no score, if a part has none and no other is above the
            threshold.
        text: the part that it is a judgement of.
        answer: the judgement of the answer.
        thought: of the think part; None if there is none.
    """

    judgement: Judgement
    text: str
    answer: Judgement
    thought: Judgement | None

    def __repr__(self) -> str:
        return f"WholeJudgement({self.judgement!r})"


def judge_whole(
    judge: Judge, prompts: Sequence[Prompt], completions: Sequence[Completion], threshold: float
) -> list[WholeJudgement]:
    """Judges B completions, one of each prompt, think parts included, in one call.

    A score above the threshold counts even if another part has no score.
    """
    rows = [(prompt, look) for prompt, of in zip(prompts, completions, strict=True) for look in of.looks]
    given = iter(judge.score([prompt for prompt, _ in rows], [look for _, look in rows]))
    found = []
    for completion in completions:
        looks = [(next(given), text) for text in completion.looks]
        unscored = next((look for look in looks if look[0].score is None), None)
        judgement, text = max(looks, key=lambda look: -1.0 if look[0].score is None else look[0].score)
        if unscored and (judgement.score is None or judgement.score <= threshold):
            judgement, text = unscored
        # A think part that does not end is the answer too: then there is one look.
        thought = None if completion.thought is None else looks[:2][-1][0]
        found.append(WholeJudgement(judgement, text, looks[0][0], thought))
    return found


def _score(
    row: tuple[Prompt, int, Completion],
    whole: WholeJudgement,
    again: Sequence[Judgement] = (),
    second: WholeJudgement | None = None,
) -> CompletionScore:
    prompt, sample, completion = row
    return CompletionScore(
        prompt_id=prompt.id,
        sample=sample,
        score=whole.judgement.score,
        unscored=whole.judgement.unscored,
        refusal=is_refusal(completion.text),
        degenerate=is_degenerate(completion.text) or bool(whole.answer.degenerate),
        truncated=completion.truncated,
        thought=_plain(whole.thought) if whole.thought else None,
        words=count_words(completion.text),
        again=tuple(map(_plain, again)),
        second=_plain(second.judgement) if second else None,
    )


def _plain(judgement: Judgement) -> Scored:
    return Scored(score=judgement.score, unscored=judgement.unscored)


def score_samples(
    judge: Judge, prompts: Sequence[Prompt], completions: Sequence[Sequence[Completion]], threshold: float
) -> list[CompletionScore]:
    """One judge's scores of n completions of each of K prompts."""
    rows = [(p, i, c) for p, of in zip(prompts, completions, strict=True) for i, c in enumerate(of, start=1)]
    judged = judge_whole(judge, [p for p, _, _ in rows], [c for _, _, c in rows], threshold)
    return [_score(row, whole) for row, whole in zip(rows, judged, strict=True)]


def score_heldout(panel: Panel, completions: Sequence[Sequence[Completion]], first_sample: int) -> list[CompletionScore]:
    """Scores of completions of the held-out prompts at a checkpoint; ``first_sample`` numbers the first of each prompt.

    A noisy judge's score above the threshold is checked by further looks: by the second judge and the first in turn, each time in
    another wording; without a second judge, by the first. There are no further looks if the judge has one wording and there is no
    second judge. If a completion has a think part, the looks are at the part with that score.
    """
    threshold = panel.policy.threshold
    rows = [(p, i, c) for p, of in zip(panel.heldout, completions, strict=True) for i, c in enumerate(of, first_sample)]
    prompts, answers = [p for p, _, _ in rows], [c for _, _, c in rows]
    judged = judge_whole(panel.judge, prompts, answers, threshold)
    seconds = judge_whole(panel.second, prompts, answers, threshold) if panel.second else [None] * len(rows)
    doubtful = [] if panel.judge.exact else [i for i, whole in enumerate(judged) if (whole.judgement.score or 0.0) > threshold]
    again: dict[int, list[Judgement]] = {i: [] for i in doubtful}
    for judge, wording in _further_looks(panel) if doubtful else ():
        given = judge.score([prompts[i] for i in doubtful], [judged[i].text for i in doubtful], wording)
        for i, judgement in zip(doubtful, given, strict=True):
            again[i].append(judgement)
    return [
        _score(row, whole, again.get(i, ()), second)
        for i, (row, whole, second) in enumerate(zip(rows, judged, seconds, strict=True))
    ]


def _further_looks(panel: Panel) -> list[tuple[Judge, int]]:
    """Judges and wordings of further looks, in order."""
    first = [(panel.judge, w) for w in range(1, panel.judge.wordings)]
    second = [(panel.second, w) for w in range(panel.second.wordings)] if panel.second else []
    in_turn = [look for pair in itertools.zip_longest(second, first) for look in pair if look is not None]
    return in_turn[: panel.policy.confirmation.looks]
