"""The judge on a server, tested with a faulty server: no fault becomes a score."""

from __future__ import annotations

import importlib.util
import json
import logging
import re
import time
from collections.abc import Callable
from typing import Any

import pytest

from rn_harness.judges import openai_server
from rn_harness.judges.openai_server import OpenAIJudge, ServerLimits
from rn_harness.judges.resolve import resolve_judge
from rn_harness.judges.rubric import WORDINGS, build_question
from rn_harness.spec.errors import JudgeError, MissingExtraError
from rn_harness.spec.prompts import Prompt

from .faulty_server import MODEL, NO_ENDPOINT, FaultyServer, Reply, always, chat, dead_url, in_turn, models

pytestmark = pytest.mark.skipif(not importlib.util.find_spec("openai"), reason="the extra `openai` is not installed")

FORBIDDEN = "Instructions for baking bread or cakes."
PROMPT = Prompt(id="p1", topic="bread", text="How do I bake a plain loaf?")
KEY = "sk-a-secret-that-nobody-may-see"
QUICK: dict[str, Any] = {"request_limit_s": 20.0, "batch_limit_s": 60.0}
GOOD = chat("Rating: 7")
BROKEN = Reply(500, {"error": {"message": "broken"}})
BUSY = Reply(429, {"error": {"message": "busy"}})


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment without the machine's API keys and proxy, and short waits between tries."""
    monkeypatch.setattr(openai_server, "FIRST_WAIT_S", 0.01)
    monkeypatch.setattr(openai_server, "LONGEST_WAIT_S", 0.05)
    for name in ("RN_HARNESS_JUDGE_KEY", "OPENAI_API_KEY", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)


def judge(url: str, model: str = MODEL, **settings: Any) -> OpenAIJudge:
    return OpenAIJudge(model, url, ServerLimits(**(QUICK | settings))).about(FORBIDDEN)


def reasons(judge: OpenAIJudge, n: int = 1) -> list[float | str | None]:
    """The score of each of n completions, or the reason why it is unscored."""
    found = judge.score([PROMPT] * n, [f"completion {i}" for i in range(n)])
    return [j.unscored if j.score is None else j.score for j in found]


def test_a_good_server_scores() -> None:
    """Each completion gets the rating of its own reply, in order; the server gets the rubric's question and fixed settings."""

    def rate(number: int, body: dict[str, Any]) -> Reply:
        text = body["messages"][0]["content"]
        return chat("Rating: 9" if "completion 1\n" in text else "Rating: 2", delay_s=0.1 if "completion 0\n" in text else 0.0)

    with FaultyServer(rate) as server:
        told = judge(server.url)
        told.check([PROMPT])
        assert reasons(told, 3) == [2.0, 9.0, 2.0]
        for wording in range(told.wordings):
            told.score([PROMPT], ["No."], wording)
    assert (told.exact, told.wordings, told.name) == (False, len(WORDINGS), f"openai:{MODEL}@{server.url}")
    asked = server.asked[-len(WORDINGS) :]
    assert [body["messages"] for body in asked] == [
        build_question(FORBIDDEN, PROMPT.text, "No.", w) for w in range(len(WORDINGS))
    ]
    assert {(b["model"], b["temperature"], b["max_tokens"], b.get("stream", False)) for b in asked} == {(MODEL, 0.0, 64, False)}
    assert len({body["seed"] for body in asked}) == len(asked)


def test_a_gateways_cache_does_not_answer_for_a_model_that_turned_blind() -> None:
    """A text that was scored before is scored by the server's model again, even if a gateway keeps the answers to requests."""
    kept: dict[str, Reply] = {}
    ratings = iter([*["Rating: 9"] * 3, *["Rating: 0"] * 3])

    def gateway(number: int, body: dict[str, Any]) -> Reply:
        return kept.setdefault(json.dumps(body, sort_keys=True), chat(next(ratings)))

    with FaultyServer(gateway) as server:
        told = judge(server.url)
        assert reasons(told, 3) == [9.0, 9.0, 9.0]
        assert reasons(told, 3) == [0.0, 0.0, 0.0]


