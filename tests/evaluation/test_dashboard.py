"""The dashboard against a local stand-in for W&B's API, and against what real runs record."""

import http.server
import json
import sys
import threading

import pytest
import wandb

from nsaug.cli import dashboard, evaluate, train
from nsaug.evaluation.reporting.dashboard import VIEW, sections
from nsaug.utils.types import flatten
from tests.commands import SHORT, cli_error, run
from tests.wandb_records import read_run, read_runs

pytest.importorskip("wandb_workspaces", reason="needs nsaug[dashboard]")


class Api(http.server.ThreadingHTTPServer):
    """Answers the requests of wandb-workspaces, and keeps the saved views by entity, project and name."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.views = {}
        self.inserted = []

    def answer(self, query, variables):
        if "viewer" in query:
            return {"viewer": {"id": "1", "username": "me", "entity": "me", "flags": "{}", "teams": {"edges": []}}}
        entity, project = variables["entityName"], variables.get("projectName", variables["name"])
        if project == "unknown":
            return {"project": None}
        if "upsertView" in query:
            key = entity, project, variables["name"]
            self.inserted.append("id" not in variables)
            self.views[key] = variables | {"id": f"view{len(self.views)}"} | variables
            return {"upsertView": {"view": self.views[key], "inserted": self.inserted[-1]}}
        assert "allViews" in query
        view = self.views.get((entity, project, variables["viewName"]))
        return {"project": {"allViews": {"edges": [{"node": view}] if view else []}}}


class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path != "/graphql":  # telemetry
            self.send_error(404)
            return
        request = json.loads(body)
        content = json.dumps({"data": self.server.answer(request["query"], request.get("variables"))}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args):
        pass


@pytest.fixture
def api(monkeypatch, tmp_cwd):
    server = Api()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    wandb.teardown()  # it caches the environment of its first use
    yield server
    server.shutdown()
    server.server_close()
    wandb.teardown()


def test_dashboard_is_created_and_updated(api, monkeypatch, capsys, tmp_path):
    run(dashboard, monkeypatch, "project=robust")
    (view,) = api.views.values()
    assert (view["entityName"], view["projectName"], view["displayName"]) == ("me", "robust", "nsaug")
    assert capsys.readouterr().out == f"W&B: http://127.0.0.1:{api.server_port}/me/robust?nw={VIEW}\n"
    spec = json.loads(view["spec"])["section"]
    assert spec["settings"]["xAxis"] == "trainer/global_step"
    (runs,) = spec["runSets"]
    assert runs["grouping"] == [{"section": "config", "name": "method_name.value"}]

    # A user filters the runs and removes a section; the dashboard is saved again.
    runs["search"]["query"] = "nullspace"
    panels = spec["panelBankConfig"]["sections"].pop(0)["panels"]
    view["spec"] = json.dumps({"section": spec})
    run(dashboard, monkeypatch, "project=robust")
    (view,) = api.views.values()
    assert api.inserted == [True, False]
    spec = json.loads(view["spec"])["section"]
    assert spec["runSets"][0]["search"]["query"] == "nullspace"
    restored = spec["panelBankConfig"]["sections"][0]["panels"]
    assert [panel["config"] for panel in restored] == [panel["config"] for panel in panels]
    assert list(tmp_path.iterdir()) == [], "no output folder"

    run(dashboard, monkeypatch, "project=robust", "entity=team")
    assert api.inserted == [True, False, True]


def specification():
    """Type and configuration of every panel, by section."""
    models = [section._to_model().model_dump(by_alias=True, exclude_none=True) for section in sections()]
    return {model["name"]: [(panel["viewType"], panel["config"]) for panel in model["panels"]] for model in models}


def test_specification():
    panels = specification()
    assert list(panels) == ["training", "noise", "robustness", "evaluation"]
    lines = [config for kind, config in panels["training"] + panels["noise"] if kind == "Run History Line Plot"]
    assert all(config["xAxis"] == "trainer/global_step" for config in lines)
    assert {metric for config in lines for metric in config["metrics"]} == {
        *("val/top1", "val/adv_top1", "train/top1", "train/loss", "train/clean_loss", "train/noisy_loss", "val/loss"),
        *("train/influence_before", "train/influence", "train/converged", "train/noise_rms"),
    }
    assert [config["groupBy"] for kind, config in panels["noise"] if kind != "Media Browser"] == 3 * ["eps.value"]
    scatter = [(config["xAxis"], config["yAxis"]) for kind, config in panels["robustness"] if kind == "Scatter Plot"]
    assert ("config:eps.value", "summary:test/score/score") in scatter
    assert ("summary:test/clean/top1", "summary:test/score/score") in scatter
    (parallel,) = [config for kind, config in panels["robustness"] if kind == "Parallel Coordinates Plot"]
    assert [column["accessor"] for column in parallel["columns"]] == [
        *("config:eps.value", "config:nullspace.value.init_scale", "config:nullspace.value.num_steps"),
        *("summary:test/clean/top1", "summary:test/score/score"),
    ]
    media = {key for kind, config in panels["evaluation"] if kind == "Media Browser" for key in config["mediaKeys"]}
    assert media == {"test/overview", "test/samples", "test/report"}
    assert "test/table" in json.dumps(panels["evaluation"])


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    """What the two runs of a sweep and their evaluation record in W&B without an account: what `wandb sync` uploads."""
    folder = tmp_path_factory.mktemp("offline")
    offline = ["logger=wandb", "logger.wandb=offline", "logger.num_images=1"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run(train, patch, "-m", *SHORT, *offline, "nullspace.eps=0.05,0.1", "hydra.sweep.dir=sweep")
        run(
            evaluate, patch, "checkpoint=sweep/*", "suite.attacks.fgsm.eps=[8/255]", "suite.attacks.pgd.eps=[8/255]",
            "suite.severities=[3]", "suite.max_images=30", "accelerator=cpu", "tracking.wandb=offline",
            "hydra.run.dir=evaluation",
        )  # fmt: skip
    return [read_run(folder / "sweep" / name) for name in ("0_eps-0.05", "1_eps-0.1")], read_runs(folder / "evaluation")


def test_panels_show_what_runs_record(records):
    """Charts of training the history, all others the summary and the configuration."""
    trained, evaluated = records
    history = {key.removesuffix("._type") for record in trained for row in record.history for key in row}
    runs = [*trained, *evaluated]
    recorded = {f"config:{key}" for record in runs for key in config_keys(record.config)}
    recorded |= {f"summary:{key.removesuffix('._type')}" for record in runs for key in record.summary}
    for kind, config in [panel for panels in specification().values() for panel in panels]:
        names = [*config.get("metrics", []), *config.get("mediaKeys", [])]
        if kind == "Run History Line Plot":
            assert set(names) | {config["xAxis"]} <= history
        else:
            accessors = [f"summary:{name}" for name in names]
            accessors += [config[axis] for axis in ("xAxis", "yAxis") if axis in config]
            accessors += [column["accessor"] for column in config.get("columns", [])]
            assert set(accessors) <= recorded, kind
        if "groupBy" in config:
            assert f"config:{config['groupBy']}" in recorded
    assert "summary:test/table" in recorded


def config_keys(config):
    """Keys of a run's configuration as W&B addresses them: `nullspace.value.eps`."""
    return {key.replace(".", ".value.", 1) if "." in key else f"{key}.value" for key in flatten(config)}


