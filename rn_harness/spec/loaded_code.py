"""Code of others that a session loaded: a plugin, a conftest or a local module, by its digest."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from rn_harness.spec.base import Frozen


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