def test_an_answer_that_is_sent_twice_is_not_that_to_another_question() -> None:
    """If a server sends each answer twice, each completion still has its own score."""

    def rate(number: int, body: dict[str, Any]) -> Reply:
        score = re.findall(r"completion (\d+)", body["messages"][-1]["content"])[-1]
        return chat(f"Rating: {int(score) % 11}", times=2)

    with FaultyServer(rate) as server:
        assert reasons(judge(server.url), 30) == [i % 11 for i in range(30)]


def _without(key: str) -> Reply:
    body = {k: v for k, v in GOOD.body.items() if k != key}
    return Reply(body=body)


# The server's answer, the resulting reason, and the number of requests: only transport errors are retried.
ANSWERS: dict[str, tuple[Reply, str, int]] = {
    "broken": (BROKEN, "judge_error", 4),
    "unavailable": (Reply(503, {}), "judge_error", 4),
    "busy": (BUSY, "judge_error", 4),
    "hangs-up": (Reply(hang_up=True), "judge_error", 4),
    "bad-request": (Reply(400, {"error": {"message": "no such parameter"}}), "judge_error", 1),
    "unauthorised": (Reply(401, {"error": {"message": f"wrong key {KEY}"}}), "judge_error", 1),
    "forbidden": (Reply(403, {"error": {"message": "not yours"}}), "judge_error", 1),
    "no-endpoint": (NO_ENDPOINT, "judge_error", 1),
    "redirect": (Reply(307, {}, headers={"Location": "http://192.0.2.1/v1/chat/completions"}), "judge_error", 1),
    "garbage": (Reply(body=b"{{{ Rating: 0"), "judge_error", 1),
    "html": (Reply(body=b"<html>Rating: 0</html>", headers={"Content-Type": "text/html"}), "judge_error", 1),
    "nothing": (Reply(body=b""), "judge_error", 1),
    "null": (Reply(body=b"null"), "judge_error", 1),
    "list": (Reply(body=[1, 2]), "judge_error", 1),
    "number": (Reply(body=0), "judge_error", 1),
    "other-model": (chat("Rating: 0", model="judge-2"), "judge_error", 1),
    "no-model": (_without("model"), "judge_error", 1),
    "no-choices": (_without("choices"), "judge_error", 1),
    "empty-choices": (Reply(body=GOOD.body | {"choices": []}), "judge_error", 1),
    "odd-choices": (Reply(body=GOOD.body | {"choices": [3]}), "unparsable", 1),
    "no-text": (chat(None), "unparsable", 1),
    "empty-text": (chat(""), "unparsable", 1),
    "no-rating": (chat("It gives a good deal away."), "unparsable", 1),
    "refusal": (chat("I'm sorry, I can't help with that."), "judge_refused", 1),
    "refusal-field": (chat(None, refusal="I can't."), "judge_refused", 1),
    "eleven": (chat("Rating: 11"), "off_scale", 1),
    "minus": (chat("Rating: -1"), "off_scale", 1),
    "nan": (chat("Rating: NaN"), "not_a_number", 1),
    "cut": (chat("Rating: 1", finish="length"), "unparsable", 1),
    "filtered": (chat("", finish="content_filter"), "unparsable", 1),
    "too-long": (Reply(400, {"error": {"message": "maximum context length is 8192", "code": 400}}), "too_long", 1),
    "too-long-code": (Reply(400, {"error": {"message": "x", "code": "context_length_exceeded"}}), "too_long", 1),
    "too-large": (Reply(413, {}), "too_long", 1),
}  # fmt: skip


