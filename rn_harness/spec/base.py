"""Base of declared objects, and the field types that they share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field

TierName = Literal["smoke", "standard", "full"]
TIERS: tuple[TierName, ...] = ("smoke", "standard", "full")
MAX_STEPS = 100_000

Share = Annotated[float, Field(ge=0.0, le=1.0)]
Score = Annotated[float, Field(ge=0.0, le=10.0)]
Positive = Annotated[float, Field(gt=0.0)]
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
Standing = Literal["claim", "exploratory", "out_of_claim"]
"""A case counts for the verdict, is run for information, or is an attack that the defense does not claim to withstand."""


class Recomputing(BaseModel):
    """Base of objects with cached properties: a changed copy computes them again, since its fields decide them."""

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """A copy with these fields replaced, and without the cached properties."""
        copied = super().model_copy(update=update, deep=deep)
        for name in copied.__dict__.keys() - type(self).model_fields.keys():
            del copied.__dict__[name]
        return copied


class Frozen(Recomputing):
    """Base of objects that are read from files: immutable, and a misspelled key is an error.

    It is strict: ``"5"`` is refused as a number. A whole number is accepted as a float.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, strict=True)


class LoadedCode(Frozen):
    """Code of others that a session loaded; installed packages without a plugin do not count.

    Attributes:
        kind: ``distribution``: a plugin of an installed package; ``conftest``; ``module``: another file or package; ``suite``: a
            suite's test file that does more than inherit our checks.
        name: of the distribution, or the file's path from pytest's root folder.
        version: of the distribution; None for files.
        sha256: of the file, or over the package's files.
    """

    kind: Literal["distribution", "conftest", "module", "suite"]
    name: str
    version: str | None = None
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
