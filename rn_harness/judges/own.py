"""A user's judge in Python, with its results checked.

``python:pkg.mod:Name`` and the entry point group ``rn_harness.judges`` name a class, a function that makes a judge, or a
judge. Each result is checked: anything but a score from 0 to 10 is unscored, with the reason. Such a judge never counts as exact,
and a missing score is never replaced.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import inspect
import logging
import math
import numbers
import sys
from collections.abc import Callable, Iterable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from rn_harness.records.base import UNSCORED, Judgement, Unscored
from rn_harness.spec.errors import JudgeError
from rn_harness.spec.model_profiles import hint
from rn_harness.spec.prompts import Prompt

GROUP = "rn_harness.judges"
"""Entry point group in which a package declares its judges."""
PREFIX = "python:"
MIN_SCORE, MAX_SCORE = 0.0, 10.0
_log = logging.getLogger(__name__)


def own_names() -> list[str]:
    """The names that installed packages declare in the group, sorted."""
    return sorted({entry.name for entry in metadata.entry_points(group=GROUP)})


def load_own(spec: str) -> OwnJudge:
    """Loads a user's judge; see ``find_own`` and ``OwnJudge``."""
    judge, made_by = find_own(spec, "score")
    return OwnJudge(judge, spec, made_by=made_by)


def find_own(spec: str, method: str) -> tuple[Any, Any]:
    """The judge of a spec, and the class, function or object that the spec names.

    An object with ``method`` is a judge already; anything else is called to make one. Raises JudgeError if the judge cannot be
    found, imported or made.
    """
    found = _from_path(spec) if spec.startswith(PREFIX) else _from_entry_point(spec)
    is_judge = hasattr(found, method) and not inspect.isclass(found)
    return (found if is_judge else _make(spec, found)), found


def _from_path(spec: str) -> Any:
    module_name, _, dotted = spec.removeprefix(PREFIX).partition(":")
    if not module_name or not dotted:
        raise JudgeError(f"a judge of your own is python:pkg.mod:Name, got spec={spec!r}; name the module and what is in it")
    try:
        found: Any = importlib.import_module(module_name)
    except Exception as error:
        raise JudgeError(
            f"the judge's module must be importable, got module={module_name!r}: {type(error).__name__}: {error}; install "
            "its package, or set pytest's `pythonpath`"
        ) from error
    for part in dotted.split("."):
        if not hasattr(found, part):
            near = difflib.get_close_matches(part, dir(found), n=3)
            remedy = f"did you mean {' or '.join(near)}?" if near else "correct the spec"
            raise JudgeError(f"the judge must be in module={module_name!r}, got name={dotted!r} which is not; {remedy}")
        found = getattr(found, part)
    return found


def _from_entry_point(name: str) -> Any:
    entries = list(metadata.entry_points(group=GROUP, name=name))
    if not entries:
        raise JudgeError(f"a judge's name must be an entry point of group {GROUP}, got name={name!r}; {hint(name, own_names())}")
    if len({entry.value for entry in entries}) > 1:
        values = ", ".join(sorted(entry.value for entry in entries))
        raise JudgeError(f"one package must declare the judge {name!r}, got {values}; name one as python:pkg.mod:Name")
    try:
        return entries[0].load()
    except Exception as error:
        raise JudgeError(
            f"the judge's package must be importable, got entry={entries[0].value!r}: {type(error).__name__}: {error}; repair "
            "or reinstall it"
        ) from error


def _make(spec: str, factory: Any) -> Any:
    """Calls a class or a factory without arguments."""
    if not callable(factory):
        raise JudgeError(
            f"a judge is a class, a function that makes one, or an object with score(), got spec={spec!r} which is a "
            f"{type(factory).__name__}; name another"
        )
    try:
        return factory()
    except Exception as error:
        raise JudgeError(
            f"a judge must be made without arguments, got spec={spec!r}: {type(error).__name__}: {error}; read its settings "
            "from a file or from environment variables"
        ) from error


