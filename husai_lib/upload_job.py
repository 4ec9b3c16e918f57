"""One upload of an exported SAE in this process: `python -m husai_lib.upload_job FOLDER REPOSITORY`.

SAELens' uploader writes a README of its own where a repository has none, so ours goes there first: a failed SAE is
never on the hub without its card.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import cast

from huggingface_hub import HfApi, get_token, is_offline_mode
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]
from sae_lens import upload_saes_to_huggingface

from husai_lib.errors import HusaiError

HUB_ERRORS = cast("tuple[type[Exception], ...]", (*HfHubHTTPError.__bases__, ValueError))
"""What the hub's client raises: HTTPError of the HTTP library it uses, OSError, and ValueError for a wrong argument."""


def upload(folder: Path, repo: str) -> str:
    """Upload card, release policy and SAE to the repository `repo`, made where there is none; returns its address.

    Raises HusaiError where the name is wrong, nobody is logged in, or the hub cannot be reached or refuses.
    """
    _check_ready(repo)
    hook_name = json.loads((folder / "cfg.json").read_text(encoding="utf-8"))["metadata"]["hook_name"]
    api = HfApi()
    try:
        made = api.create_repo(repo, exist_ok=True)
        card = ["README.md", "release_policy.json"]
        api.upload_folder(
            repo_id=made.repo_id,
            folder_path=folder,
            allow_patterns=card,
            commit_message="Model card and release policy",
        )
        upload_saes_to_huggingface({hook_name: folder}, made.repo_id, add_default_readme=False, show_progress=False)
    except HUB_ERRORS as error:
        said = " ".join(str(error).split())[:300].rstrip(".")
        remedy = "check the network, the name and that the token may write there"
        raise HusaiError(f"the hub refused it or cannot be reached: {said}; {remedy}") from error
    return str(made)


def _check_ready(repo: str) -> None:
    """Raise where the name is wrong, the hub switched off or nobody logged in, before anything is sent."""
    try:
        validate_repo_id(repo)
    except ValueError:
        raise HusaiError(f"{repo!r} is no name of a repository; write it as owner/name") from None
    if is_offline_mode():
        raise HusaiError("the hub is switched off here by HF_HUB_OFFLINE; unset it while online")
    if get_token() is None:
        raise HusaiError("nobody is logged in to the hub here; run 'hf auth login' or set HF_TOKEN")


if __name__ == "__main__":
    try:
        sys.stdout.write(f"repository: {upload(Path(sys.argv[1]), sys.argv[2])}\n")
    except HusaiError as error:
        sys.exit(str(error))