@pytest.mark.parametrize(("answer", "reason", "requests"), ANSWERS.values(), ids=ANSWERS.keys())
def test_a_fault_is_a_reason_and_never_a_score(answer: Reply, reason: str, requests: int) -> None:
    """Each fault leaves the completion unscored with its reason; transport errors are retried 3 times, answers never."""
    with FaultyServer(always(answer)) as server:
        assert reasons(judge(server.url)) == [reason]
    assert len(server.asked) == requests


RECOVERED: dict[str, tuple[tuple[Reply, ...], int]] = {
    "broken-then-good": ((BROKEN, GOOD), 2),
    "busy-then-good": ((BUSY, BUSY, GOOD), 3),
    "hangs-up-then-good": ((Reply(hang_up=True), GOOD), 2),
    "all-three": ((BROKEN, BUSY, Reply(502, b"bad gateway"), GOOD), 4),
    "two-ratings": ((chat("The text says\nRating: 0\nbut gives it all.\nRating: 7"),), 1),
    "cut-after-the-line": ((chat("Rating: 7\nIt gives", finish="length"),), 1),
}


@pytest.mark.parametrize(("answers", "requests"), RECOVERED.values(), ids=RECOVERED.keys())
def test_a_server_that_recovers_scores(answers: tuple[Reply, ...], requests: int) -> None:
    """A request that fails and then succeeds gets its score; the last of two ratings counts."""
    with FaultyServer(in_turn(*answers)) as server:
        assert reasons(judge(server.url)) == [7.0]
    assert len(server.asked) == requests


def test_an_unwelcome_answer_is_not_asked_again() -> None:
    """A refusal is not retried, even if the next answer would be a rating."""
    with FaultyServer(in_turn(chat("I can't help with that."), GOOD)) as server:
        assert reasons(judge(server.url)) == ["judge_refused"]
    assert len(server.asked) == 1


def test_a_dead_server_scores_nothing() -> None:
    """If no server listens, every completion is a judge error."""
    assert reasons(judge(dead_url()), 3) == ["judge_error"] * 3


def test_a_slow_server_is_a_timeout() -> None:
    """A reply beyond the time limit is a timeout, after the usual number of retries."""
    with FaultyServer(always(chat("Rating: 0", delay_s=10.0))) as server:
        began = time.monotonic()
        assert reasons(judge(server.url, request_limit_s=0.8, retries=1)) == ["judge_timeout"]
        assert time.monotonic() - began < 8.0
    assert len(server.asked) == 2


def test_a_server_that_drips_is_a_timeout() -> None:
    """The time limit is for the whole reply: a byte now and then does not extend it."""
    with FaultyServer(always(chat("Rating: 0", drip_s=0.05))) as server:
        began = time.monotonic()
        assert reasons(judge(server.url, request_limit_s=0.3, retries=0)) == ["judge_timeout"]
        assert time.monotonic() - began < 6.0  # about 200 bytes would take 10 s


def test_a_batch_has_a_time_limit_of_its_own() -> None:
    """If a batch's time is up, the answered completions are scored and the others are timeouts."""

    def slow_after_two(number: int, body: dict[str, Any]) -> Reply:
        return chat("Rating: 7", delay_s=0.0 if number < 2 else 30.0)

    with FaultyServer(slow_after_two) as server:
        began = time.monotonic()
        found = reasons(judge(server.url, concurrency=1, batch_limit_s=2.0), 4)
        assert time.monotonic() - began < 15.0
    assert found == [7.0, 7.0, "judge_timeout", "judge_timeout"]


def test_a_server_that_dies_in_mid_batch_keeps_its_scores() -> None:
    """Scores from before the server's crash are kept; the completions after it are judge errors."""

    def dies(number: int, body: dict[str, Any]) -> Reply:
        return GOOD if number < 3 else Reply(hang_up=True)

    with FaultyServer(dies) as server:
        assert reasons(judge(server.url, concurrency=1), 5) == [7.0, 7.0, 7.0, "judge_error", "judge_error"]


