"""A user's judge in Python, with its results checked.

``python:pkg.mod:Name`` and the entry point group ``rn_harness.judges`` name a class, a function that makes a judge, or a
judge. Each result is checked: anything but a score from 0 to 10 is unscored, with the reason. Such a judge never counts as exact,
and a missing score is never replaced.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import logging
import math
import numbers
import operator
import sys
import traceback
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
_log = logging.getLogger(__name__)


def own_names() -> list[str]:
    """The names that installed packages declare in the group, sorted."""
    return sorted({entry.name for entry in metadata.entry_points(group=GROUP)})


def load_own(spec: str) -> OwnJudge:
    """A user's judge, found and wrapped."""
    judge, made_by = find_own(spec, "score")
    return OwnJudge(judge, spec, made_by=made_by)


def find_own(spec: str, method: str) -> tuple[Any, Any]:
    """The judge of a spec, and the class, function or object that the spec names.

    An object with ``method`` is a judge already; anything else is called to make one. Raises JudgeError if the judge cannot be
    found, imported or made.
    """
    module_name, dotted = _place(spec)
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        raise JudgeError(
            f"the judge's module must be importable, got module={module_name!r}: {type(error).__name__}: {error}; install "
            "its package, or set PYTHONPATH or pytest's `pythonpath`"
        ) from error
    try:
        found = operator.attrgetter(dotted)(module) if dotted else module
    except AttributeError as error:
        remedy = hint(str(error.name), [name for name in dir(error.obj) if not name.startswith("_")])
        raise JudgeError(f"the judge must be in module={module_name!r}, got name={dotted!r} which is not; {remedy}") from None
    if hasattr(found, method) and not inspect.isclass(found):
        return found, found
    if not callable(found):
        raise JudgeError(
            f"a judge is a class, a function that makes one, or an object with score(), got spec={spec!r} which is a "
            f"{type(found).__name__}; name another"
        )
    try:
        return found(), found
    except Exception as error:
        raise JudgeError(
            f"a judge must be made without arguments, got spec={spec!r}: {type(error).__name__}: {error}; read its settings "
            "from a file or from environment variables"
        ) from error


def _place(spec: str) -> tuple[str, str]:
    """Module and dotted name of ``python:pkg.mod:Name`` or of an entry point, whose name may be empty."""
    if spec.startswith(PREFIX):
        module, _, name = spec.removeprefix(PREFIX).partition(":")
        if not module or not name:
            raise JudgeError(f"a judge of your own is python:pkg.mod:Name, got spec={spec!r}; name the module and what is in it")
        return module, name
    entries = {entry.value: entry for entry in metadata.entry_points(group=GROUP, name=spec)}
    if not entries:
        raise JudgeError(f"a judge's name must be an entry point of group {GROUP}, got name={spec!r}; {hint(spec, own_names())}")
    if len(entries) > 1:
        raise JudgeError(
            f"one package must declare the judge {spec!r}, got {', '.join(sorted(entries))}; name one as python:pkg.mod:Name"
        )
    ((value, entry),) = entries.items()
    try:
        return entry.module, entry.attr or ""
    except AttributeError:
        raise JudgeError(f"an entry point is pkg.mod:Name, got {spec} = {value!r}; repair the package that declares it") from None


class OwnJudge:
    """A user's judge with checked results.

    It never counts as exact, since only the organism knows the truth. It is ``own_code``: it may ask a server, or read files that
    its digest does not cover. The digest is over its source files, its own ``digest`` if it has one, and this file.
    """

    exact = False
    own_code = True

    def __init__(self, judge: Any, spec: str, digest: str | None = None, made_by: Any = None) -> None:
        """Wraps a judge; raises JudgeError if it lacks ``score``, or does not follow the protocol.

        Args:
            judge: has ``score(prompts, completions)``; ``wording``, ``about``, ``check``, ``wordings``, ``digest`` as it likes.
            spec: its name.
            digest: of the judge that ``about`` was called on; the forbidden subject does not change it.
            made_by: the class or function that made it; its source is digested too.
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
        if not hasattr(self._judge, "about"):
            return self
        return OwnJudge(guarded(self.name, "about", lambda: self._judge.about(forbidden)), self.name, self.digest)

    def check(self, prompts: Sequence[Prompt]) -> None:
        if hasattr(self._judge, "check"):
            guarded(self.name, "check", lambda: self._judge.check(prompts))

    def score(self, prompts: Sequence[Prompt], completions: Sequence[str], wording: int = 0) -> list[Judgement]:
        """Judges B completions, see ``Judge``.

        If the call fails or returns another number of results, all B are unscored: results cannot be assigned to completions.
        Raises ValueError for unequal lengths, or a wording that the judge does not have.
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
    frames = traceback.extract_tb(error.__traceback__)
    return type(error).__name__ + (f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "")


def _judgement(result: Any) -> Judgement:
    """The judgement of a result: a judgement, a number on the scale, or the reason why it is neither."""
    if result is None:
        return _none("judge_refused")
    degenerate, score = None, result
    if isinstance(result, Judgement):
        degenerate, score = result.degenerate if isinstance(result.degenerate, bool) else None, result.score
        if result.unscored is not None:
            reason = result.unscored if result.unscored in UNSCORED else "judge_error"
            return Judgement(score=None, unscored=reason, degenerate=degenerate)
    try:
        value = math.nan if isinstance(score, bool) or not isinstance(score, numbers.Real) else float(score)
    except OverflowError:
        value = math.inf
    if math.isnan(value):
        return _none("not_a_number")
    return Judgement(score=value, degenerate=degenerate) if 0.0 <= value <= 10.0 else _none("off_scale")


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