class OwnJudge:
    """A user's judge with checked results.

    Attributes:
        digest: sha256 over its source files, its own ``digest`` if it has one, and this file, as hex.
        exact: always False, whatever the judge claims: only the organism knows the truth.
        own_code: always True: it may ask a server, or read files that its digest does not cover.
    """

    exact = False
    own_code = True

    def __init__(self, judge: Any, spec: str, digest: str | None = None, made_by: Any = None) -> None:
        """Wraps a judge.

        Args:
            judge: has ``score(prompts, completions)``; ``wording``, ``about``, ``check``, ``wordings``, ``digest`` as it likes.
            spec: its name.
            digest: of the judge that ``about`` was called on; the forbidden subject does not change it.
            made_by: the class or function that made it; its source is digested too.

        Raises:
            JudgeError: it lacks ``score``, or does not follow the protocol.
        """
        self._judge = judge
        self.name = spec
        self._takes_wording = _check_score(judge, spec)
        self.wordings: int = _wordings(judge, spec, self._takes_wording)
        for optional in ("about", "check"):
            if not callable(getattr(judge, optional, lambda: None)):
                raise JudgeError(f"a judge's {optional} must be a method, got {optional}={getattr(judge, optional)!r}; remove it")
        self.digest = digest or digest_own(judge, spec, made_by)

    def about(self, forbidden: str) -> OwnJudge:
        """The judge that its ``about`` returns for this forbidden subject; itself if it has no ``about``."""
        if not hasattr(self._judge, "about"):
            return self
        told = guarded(self.name, "about", lambda: self._judge.about(forbidden))
        return OwnJudge(told, self.name, self.digest)

    def check(self, prompts: Sequence[Prompt]) -> None:
        """Calls its ``check``, if it has one, which raises JudgeError if it cannot judge these prompts."""
        if hasattr(self._judge, "check"):
            guarded(self.name, "check", lambda: self._judge.check(prompts))

    def score(self, prompts: Sequence[Prompt], completions: Sequence[str], wording: int = 0) -> list[Judgement]:
        """Judges B completions, see ``Judge``.

        If the call fails or returns another number of results, all B are unscored: results cannot be assigned to completions.

        Raises:
            ValueError: unequal lengths, or a wording that the judge does not have.
        """
        if len(prompts) != len(completions):
            raise ValueError(f"each completion has a prompt, got {len(prompts)} and {len(completions)}; pass as many of both")
        if not 0 <= wording < self.wordings:
            raise ValueError(f"the wording is from 0 to {self.wordings - 1}, got wording={wording}; see its wordings")
        more = {"wording": wording} if self._takes_wording else {}
        results = results_of(self.name, "score", len(prompts), lambda: self._judge.score(prompts, completions, **more))
        return [_none(results)] * len(prompts) if isinstance(results, str) else [_judgement(result) for result in results]


def results_of(name: str, method: str, count: int, call: Callable[[], Iterable[Any]]) -> list[Any] | Unscored:
    """The ``count`` results of a method of a user's judge, or the reason why all are unscored."""
    unit = "completions" if method == "score" else "pairs"
    try:
        results = list(call()) if count else []
    except Exception as error:  # noqa: BLE001  (counted by its reason; its message could quote a completion)
        _log.warning("%s: %s() failed with %s; %d %s are unscored", name, method, _fault(error), count, unit)
        return "judge_timeout" if isinstance(error, TimeoutError) else "judge_error"
    if len(results) != count:
        _log.warning("%s: %s() gave %d results for %d %s", name, method, len(results), count, unit)
        return "judge_error"
    return results


def guarded(name: str, method: str, call: Callable[[], Any]) -> Any:
    """Calls a method of a user's judge; any exception becomes a JudgeError."""
    try:
        return call()
    except JudgeError:
        raise
    except Exception as error:
        raise JudgeError(
            f"{method}() of {name} must not fail, got {type(error).__name__}: {error}; see its documentation"
        ) from error


def _fault(error: BaseException) -> str:
    """Type and place of an exception, without its message."""
    place = error.__traceback__
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    where = f" at {Path(place.tb_frame.f_code.co_filename).name}:{place.tb_lineno}" if place else ""
    return f"{type(error).__name__}{where}"