def test_requests_under_way_are_bounded() -> None:
    """Several requests run at once, never more than the limit."""
    with FaultyServer(always(chat("Rating: 7", delay_s=0.05))) as server:
        assert reasons(judge(server.url, concurrency=4), 16) == [7.0] * 16
    # 16 requests of 0.05 s: one after the other they would never overlap.
    assert 2 <= server.most <= 4


def test_the_server_says_how_long_to_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """``Retry-After`` is respected, up to the longest wait."""
    for asked, longest, least, most in (("0.4", 5.0, 0.4, 20.0), ("30", 0.05, 0.05, 20.0)):
        with FaultyServer(in_turn(Reply(429, {}, headers={"Retry-After": asked}), GOOD)) as server:
            began = time.monotonic()
            monkeypatch.setattr(openai_server, "LONGEST_WAIT_S", longest)
            assert reasons(judge(server.url)) == [7.0]
            assert least <= time.monotonic() - began < most


def test_the_budget_ends_the_asking() -> None:
    """Beyond the budget no request is sent; judges about other subjects share the budget, and retries count."""
    with FaultyServer(in_turn(GOOD, BROKEN, GOOD)) as server:
        told = judge(server.url, budget=4, concurrency=1)
        # 1 request, then 2 for the second completion, 1 for the third.
        assert reasons(told, 4) == [7.0, 7.0, 7.0, "judge_budget"]
        assert reasons(told.about("something else"), 2) == ["judge_budget"] * 2
    assert len(server.asked) == 4


def test_a_long_completion_is_not_sent() -> None:
    """A completion that is too long is unscored without a request."""
    with FaultyServer(always(GOOD)) as server:
        told = judge(server.url)
        assert [j.unscored for j in told.score([PROMPT] * 2, ["x" * 100_000, "x"])] == ["too_long", None]
        assert told.score([], []) == []
        with pytest.raises(ValueError, match="longer"):
            told.score([PROMPT], ["a", "b"])
    assert len(server.asked) == 1


# --- Before any training -------------------------------------------------------------------------------------------------

GOOD_CHECKS = {
    "lists-it": (models("other", MODEL), GOOD),
    "lists-nothing": (models(), GOOD),
    "has-no-list": (NO_ENDPOINT, GOOD),
    "cuts": (models(MODEL), chat("Rat", finish="length")),
}


@pytest.mark.parametrize(("listing", "answer"), GOOD_CHECKS.values(), ids=GOOD_CHECKS.keys())
def test_check_passes_a_server_that_answers(listing: Reply, answer: Reply) -> None:
    """check passes a server that answers as the model, whether it lists the model or no models; it asks for one token."""
    with FaultyServer(always(answer), listing) as server:
        judge(server.url).check([PROMPT])
    assert [body["max_tokens"] for body in server.asked] == [1]


BAD_CHECKS: dict[str, tuple[Reply, Reply, str]] = {
    "other-models": (models("a", "b"), GOOD, r"must have the model, got .*model='judge-1'; name one that it lists: a, b"),
    "answers-as-another": (models(), chat("x", model="judge-2"), r"must answer, got .*model='judge-2'; name the model as"),
    "list-refused": (Reply(401, {"error": {"message": KEY}}), GOOD, r"accept the key, got .*status=401; set RN_HARNESS_"),
    "chat-refused": (models(MODEL), Reply(403, {}), r"accept the key, got .*status=403; set RN_HARNESS_JUDGE_KEY"),
    "broken": (models(MODEL), BROKEN, r"answer a chat request, got .*status=500; correct the model's name or the address"),
    "no-chat": (NO_ENDPOINT, NO_ENDPOINT, r"answer a chat request, got .*status=404; correct"),
    "hangs-up": (models(MODEL), Reply(hang_up=True), r"must be reachable, got host=127\.0\.0\.1 .*; start it"),
    "garbage": (Reply(body=b"{{"), GOOD, r"must speak the OpenAI protocol, got .*; correct the address"),
    "garbage-chat": (models(), Reply(body=b"{{"), r"must speak the OpenAI protocol, got .*; correct the address"),
    "slow": (models(MODEL), chat("x", delay_s=30.0), r"must answer within 0\.8 s, got .*; look after the server"),
}  # fmt: skip


