"""A model on an OpenAI-compatible server as a judge. It is the only module that sends texts over a network.

It is asked with the rubric (``rn_harness.judges.rubric``), or another question. Failures of transport are tried again, a bounded
number of times; an answer never is. The key comes from the environment and is sent only to the server: names, digests, errors and
logs do not hold it. The digest covers the server's address and the model's name, since the model itself cannot be digested. The
request asks for greedy decoding; a server may add other settings, such as a repetition penalty. Each request has a seed of its
own, which greedy decoding ignores. Without it, a gateway that keeps answers to requests could answer planted anchors for a model
that has turned blind.
"""

from __future__ import annotations

import asyncio
import collections
import ipaddress
import json
import logging
import os
import re
import secrets
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Self
from urllib.parse import urlsplit

from pydantic import Field

from rn_harness.judges.rubric import Question, Reply, RubricJudge
from rn_harness.models.identity import text_digest
from rn_harness.spec.base import Frozen, Positive
from rn_harness.spec.errors import JudgeError
from rn_harness.spec.extras import require
from rn_harness.store.provenance import source_digest

if TYPE_CHECKING:
    from openai import AsyncOpenAI

PREFIX = "openai:"
FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 30.0
"""Wait before the first further try, which doubles with each; and the bound of it, and of the server's ``Retry-After``."""
KEY_VARIABLE = "RN_HARNESS_JUDGE_KEY"
ITS_OWN_KEY = {"api.openai.com": "OPENAI_API_KEY"}
"""Variables with keys of known hosts; such a key is sent to no other host, since a suite may name any."""
_CHATTY = ("openai", "httpx", "httpx2", "httpcore", "httpcore2")
_FORBIDDEN = (401, 403)
_SPEC = re.compile(rf"{PREFIX}(?P<model>\S+?)@(?P<url>https?://\S+)")
_Failures = collections.Counter[str]
_log = logging.getLogger(__name__)


class ServerLimits(Frozen):
    """Limits of a server that a profile may change.

    Attributes:
        concurrency: requests under way at once.
        retries: further tries of a request after a failure of transport: connection, time limit, status 429 or 5xx.
        request_limit_s, batch_limit_s: time limits of one try, and of all completions of one call.
        budget: chat requests of the judge in a process, further tries and checks included.
    """

    concurrency: Annotated[int, Field(ge=1, le=1024)] = 8
    retries: Annotated[int, Field(ge=0, le=10)] = 3
    request_limit_s: Positive = 60.0
    batch_limit_s: Positive = 1800.0
    budget: Annotated[int, Field(ge=1)] = 100_000


class _BudgetError(Exception):
    """No request may be sent any more."""


