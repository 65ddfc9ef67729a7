"""Create or update the dashboard of a W&B project.

    nsaug-dashboard project=robust entity=my-team     type it again to restore its panels

Settings, with their defaults:

    project=nsaug      as logger.project of train.py
    entity=null        user or team; null: the default of the account

Needs pip install 'nsaug[dashboard]'. docs/tracking.md lists the panels.
"""

import re

from nsaug.cli.plain import plain_command
from nsaug.utils.errors import UserError
from nsaug.utils.types import Text, validated_dataclass


@validated_dataclass
class DashboardSettings:
    """Which project."""

    project: Text = "nsaug"
    entity: Text | None = None


@plain_command
def main(settings: DashboardSettings) -> None:
    """Check the names and save the dashboard."""
    from nsaug.evaluation.reporting.dashboard import save_workspace

    for key, name in (("project", settings.project), ("entity", settings.entity)):
        if re.search(r"[/\\#?%:]", name or ""):
            raise UserError(f"{key}={name}: W&B allows none of / \\ # ? % : in it")
    print(f"W&B: {save_workspace(settings.project, settings.entity)}")


if __name__ == "__main__":
    main()