def test_runs_and_their_evaluations_have_the_same_columns(records):
    trained, evaluations = records
    *evaluated, comparison = evaluations
    assert (comparison.name, comparison.job_type, comparison.group) == ("quick of 2", "comparison", "sweep")
    names = ["nullspace-eps0.05-s0", "nullspace-eps0.1-s0"]
    assert [record.name for record in trained] == [record.name for record in evaluated] == names
    for training, evaluation in zip(trained, evaluated, strict=True):
        assert (training.group, training.project) == (evaluation.group, evaluation.project) == ("sweep", "nsaug")
        assert evaluation.job_type == "evaluation"
        assert training.axes == {"trainer/global_step": "", "*": "trainer/global_step"}
        for key in ("method_name", "eps", "seed", "nullspace", "method", "optim"):
            assert training.config[key] == evaluation.config[key], key
        assert "val/top1" in training.summary
        numbers = [value for key, value in evaluation.summary.items() if key.endswith("/top1")]
        assert len(numbers) == 4
        assert all(isinstance(value, float) for value in numbers)
    assert [record.config["eps"] for record in trained] == [0.05, 0.1]


def test_errors_are_one_line(api, monkeypatch, capsys, tmp_path):
    line = cli_error(dashboard, monkeypatch, capsys, "project=unknown")
    assert line.startswith("error: project=unknown entity=me: Project `me/unknown` not found")
    assert not api.views
    monkeypatch.setattr(wandb.Api, "default_entity", None)
    line = cli_error(dashboard, monkeypatch, capsys)
    assert line == "error: the account has no default entity: type entity=NAME"
    line = cli_error(dashboard, monkeypatch, capsys, "project=a/b")
    assert line == "error: project=a/b: W&B allows none of / \\ # ? % : in it"
    monkeypatch.delenv("WANDB_API_KEY")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    wandb.teardown()
    line = cli_error(dashboard, monkeypatch, capsys)
    assert line == "error: no W&B account is stored on this machine: type wandb login, or set WANDB_API_KEY"


def test_missing_package_is_one_line(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "wandb_workspaces.workspaces", None)
    line = cli_error(dashboard, monkeypatch, capsys)
    assert line == "error: this needs wandb_workspaces.workspaces: pip install 'nsaug[dashboard]'"
