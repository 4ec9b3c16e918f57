"""One upload of an exported SAE in this process: `python -m husai_lib.report.upload_job FOLDER REPOSITORY`.

SAELens' uploader writes a README of its own where a repository has none, so ours goes there first: a failed SAE is
never on the hub without its card.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import cast

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError
from sae_lens import upload_saes_to_huggingface

from husai_lib.errors import HusaiError

HUB_ERRORS = cast("tuple[type[Exception], ...]", (*HfHubHTTPError.__bases__, ValueError))
"""What the hub's client raises: HTTPError of the HTTP library it uses, OSError, and ValueError for a wrong argument."""


def upload(folder: Path, repo: str) -> str:
    """Upload card, release policy and SAE to the repository `repo`, made where there is none; returns its address.

    Raises HusaiError where the hub cannot be reached or refuses.
    """
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


if __name__ == "__main__":
    try:
        sys.stdout.write(f"repository: {upload(Path(sys.argv[1]), sys.argv[2])}\n")
    except HusaiError as error:
        sys.exit(str(error))