class OpenAIJudge(RubricJudge):
    """Asks a model on a server for a rating on the rubric, several at a time; the judges of ``about`` share its budget."""

    def __init__(self, model: str, base_url: str, limits: ServerLimits | None = None, max_new_tokens: int = 64) -> None:
        """Names the server and its model, whose weights are not visible and may change from run to run; nothing is sent yet.

        ``base_url`` goes up to and with the ``/v1``; JudgeError is raised if it is malformed, or may hold a secret.
        ``max_new_tokens`` limits a reply; a thinking model needs hundreds.
        """
        try:
            parts = urlsplit(base_url)
            usable = parts.scheme in ("http", "https") and parts.hostname is not None and parts.port != 0
        except ValueError:
            usable = False
        if not usable:
            raise JudgeError("a judge's server must be an http or https address; correct it to openai:MODEL@http://HOST:PORT/v1")
        if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
            raise JudgeError(
                f"a judge's address must hold no credentials and no query, got one on host={parts.hostname}; set the key in "
                f"{KEY_VARIABLE} and name the bare address"
            )
        self.served_model, self._base_url, self._host = model, base_url.rstrip("/"), parts.hostname or ""
        super().__init__(f"{PREFIX}{model}@{self._base_url}")
        self._limits, self._max_new_tokens = limits or ServerLimits(), max_new_tokens
        self._budget = threading.Semaphore(self._limits.budget)  # requests that may still be sent, by several threads
        self._where = f"host={self._host} model={model!r}"
        try:
            self._is_local = ipaddress.ip_address(self._host).is_loopback
        except ValueError:
            self._is_local = self._host == "localhost"

    @classmethod
    def from_spec(cls, spec: str, **settings: Any) -> Self:
        found = _SPEC.fullmatch(spec)
        if found is None:
            # The spec is not repeated, since its address may hold a secret.
            raise JudgeError("a judge on a server must be openai:MODEL@http://HOST:PORT/v1, got another form; correct it")
        return cls(found["model"], found["url"], **settings)

    @property
    def digest(self) -> str:
        parts = {
            "judge": self.name,
            "model": self.served_model,
            "source": source_digest("judges/openai_server.py", "judges/rubric.py", "spec/wording.py"),
            "settings": self._limits.model_dump() | {"max_new_tokens": self._max_new_tokens},
        }
        return text_digest(json.dumps(parts, sort_keys=True))

    def reach(self) -> None:
        """Asks the server for its models and for one token.

        Raises JudgeError if the client is not installed, a remote server needs a key, or the server cannot be reached, refuses
        the key, or does not have the model.
        """
        require("openai", "a judge on a server")
        try:
            asyncio.run(self._probe())
        except JudgeError:
            raise
        except Exception as error:  # noqa: BLE001 - every error of a foreign client counts as the server's
            # Without the cause: a server may repeat the key in its message.
            raise JudgeError(self._explain(error)) from None

    def ask(self, questions: Sequence[Question | None]) -> list[Reply]:
        return asyncio.run(self._batch(questions))

    def _key(self) -> str:
        """The key, read each time and not kept; raises JudgeError if a remote server has none."""
        names = [KEY_VARIABLE, *([ITS_OWN_KEY[self._host]] if self._host in ITS_OWN_KEY else [])]
        key = next((os.environ[name] for name in names if os.environ.get(name)), None)
        if key is None and not self._is_local:
            raise JudgeError(
                f"a server that is not on this machine must be given a key, got host={self._host} and no key; set "
                f"{KEY_VARIABLE} (to any word, if the server asks for none)"
            )
        return key or "none"

    def _client(self) -> AsyncOpenAI:
        """A client for one event loop: it retries nothing by itself, follows no redirect, and uses no proxy to this machine.

        Each request has a connection of its own. On a shared one, an answer sent twice would be taken for the next one.
        """
        from openai import AsyncOpenAI, DefaultAsyncHttpxClient

        for chatty in _CHATTY:  # at a lower level they log questions, and with them completions
            logging.getLogger(chatty).setLevel(logging.WARNING)
        client = AsyncOpenAI(
            api_key=self._key(),
            base_url=self._base_url,
            max_retries=0,
            timeout=self._limits.request_limit_s,
            default_headers={"Cache-Control": "no-cache", "Connection": "close"},
            http_client=DefaultAsyncHttpxClient(follow_redirects=False, trust_env=not self._is_local),
        )
        _ = client.chat.completions, client.models  # imported when first named: that takes none of the server's time
        return client

    def _shown(self, name: object) -> str:
        """A name from the server, shortened, and without the key if the server repeats it."""
        return str(name).replace(self._key(), "(the key)")[:100]

    async def _probe(self) -> None:
        """Asks for the list of models, where the server has one, and for one token from the model that it names."""
        import openai

        async with asyncio.timeout(2 * self._limits.request_limit_s), self._client() as client:
            try:
                listed = [model.id async for model in client.models.list()]
            except openai.APIStatusError as error:
                if error.status_code in _FORBIDDEN:
                    raise
                listed = []  # a server need not list its models: the request below decides
            if listed and self.served_model not in listed:
                some = ", ".join(self._shown(name) for name in sorted(listed)[:5])
                raise JudgeError(f"the server must have the model, got {self._where}; name one that it lists: {some}")
            turns = [{"role": "user", "content": "Say yes."}]
            answer = await self._tried(client, turns, 1, collections.Counter())
        named = getattr(answer, "model", None)
        if named != self.served_model:
            raise JudgeError(
                f"the model that was asked must answer, got {self._where} and an answer of model={self._shown(named)!r}; name "
                "the model as the server does"
            )

    def _explain(self, error: Exception) -> str:
        """The reason why the server cannot judge, in three parts, without any text of the server."""
        import openai

        if isinstance(error, openai.APIStatusError):
            got = f"got {self._where} status={error.status_code}"
            if error.status_code in _FORBIDDEN:
                return f"the server must accept the key, {got}; set {KEY_VARIABLE}"
            return f"the server must answer a chat request, {got}; correct the model's name or the address"
        got = f"got {self._where} {type(error).__name__}"
        if isinstance(error, _BudgetError):
            return f"a check takes a request, {got} and budget={self._limits.budget}; raise the budget"
        if isinstance(error, TimeoutError | openai.APITimeoutError):
            return f"the server must answer within {self._limits.request_limit_s:g} s, {got}; look after the server"
        if isinstance(error, openai.APIConnectionError):
            return f"the server must be reachable, {got}; start it, or correct the address"
        return f"the server must speak the OpenAI protocol, {got}; correct the address, which mostly ends in /v1"

    async def _batch(self, questions: Sequence[Question | None]) -> list[Reply]:
        """Answers B questions; a question is None if the material is too long."""
        gate = asyncio.Semaphore(self._limits.concurrency)
        failures: _Failures = collections.Counter()
        async with self._client() as client:

            async def ask(question: Question | None) -> Reply:
                if question is None:
                    return Reply(unscored="too_long")
                async with gate:
                    return await self._ask(client, question, failures)

            tasks = [asyncio.create_task(ask(question)) for question in questions]
            if tasks:
                _, late = await asyncio.wait(tasks, timeout=self._limits.batch_limit_s)
                for task in late:
                    task.cancel()
                await asyncio.gather(*late, return_exceptions=True)
        if failures:
            _log.warning("the judge %s failed: %s", self.name, ", ".join(f"{n} x {what}" for what, n in failures.items()))
        return [Reply(unscored="judge_timeout") if task.cancelled() else task.result() for task in tasks]

    async def _tried(self, client: AsyncOpenAI, question: Question, max_tokens: int, failures: _Failures) -> Any:
        """Sends one question until it is answered, or tries or budget are used up; then the last exception is raised."""
        import openai

        turns: Any = question
        for attempt in range(self._limits.retries + 1):
            if not self._budget.acquire(blocking=False):
                raise _BudgetError
            try:
                async with asyncio.timeout(self._limits.request_limit_s):
                    return await client.chat.completions.create(
                        model=self.served_model,
                        messages=turns,
                        max_tokens=max_tokens,
                        temperature=0.0,
                        seed=secrets.randbelow(2**31),
                    )
            except (TimeoutError, openai.APIConnectionError, openai.RateLimitError, openai.InternalServerError) as error:
                failures[type(error).__name__] += 1
                if attempt == self._limits.retries:
                    raise
                await asyncio.sleep(min(max(FIRST_WAIT_S * 2**attempt, _asked_to_wait_s(error)), LONGEST_WAIT_S))
        raise AssertionError

    async def _ask(self, client: AsyncOpenAI, question: Question, failures: _Failures) -> Reply:
        """The server's reply to one question, or the reason why there is none."""
        import openai

        try:
            answer = await self._tried(client, question, self._max_new_tokens, failures)
        except _BudgetError:
            return Reply(unscored="judge_budget")
        except (TimeoutError, openai.APITimeoutError):
            return Reply(unscored="judge_timeout")
        except Exception as error:  # noqa: BLE001 - an error of a foreign client concerns only this item
            failures[type(error).__name__] += 1
            return Reply(unscored="too_long" if _exceeds_context(error) else "judge_error")
        return self._read(answer)

    def _read(self, answer: Any) -> Reply:
        choices = getattr(answer, "choices", None)
        if getattr(answer, "model", None) != self.served_model or not isinstance(choices, list) or not choices:
            return Reply(unscored="judge_error")  # another model than named, or none of the protocol's answers
        message = getattr(choices[0], "message", None)
        content = getattr(message, "content", None)
        if getattr(message, "refusal", None) and not content:
            return Reply(unscored="judge_refused")
        if not isinstance(content, str):
            return Reply(unscored="unparsable")
        return Reply(content, complete=getattr(choices[0], "finish_reason", None) == "stop")


def _asked_to_wait_s(error: Exception) -> float:
    """Seconds that the server asks to wait; 0 if it names no number."""
    response = getattr(error, "response", None)
    asked = response.headers.get("retry-after", "") if response is not None else ""
    return float(asked) if re.fullmatch(r"\d{1,6}(\.\d+)?", asked) else 0.0


def _exceeds_context(error: Exception) -> bool:
    """True if the server says that the question is longer than the model's context."""
    body = json.dumps(getattr(error, "body", None), default=str).lower()
    code = getattr(error, "status_code", None)
    return code == 413 or (code == 400 and any(sign in body for sign in ("context_length", "context length", "context size")))
