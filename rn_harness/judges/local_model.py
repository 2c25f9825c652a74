"""The files of a local model that judges. They are hashed, and read without running any code in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rn_harness.models.files import INDEX, read_index, read_settings_file
from rn_harness.models.hub import HubError, locate
from rn_harness.models.identity import hash_files
from rn_harness.models.transformers_compat import check_whole, quiet_libraries
from rn_harness.spec.errors import CandidateError, JudgeError


def name_and_revision(named: str, folder: Path) -> tuple[str, str | None]:
    """The parts of ``ID_OR_FOLDER[@REVISION]``; a folder, relative to ``folder``, comes first, also with an ``@`` in its name."""
    local = folder / Path(named).expanduser()
    model, _, revision = (str(local.resolve()), "", "") if local.is_dir() else named.partition("@")
    return model, revision or None


def locate_judge(model: str, revision: str | None) -> tuple[Path, str | None]:
    """The folder of a judge's files, and the commit of a model of the hub, which is fetched; JudgeError if it is not whole."""
    try:
        folder, commit = locate(model, revision)
    except HubError as error:
        raise JudgeError(f"a judge must be found: {error}") from None
    if not (folder / "config.json").is_file() or not any(folder.glob("*.safetensors")):
        raise JudgeError(
            f"a judge's folder must hold config.json and *.safetensors, got folder={folder}; export it with save_pretrained"
        )
    return folder, commit


def hash_judge(folder: Path, *without: str) -> dict[str, str]:
    """The sha256 of each of a judge's files by its name, except those in ``without`` and its card."""
    try:
        read_settings_file(folder)
        read_index(folder / INDEX, ".safetensors")
        return hash_files(folder, follow_links=True, without=("README.md", *without))
    except CandidateError as error:
        raise JudgeError(str(error)) from None


def read_pretrained(
    auto: str, folder: Path, required: str, remedy: str = "export it again with save_pretrained", dtype: str | None = None
) -> Any:
    """The network or tokenizer in a folder, by the class of transformers with the name ``auto``.

    A network is on an accelerator where there is one. Raises JudgeError if it cannot be read; ``required`` and ``remedy`` begin
    and end the message.
    """
    quiet_libraries()
    import torch
    import transformers

    source = {"local_files_only": True, "trust_remote_code": False}
    try:
        if auto == "AutoTokenizer":
            return transformers.AutoTokenizer.from_pretrained(folder, **source)  # nosec B615 # a local folder
        weights = {"dtype": dtype, "use_safetensors": True, "output_loading_info": True}
        network, loaded = getattr(transformers, auto).from_pretrained(folder, **source, **weights)
        check_whole(loaded)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise JudgeError(f"{required}, got folder={folder}: {type(error).__name__}: {error}; {remedy}") from None
    return network.eval().to("cuda" if torch.cuda.is_available() else "cpu")
