"""Upload the model in a run's folder to the Hugging Face hub, with its model card.

    nsaug-push checkpoint=FOLDER repo=USER/NAME

Settings, with their defaults:

    checkpoint         output folder of train.py
    repo               repository on the hub; it is created if there is none
    private=true       visibility of a new repository; that of an existing one stays as it is

Log in with `hf auth login`, or set HF_TOKEN. Uploads model.safetensors, README.md, and config.json without paths and
names of this machine, in one commit. Plain timm loads it: timm.create_model("hf-hub:USER/NAME", pretrained=True)
"""

import json
from pathlib import Path
from typing import Any

from nsaug.cli.plain import plain_command
from nsaug.data.registry import PATHS
from nsaug.models.model_card import CARD, REPOSITORY, write_card
from nsaug.models.run_config import CONFIG
from nsaug.models.weights import WEIGHTS, read_metadata
from nsaug.utils.errors import UserError, first_line
from nsaug.utils.files import is_dir, is_file
from nsaug.utils.types import Text, validated_dataclass


@validated_dataclass
class PushSettings:
    """What to upload, and where."""

    checkpoint: Text
    repo: Text
    private: bool = True


@plain_command
def main(settings: PushSettings) -> None:
    """Check the folder and the name of the repository, then upload."""
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError
    from huggingface_hub.utils import validate_repo_id

    repo, folder = settings.repo, Path(settings.checkpoint)
    files = read_files(folder, repo)
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise UserError(f"repo={repo}: {first_line(error)}") from error
    if "/" not in repo:
        raise UserError(f"repo={repo}: type repo=USER/{repo}, with your name on the hub")
    if get_token() is None:
        raise UserError("no token of the Hugging Face hub is stored: type hf auth login, or set HF_TOKEN")
    try:
        url = upload(HfApi(), repo, files, private=settings.private)
    except HfHubHTTPError as error:
        raise UserError(f"repo={repo}: the hub refused the upload ({refusal(error)})") from error
    except Exception as error:  # of the network, from several libraries
        raise UserError(f"repo={repo}: the hub cannot be reached ({first_line(error)})") from error
    print(url)


def read_files(folder: Path, repo: str) -> dict[str, Any]:
    """What to upload by name: paths, or content that differs from the file's.

    Raises:
        UserError: the folder is not one of a finished run.
    """
    if not is_dir(folder):
        raise UserError(f"checkpoint={folder} is not a folder: name the output folder of train.py")
    if not is_file(folder / WEIGHTS):
        raise UserError(f"checkpoint={folder} has no {WEIGHTS}: name the output folder of a run that finished")
    if not read_metadata(folder):
        raise UserError(f"checkpoint={folder} has no {CONFIG} of nsaug: name the output folder of train.py")
    if not is_file(folder / CARD):
        write_card(folder)
    config = json.loads((folder / CONFIG).read_bytes())
    config["nsaug"] = without_paths(config["nsaug"])
    card = (folder / CARD).read_text(encoding="utf-8", errors="replace").replace(REPOSITORY, repo)
    return {WEIGHTS: folder / WEIGHTS, CONFIG: json.dumps(config, indent=2).encode(), CARD: card.encode()}


def without_paths(metadata: dict[str, Any]) -> dict[str, Any]:
    """A run's metadata without the command, the W&B run and the paths of its images."""
    public = {key: value for key, value in metadata.items() if key not in ("command", "wandb")}
    if "data" in public:
        public["data"] = public["data"] | {"args": _without(public["data"]["args"])}
    if "data" in public.get("settings", {}):
        public["settings"] = public["settings"] | {"data": _without(public["settings"]["data"])}
    return public


def _without(args: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in args.items() if key not in PATHS}


def upload(api: Any, repo: str, files: dict[str, Any], *, private: bool) -> str:
    """Create the repository if there is none, and upload the files in one commit; return its address."""
    from huggingface_hub import CommitOperationAdd

    url = api.create_repo(repo, private=private, exist_ok=True)
    operations = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=file) for name, file in files.items()]
    api.create_commit(repo, operations, commit_message="Model trained by nsaug")
    return str(url)


def refusal(error: Any) -> str:
    """What the hub answered, in one line."""
    return str(getattr(error, "server_message", None) or first_line(error))


if __name__ == "__main__":
    main()
