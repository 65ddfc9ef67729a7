"""The data sets that a run folder may name; anything else is named on the command line."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from nsaug.data.datamodule import ImageDataModule
from nsaug.data.samplers import default_num_workers
from nsaug.data.sources.cifar10 import CIFAR10
from nsaug.data.sources.digits import Digits
from nsaug.data.sources.folder import Folder
from nsaug.data.sources.imagenet import ImageNet
from nsaug.utils.errors import UserError, first_line
from nsaug.utils.types import first_problem

DATASETS: dict[str, type[ImageDataModule]] = {
    "cifar10": CIFAR10,
    "digits": Digits,
    "folder": Folder,
    "imagenet": ImageNet,
}
"""By the name of their choice in conf/data."""
PATHS = ("root", "classes")
NOT_RECORDED = ("download",)
"""Reading a run folder never uses the network."""


def record_data(target: str, args: Mapping[str, Any]) -> dict[str, Any]:
    """Describe the data of a run for its config.json.

    Args:
        target: full name of the data class; that of a user's own class is recorded as it is.
        args: its arguments, as plain JSON values; relative paths become absolute.
    """
    recorded = {key: value for key, value in args.items() if key not in NOT_RECORDED}
    for key in PATHS:
        if isinstance(recorded.get(key), str):
            recorded[key] = str(Path(recorded[key]).expanduser().absolute())
    return {"name": recorded_name(target), "args": recorded}


def recorded_name(target: str) -> str:
    """How a config.json names a data class, given its full name."""
    names = {f"nsaug.data.{cls.__qualname__}": name for name, cls in DATASETS.items()}
    return names.get(target, target)


def data_from_metadata(
    metadata: Mapping[str, Any], overrides: Mapping[str, Any] | None = None, *, source: str
) -> ImageDataModule:
    """Build the data that a run was trained on, from the metadata in its config.json.

    The name is looked up in `DATASETS`, and the arguments are plain values: nothing is imported, downloaded or
    interpolated. At most `default_num_workers()` processes load images, however many the run used.

    Args:
        metadata: `RunMetadata`.
        overrides: arguments that replace those of the run.
        source: of the metadata, for messages.

    Raises:
        UserError: no data recorded, a class that is not nsaug's own, or invalid arguments.
    """
    data = metadata.get("data")
    if not data:
        raise UserError(f"{source} does not record its training data: add data=...")
    name = data["name"]
    if name not in DATASETS:
        known = ", ".join(DATASETS)
        raise UserError(
            f"{source}: nsaug.data.name={name:.100} is none of {known}: if it is your own class, type data=custom"
            f" data._target_={name:.100} and its arguments"
        )
    for key in data["args"]:
        if key in NOT_RECORDED:
            raise UserError(f"{source}: nsaug.data.args.{key} is not read from a file: add data={name} data.{key}=...")
    args = {**data["args"], **(overrides or {})}
    workers = args.get("num_workers")
    if isinstance(workers, int):
        args["num_workers"] = min(workers, default_num_workers())
    try:
        return DATASETS[name](**args)
    except ValidationError as error:
        raise UserError(f"{source}: nsaug.data.args.{first_problem(error)}: add data=...") from error
    except (UserError, TypeError, OSError) as error:  # TypeError: an argument that the class itself sets
        raise UserError(f"{source}: {first_line(error)}: add data=...") from error
