"""The dashboard of a W&B project as a saved view: training, noise, robustness and evaluation of all runs."""

from typing import Any

import wandb

from nsaug.utils.errors import UserError, first_line
from nsaug.utils.optional_imports import optional_import
from nsaug.utils.wandb_account import has_api_key

VIEW = "nsaugdashboard"
"""Name of the view in its address: the same every time, so that it is updated."""
STEP = "trainer/global_step"
CLEAN, ROBUST = "test/clean/top1", "test/score/score"


def save_workspace(project: str, entity: str | None) -> str:
    """Create the dashboard of a project, or replace the sections of the present one; return its address.

    Filters, colors and pinned runs that users chose in it are kept.

    Args:
        project: name of the project.
        entity: user or team; None for the account's default.

    Raises:
        UserError: wandb-workspaces is not installed, no account is stored, there is no such project, or the server
            cannot be reached.
    """
    ws = optional_import("dashboard", "wandb_workspaces.workspaces")
    if not has_api_key():
        raise UserError("no W&B account is stored on this machine: type wandb login, or set WANDB_API_KEY")
    wandb.setup().settings.silent = True
    try:
        entity = entity or wandb.Api().default_entity
        if entity is None:
            raise UserError("the account has no default entity: type entity=NAME")
        workspace = _load(ws, entity, project) or _create(ws, entity, project)
        workspace.sections = sections()
        return str(workspace.save().url)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"project={project} entity={entity}: {first_line(error)}") from error


def _load(ws: Any, entity: str | None, project: str) -> Any:
    """The present dashboard; None if the project has none."""
    try:
        return ws.Workspace.from_url(f"https://wandb.ai/{entity}/{project}?nw={VIEW}")  # the host is not used
    except ValueError as error:
        if "not found in project" not in str(error):
            raise
        return None


def _create(ws: Any, entity: str | None, project: str) -> Any:
    """A new dashboard: runs are grouped by method, so that all charts color them by method."""
    columns = [
        *("run:group", "run:jobType", "config:method_name.value", "config:eps.value"),
        *(f"summary:{name}" for name in ("val/top1", "val/adv_top1", CLEAN, ROBUST)),
    ]
    expr = optional_import("dashboard", "wandb_workspaces.expr")
    runs = ws.RunsetSettings(groupby=[expr.Config("method_name")], pinned_columns=columns)
    settings = ws.WorkspaceSettings(x_axis=STEP, max_runs=100)
    workspace = ws.Workspace(entity=entity, project=project, name="nsaug", settings=settings, runset_settings=runs)
    workspace._internal_name = f"nw-{VIEW}-v"  # otherwise random
    return workspace


def sections() -> list[Any]:
    """The sections and their panels, which need metrics of training (`train/`, `val/`) and evaluation (`test/`)."""
    ws = optional_import("dashboard", "wandb_workspaces.workspaces")
    wr = optional_import("dashboard", "wandb_workspaces.reports.v2")

    def lines(title: str, *metrics: str) -> Any:
        return wr.LinePlot(title=title, x=STEP, y=list(metrics))

    def lines_by_eps(title: str, *metrics: str) -> Any:
        return wr.LinePlot(title=title, x=STEP, y=list(metrics), groupby=wr.Config("eps"), aggregate=True)

    def scatter(title: str, x: Any, y: str) -> Any:
        return wr.ScatterPlot(title=title, x=x, y=wr.SummaryMetric(y), log_x=isinstance(x, wr.Config))

    def axis(metric: Any, log: bool = False) -> Any:
        return wr.ParallelCoordinatesPlotColumn(metric=metric, log=log)

    def media(title: str, key: str) -> Any:
        return wr.MediaBrowser(title=title, media_keys=[key], num_columns=1)

    eps = wr.Config("eps")
    parallel = [axis(eps, log=True), axis(wr.Config("nullspace.init_scale"), log=True)]
    parallel += [axis(wr.Config("nullspace.num_steps")), *(axis(wr.SummaryMetric(name)) for name in (CLEAN, ROBUST))]
    panels = {
        "training": [
            lines("validation accuracy", "val/top1"),
            lines("validation accuracy under attack", "val/adv_top1"),
            lines("training accuracy", "train/top1"),
            lines("loss", "train/loss"),
            lines("loss without and with noise", "train/clean_loss", "train/noisy_loss"),
            lines("validation loss", "val/loss"),
        ],
        "noise": [
            lines_by_eps("influence before and after the updates, by ε", "train/influence_before", "train/influence"),
            lines_by_eps("images with noise below ε, by ε", "train/converged"),
            lines_by_eps("root mean square of the noise, by ε", "train/noise_rms"),
            media("images, their noise, noisy images", "noise"),
        ],
        "robustness": [
            scatter("score against ε", eps, ROBUST),
            scatter("accuracy on clean images against ε", eps, CLEAN),
            scatter("validation accuracy under attack against ε", eps, "val/adv_top1"),
            scatter("clean against robust, by method", wr.SummaryMetric(CLEAN), ROBUST),
            scatter("clean against robust on validation images", wr.SummaryMetric("val/top1"), "val/adv_top1"),
            wr.ParallelCoordinatesPlot(title="settings of the noise", columns=parallel),
        ],
        "evaluation": [
            wr.BarPlot(title="score by method", metrics=[ROBUST], groupby=wr.Config("method_name"), aggregate=True),
            wr.WeavePanelSummaryTable(table_name="test/table"),
            media("overview", "test/overview"),
            media("images as the models saw them", "test/samples"),
            media("report", "test/report"),
        ],
    }
    return [ws.Section(name=name, panels=items, is_open=True) for name, items in panels.items()]