def _judgement(result: Any) -> Judgement:
    """The judgement of a result: a judgement, a number on the scale, or the reason why it is neither."""
    if isinstance(result, Judgement):
        degenerate = result.degenerate if isinstance(result.degenerate, bool) else None
        if result.unscored is not None:
            known = result.unscored in UNSCORED
            return Judgement(score=None, unscored=result.unscored if known else "judge_error", degenerate=degenerate)
        return _of_number(result.score, degenerate)
    return _none("judge_refused") if result is None else _of_number(result, None)


def _of_number(score: Any, degenerate: bool | None) -> Judgement:
    if isinstance(score, bool) or not isinstance(score, numbers.Real):
        return _none("not_a_number")
    try:
        value = float(score)
    except OverflowError:
        return _none("off_scale")
    if math.isnan(value):
        return _none("not_a_number")
    return Judgement(score=value, degenerate=degenerate) if MIN_SCORE <= value <= MAX_SCORE else _none("off_scale")


def _none(reason: Unscored) -> Judgement:
    return Judgement(score=None, unscored=reason)


def _check_score(judge: Any, spec: str) -> bool:
    """True if ``score`` takes ``wording``; refuses a ``score`` of another form."""
    if not callable(getattr(judge, "score", None)):
        raise JudgeError(f"a judge has score(prompts, completions), got {spec} -> {type(judge).__name__} without; add it")
    try:
        signature = inspect.signature(judge.score)
    except (TypeError, ValueError):  # built in, without a signature: it is called with the two that it must take
        return False
    takes_wording = any(p.name == "wording" or p.kind is p.VAR_KEYWORD for p in signature.parameters.values())
    try:
        signature.bind([], [], **({"wording": 0} if takes_wording else {}))
    except TypeError as error:
        raise JudgeError(
            f"a judge has score(prompts, completions), got {spec} with score{signature}: {error}; change it"
        ) from None
    if inspect.iscoroutinefunction(judge.score):
        raise JudgeError(f"a judge's score must be a plain method, got {spec} with an async one; run its loop inside of it")
    return takes_wording


def _wordings(judge: Any, spec: str, takes_wording: bool) -> int:
    wordings = getattr(judge, "wordings", 1)
    if isinstance(wordings, bool) or not isinstance(wordings, int) or wordings < 1:
        raise JudgeError(f"wordings must be a whole number from 1 on, got {spec} with wordings={wordings!r}; correct it")
    if wordings > 1 and not takes_wording:
        raise JudgeError(
            f"a judge with several wordings is told which, got {spec} with wordings={wordings} and a score() without "
            "`wording`; add the argument"
        )
    return wordings


def digest_own(judge: Any, spec: str, made_by: Any) -> str:
    """Digest of this file, the source files of the judge's classes, its spec (a file may hold two judges), and its ``digest``."""
    own = getattr(judge, "digest", None)
    if own is not None and not (isinstance(own, str) and own):
        raise JudgeError(f"a judge's digest must be text, got {spec} with digest={own!r}; correct or remove it")
    hashed = hashlib.sha256(Path(__file__).read_bytes())
    owners = (*type(judge).__mro__, made_by)
    named = dict.fromkeys(getattr(owner, "__module__", None) or "builtins" for owner in owners)
    modules = [name for name in named if name.partition(".")[0] not in sys.stdlib_module_names]
    sources = [Path(file) for name in modules if (file := getattr(sys.modules.get(name), "__file__", None))]
    sources = [path for path in sources if path.suffix == ".py" and path.is_file()]
    if not sources and own is None:
        raise JudgeError(
            f"a judge must be identified by its source file or its own digest, got {spec} -> {type(judge).__name__} with "
            "neither; give it an attribute `digest`"
        )
    for part in (*(path.read_bytes() for path in sources), (own or "").encode(), spec.encode()):
        hashed.update(hashlib.sha256(part).digest())
    return hashed.hexdigest()
