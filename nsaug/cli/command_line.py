"""What a command line says: the settings, and whether they are those of a sweep."""

from collections.abc import Sequence
from pathlib import Path

from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException


def config_dir() -> Path:
    """The folder of YAML files: `nsaug/conf` in an installed wheel, the top-level `conf` in a checkout."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "conf"
    return installed if installed.is_dir() else package.parent / "conf"


def parse(arguments: Sequence[str]) -> tuple[list[Override], bool]:
    """The settings among the arguments, and whether Hydra makes a sweep of them; none if Hydra will refuse one."""
    options = get_args_parser().parse_args(arguments)
    try:
        overrides = OverridesParser.create().parse_overrides(options.overrides)
    except HydraException:
        return [], False
    modes = [override.value() for override in overrides if override.key_or_group == "hydra.mode"]
    return overrides, options.multirun or "MULTIRUN" in modes
