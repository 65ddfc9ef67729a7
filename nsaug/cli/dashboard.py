"""Create or update the dashboard of a W&B project: `nsaug-dashboard --help`. conf/dashboard.yaml lists the settings."""

import logging
import re

from omegaconf import DictConfig

from nsaug.cli.app import entry_point, validate_config, validate_value
from nsaug.utils.errors import UserError

log = logging.getLogger("nsaug.dashboard")

TOP_LEVEL_KEYS = {"project", "entity"}


@entry_point("dashboard")
def main(cfg: DictConfig) -> None:
    """Check the settings and save the workspace."""
    from nsaug.evaluation.reporting.dashboard import save_workspace
    from nsaug.utils.types import Text

    validate_config(cfg, TOP_LEVEL_KEYS)
    for key, annotation in (("project", Text), ("entity", Text | None)):
        validate_value(key, cfg[key], annotation, is_converted=False)
        if re.search(r"[/\\#?%:]", cfg[key] or ""):
            raise UserError(f"{key}={cfg[key]}: W&B allows none of / \\ # ? % : in it")
    log.info("W&B: %s", save_workspace(cfg.project, cfg.entity))


if __name__ == "__main__":
    main()