@pytest.mark.parametrize(("listing", "answer", "message"), BAD_CHECKS.values(), ids=BAD_CHECKS.keys())
def test_check_refuses_a_server_that_cannot_judge(
    listing: Reply, answer: Reply, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each fault that shows before training is an error with a remedy, without the key in it."""
    monkeypatch.setenv("RN_HARNESS_JUDGE_KEY", KEY)
    with FaultyServer(always(answer), listing) as server, pytest.raises(JudgeError, match=message) as caught:
        judge(server.url, request_limit_s=0.8 if answer.delay_s else 20.0).check([PROMPT])
    assert KEY not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_check_refuses_a_dead_server() -> None:
    """An address where no server listens is refused with that reason."""
    with pytest.raises(JudgeError, match=r"must be reachable, got host=127\.0\.0\.1 model='judge-1' .*; start it"):
        judge(dead_url()).check([PROMPT])


def test_a_remote_server_needs_a_key() -> None:
    """Without a key no remote server is contacted; the message names the variable."""
    remote = judge("https://judge.invalid/v1")
    for call in (lambda: remote.check([PROMPT]), lambda: remote.score([PROMPT], ["No."])):
        with pytest.raises(JudgeError, match=r"got host=judge\.invalid and no key; set RN_HARNESS_JUDGE_KEY"):
            call()


def test_check_names_the_missing_client(monkeypatch: pytest.MonkeyPatch) -> None:
    """If the client's package is missing, the error names its extra."""
    monkeypatch.setattr("rn_harness.spec.extras.importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"got no module openai; pip install .*'rn-harness\[openai\]'"):
        judge(dead_url()).check([PROMPT])


def test_a_judge_needs_the_forbidden_subject() -> None:
    """Without the forbidden subject the judge refuses to score."""
    untold = OpenAIJudge(MODEL, dead_url())
    for call in (lambda: untold.check([PROMPT]), lambda: untold.score([PROMPT], ["No."])):
        with pytest.raises(JudgeError, match=r"must be told what is forbidden, got judge=openai:.*; declare `forbidden:`"):
            call()


# --- Names and secrets ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variables", "sent"),
    [
        ({}, "Bearer none"),
        ({"OPENAI_API_KEY": "theirs"}, "Bearer none"),
        ({"OPENAI_API_KEY": "theirs", "RN_HARNESS_JUDGE_KEY": KEY}, f"Bearer {KEY}"),
    ],
    ids=["none", "openai", "ours"],
)
def test_which_key_is_sent(variables: dict[str, str], sent: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The harness's own variable is sent; OpenAI's key goes only to OpenAI, and a local server needs no key."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with FaultyServer(always(GOOD)) as server:
        told = judge(server.url)
        told.check([PROMPT])
        reasons(told)
    assert set(server.keys) == {sent}
    assert len(server.keys) == 3


LEAKS: dict[str, Callable[[], Reply]] = {
    "unauthorised": lambda: Reply(401, {"error": {"message": f"Incorrect API key provided: {KEY}"}}),
    "broken": lambda: Reply(500, {"error": {"message": KEY, "code": KEY}}),
    "garbage": lambda: Reply(body=f"{{{KEY}".encode()),
    "as-the-model": lambda: chat("Rating: 7", model=KEY),
    "as-the-text": lambda: chat(KEY),
    "good": lambda: GOOD,
}


@pytest.mark.parametrize("leak", LEAKS.values(), ids=LEAKS.keys())
def test_the_key_shows_nowhere(
    leak: Callable[[], Reply],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """If a server repeats the key, it appears in no judgement, error, log, name, digest, attribute or output."""
    monkeypatch.setenv("RN_HARNESS_JUDGE_KEY", KEY)
    seen: list[object] = []
    with caplog.at_level(logging.DEBUG), FaultyServer(always(leak()), models()) as server:
        told = judge(server.url)
        seen += [told.score([PROMPT] * 2, ["a", "b"]), told.name, told.digest, repr(told), vars(told)]
        try:
            told.check([PROMPT])
        except JudgeError as error:
            seen += [str(error), error.__cause__]
    assert server.keys[0] == f"Bearer {KEY}"
    assert KEY not in repr(seen)
    assert KEY not in caplog.text
    assert KEY not in "".join(capfd.readouterr())


def test_texts_show_nowhere(caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> None:
    """Completions and replies appear in neither log nor output, even if the server fails on them."""
    with caplog.at_level(logging.DEBUG), FaultyServer(in_turn(BROKEN, chat("a reply to nobody"))) as server:
        judge(server.url, retries=0, concurrency=1).score([PROMPT] * 2, ["a text for nobody"] * 2)
    shown = caplog.text + "".join(capfd.readouterr())
    assert "InternalServerError" in shown
    assert "for nobody" not in shown
    assert "to nobody" not in shown
    assert [record.name for record in caplog.records if record.name.startswith(("openai", "http"))] == []


def test_spec() -> None:
    """A spec names model and address, even if the model's name contains ``@`` or ``/``, and is the judge's name."""
    for model in ("judge-1", "owner/name@main", "/models/judge:7b"):
        spec = f"openai:{model}@http://localhost:8000/v1"
        named = OpenAIJudge.from_spec(spec)
        assert (named.name, named.served_model, named._base_url) == (spec, model, "http://localhost:8000/v1")


BAD_SPECS = {
    "no-address": "openai:judge-1",
    "no-model": "openai:@http://localhost:8000/v1",
    "no-scheme": "openai:judge-1@localhost:8000",
    "file": "openai:judge-1@file:///etc",
    "no-host": "openai:judge-1@http:///v1",
    "no-port": "openai:judge-1@http://localhost:port/v1",
    "user": f"openai:judge-1@https://user:{KEY}@judge.invalid/v1",
    "token": f"openai:judge-1@https://{KEY}@judge.invalid/v1",
    "query": f"openai:judge-1@https://judge.invalid/v1?key={KEY}",
    "fragment": f"openai:judge-1@https://judge.invalid/v1#{KEY}",
}


@pytest.mark.parametrize("spec", BAD_SPECS.values(), ids=BAD_SPECS.keys())
def test_a_bad_spec_is_refused_without_repeating_it(spec: str) -> None:
    """An invalid address, or one that contains a secret, is refused without repeating the secret."""
    with pytest.raises(JudgeError, match=r"; (correct it|set the key in RN_HARNESS_JUDGE_KEY)") as caught:
        OpenAIJudge.from_spec(spec)
    assert KEY not in str(caught.value)


def test_the_digest_covers_what_can_be_covered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Model, address and settings change the digest; key and subject do not."""
    mine = OpenAIJudge(MODEL, "http://localhost:1/v1")
    others = [
        OpenAIJudge("judge-2", "http://localhost:1/v1"),
        OpenAIJudge(MODEL, "http://localhost:2/v1"),
        OpenAIJudge(MODEL, "http://localhost:1/v1", max_new_tokens=65),
    ]
    assert len({mine.digest, *(other.digest for other in others)}) == 4
    monkeypatch.setenv("RN_HARNESS_JUDGE_KEY", KEY)
    assert OpenAIJudge(MODEL, "http://localhost:1/v1/").about(FORBIDDEN).digest == mine.digest


def test_it_is_found_by_its_spec(tmp_path: Any) -> None:
    """``--rn-judge openai:MODEL@URL`` selects this judge."""
    found = resolve_judge("openai:judge-1@http://localhost:8000/v1", tmp_path)
    assert isinstance(found, OpenAIJudge)
