import contextlib
from types import SimpleNamespace

import pytest
import wandb
from lightning.pytorch.loggers import WandbLogger

from nsaug.evaluation import EvalModel
from nsaug.evaluation.reporting.aggregate import aggregate_seeds, tabulate
from nsaug.evaluation.reporting.plots import overview
from nsaug.evaluation.reporting.report import write_report
from nsaug.evaluation.reporting.wandb_logger import EvaluationLogger
from nsaug.training.loggers import LoggerConfig, MetricsLogger, finish, wandb_run_info
from tests.evaluation.conftest import make_results
from tests.evaluation.conftest import results as results  # a fixture


@pytest.fixture(autouse=True)
def no_account(monkeypatch, tmp_path):
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    wandb.teardown()  # it caches the environment of its first use


def types(loggers):
    return [type(logger) for logger in loggers]


def test_without_account_wandb_is_offline(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked for input"))
    loggers = LoggerConfig().loggers(tmp_path, "clean-0", "sweep", {"seed": 0, "nullspace": {"eps": 0.03}})
    try:
        assert types(loggers) == [MetricsLogger, WandbLogger]
        run = loggers[1].experiment
        assert run.settings.mode == "offline"
        assert (run.name, run.group, run.project) == ("clean-0", "sweep", "nsaug")
        assert run.config["nullspace"]["eps"] == 0.03
    finally:
        finish(loggers, failed=False)
    assert wandb.run is None
    assert list((tmp_path / "wandb").glob("offline-run-*"))
    assert capsys.readouterr().out == ""


def test_without_network_wandb_falls_back_to_offline(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    real = wandb.init

    def unreachable(mode, **options):
        if mode == "online":
            raise wandb.errors.CommError("Run initialization has timed out")
        return real(mode=mode, **options)

    monkeypatch.setattr(wandb, "init", unreachable)
    loggers = LoggerConfig().loggers(tmp_path, "clean-0", None, {})
    finish(loggers, failed=False)
    assert types(loggers) == [MetricsLogger, WandbLogger]
    assert "W&B cannot be reached (Run initialization has timed out)" in caplog.text


def test_runs_of_a_multirun_are_separate(tmp_path):
    ids = []
    for name in ("a", "b"):
        loggers = LoggerConfig(wandb="offline").loggers(tmp_path / name, name, "sweep", {})
        ids.append(loggers[1].experiment.id)
        finish(loggers, failed=False)
    assert ids[0] != ids[1]


def test_hyperparameters_of_a_data_module_are_not_written(tmp_path):
    """Lightning logs those of a module that calls save_hyperparameters()."""
    (logger,) = LoggerConfig(wandb="off").loggers(tmp_path, "x", None, {})
    logger.log_hyperparams({"root": "images"})
    logger.save()
    assert list(tmp_path.iterdir()) == []


def test_csv_only_and_no_logger(tmp_path):
    assert types(LoggerConfig(wandb="off").loggers(tmp_path, "x", None, {})) == [MetricsLogger]
    assert LoggerConfig(wandb="off", csv=False).loggers(tmp_path, "x", None, {}) == []


class Online:
    """Replaces wandb.init and records the options and logs of every run."""

    def __init__(self):
        self.runs = []

    def __call__(self, **options):
        run = SimpleNamespace(options=options, summary={}, sent={}, url="https://wandb.test/run")
        run.log = run.sent.update
        self.runs.append(run)
        return contextlib.nullcontext(run)


@pytest.fixture
def evaluated(results, tmp_path):
    """Two runs of `clean` that were recorded online, two of `nullspace` that were not."""
    for result in results:
        if result.model.name == "clean":
            seed = result.model.metadata["seed"]
            info = {"id": f"abc{seed}", "project": "their", "entity": "me", "online": True}
            result.model.metadata["wandb"] = info
    rows = tabulate(results, {"pgd": 1})
    (tmp_path / "report.html").write_text("<p>the report</p>")
    overview(aggregate_seeds(rows), tmp_path / "results.png")
    return tmp_path, rows, results


def publish(evaluated, **settings):
    folder, rows, results = evaluated
    EvaluationLogger(**settings).publish(folder, "digits of 4", rows, results)


def test_evaluation_is_logged_to_the_training_runs(evaluated, monkeypatch):
    monkeypatch.setattr(wandb, "init", online := Online())
    publish(evaluated, wandb="online")
    first, second, own = online.runs
    assert [run.options.get("id") for run in online.runs] == ["abc0", "abc1", None]
    assert first.options["resume"] == "must"
    assert (first.options["project"], first.options["entity"]) == ("their", "me")
    assert first.summary["test/clean/top1"] == pytest.approx(0.9)
    assert second.summary["test/clean/top1"] == pytest.approx(0.92)
    assert "test/score/score" in first.summary
    assert set(first.sent["test/table"].get_column("checkpoint")) == {"runs/clean0"}
    assert len(first.sent["test/samples"]) == 3
    assert own.options["name"] == "digits of 4"
    assert own.options["group"] is None, "runs/nullspace0 is in no folder of a sweep"
    config = own.options["config"]
    assert (config["method"], config["eps"], config["seed"]) == ("nullspace", 0.03, [0, 1])
    assert "config" not in first.options, "training has recorded all settings"
    assert set(own.sent["test/table"].get_column("checkpoint")) == {"runs/nullspace0", "runs/nullspace1"}
    assert {"test/overview", "test/report"} <= set(own.sent)


def test_evaluation_can_have_its_own_run(evaluated, monkeypatch):
    monkeypatch.setattr(wandb, "init", online := Online())
    publish(evaluated, wandb="online", log_to="new_run", project="mine")
    (run,) = online.runs
    assert run.options["project"] == "mine"
    assert len(set(run.sent["test/table"].get_column("checkpoint"))) == 4


def test_runs_of_a_sweep_are_a_group_with_the_settings_that_vary(tmp_path, monkeypatch):
    results = []
    for lr in (1e-3, 1e-4):
        settings = {"nullspace": {"eps": 0.03}, "optim": {"lr": lr}}
        model = EvalModel(f"outputs/train/sweep/{lr}/model.safetensors", None, {"settings": settings}, f"lr {lr}")
        results += make_results(model, 0.9, 0.5, 0.1)
    rows = write_report(results, {}, {"suite": "digits"}, tmp_path)
    monkeypatch.setattr(wandb, "init", online := Online())
    EvaluationLogger(wandb="online").publish(tmp_path, "digits of 2", rows, results)
    (run,) = online.runs
    assert run.options["group"] == "sweep"
    assert run.options["config"]["optim.lr"] == [1e-3, 1e-4]
    assert run.options["config"]["name"] == ["lr 0.001", "lr 0.0001"]


def test_without_account_evaluation_is_not_logged(evaluated, monkeypatch):
    monkeypatch.setattr(wandb, "init", lambda **_: pytest.fail("started"))
    publish(evaluated)
    publish(evaluated, wandb="off")


def test_offline_evaluation_is_recorded(evaluated):
    publish(evaluated, wandb="offline")
    (record,) = evaluated[0].glob("wandb/offline-run-*/*.wandb")
    assert b"the report" in b"".join(file.read_bytes() for file in record.parent.rglob("*.html"))
    assert wandb.run is None


def test_failing_server_costs_a_warning(evaluated, monkeypatch, caplog):
    def refuse(**_):
        raise wandb.errors.CommError("no route to host\nand more")

    monkeypatch.setattr(wandb, "init", refuse)
    publish(evaluated, wandb="online")
    assert f"the evaluation could not be sent to W&B (no route to host); it is in {evaluated[0]}" in caplog.text


def test_wandb_run_info(tmp_path):
    loggers = LoggerConfig(csv=False, wandb="offline").loggers(tmp_path, "clean-0", None, {})
    try:
        info = wandb_run_info(loggers)
        assert info == {"id": loggers[0].experiment.id, "project": "nsaug", "entity": None, "online": False}
    finally:
        finish(loggers, failed=False)
    assert wandb_run_info([]) is None
