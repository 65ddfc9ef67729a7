import contextlib
import json
import logging
from types import SimpleNamespace

import pytest
import wandb
from lightning.pytorch.loggers import CSVLogger, WandbLogger

from nsaug.evaluation import Score
from nsaug.evaluation.reporting.aggregate import aggregate_seeds, tabulate
from nsaug.evaluation.reporting.plots import overview
from nsaug.evaluation.reporting.wandb_logger import EvaluationLogger
from nsaug.training.callbacks import NoiseMonitor
from nsaug.training.loggers import LoggerConfig, finish, wandb_run_info
from tests.evaluation.conftest import results as results  # a fixture


@pytest.fixture(autouse=True)
def no_account(monkeypatch, tmp_path):
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    wandb.teardown()  # it remembers the environment it was first used in


def kinds(loggers):
    return [type(logger) for logger in loggers]


def test_without_an_account_it_records_offline_and_asks_nobody(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked"))
    loggers = LoggerConfig().loggers(tmp_path, "clean-0", "sweep", {"seed": 0, "nullspace": {"eps": 0.03}})
    try:
        assert kinds(loggers) == [CSVLogger, WandbLogger]
        run = loggers[1].experiment
        assert run.settings.mode == "offline"
        assert (run.name, run.group, run.project) == ("clean-0", "sweep", "nsaug")
        assert run.config["nullspace"]["eps"] == 0.03
    finally:
        finish(loggers, failed=False)
    assert wandb.run is None
    assert list((tmp_path / "wandb").glob("offline-run-*")), "recorded below the run's folder"
    assert capsys.readouterr().out == ""


def test_without_a_network_it_falls_back_and_says_so(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    real = wandb.init

    def unreachable(mode, **options):
        if mode == "online":
            raise wandb.errors.CommError("Run initialization has timed out")
        return real(mode=mode, **options)

    monkeypatch.setattr(wandb, "init", unreachable)
    loggers = LoggerConfig().loggers(tmp_path, "clean-0", None, {})
    finish(loggers, failed=False)
    assert kinds(loggers) == [CSVLogger, WandbLogger]
    assert "W&B cannot be reached (Run initialization has timed out)" in caplog.text


def test_each_run_of_a_multirun_is_its_own(tmp_path):
    ids = []
    for name in ("a", "b"):
        loggers = LoggerConfig(wandb="offline").loggers(tmp_path / name, name, "sweep", {})
        ids.append(loggers[1].experiment.id)
        finish(loggers, failed=False)
    assert ids[0] != ids[1]


def test_csv_alone_and_nothing_at_all(tmp_path):
    assert kinds(LoggerConfig(wandb="off").loggers(tmp_path, "x", None, {})) == [CSVLogger]
    assert LoggerConfig(wandb="off", csv=False).loggers(tmp_path, "x", None, {}) == []


@pytest.mark.parametrize(
    ("steps", "converged", "says"),
    [(0, 1, "the noise starts below eps"), (3, 0, "no noise gets below eps"), (3, 0.4, None)],
)
def test_noise_that_is_none_is_warned_of_once(steps, converged, says, caplog):
    caplog.set_level(logging.WARNING)
    watch = NoiseMonitor(batches=5)
    trainer = SimpleNamespace(callback_metrics={"train/refinement_steps": steps, "train/converged": converged})
    for _ in range(20):
        watch.on_train_batch_end(trainer, None)
    watch.on_train_end(trainer, None)
    assert len(caplog.records) == (1 if says else 0)
    assert json.dumps(says) == "null" or says in caplog.text


class Online:
    """Stands for wandb.init: keeps what each run was asked for and was sent."""

    def __init__(self):
        self.runs = []

    def __call__(self, **told):
        run = SimpleNamespace(told=told, summary={}, sent={}, url="https://wandb.test/run")
        run.log = run.sent.update
        self.runs.append(run)
        return contextlib.nullcontext(run)


@pytest.fixture
def evaluated(results, tmp_path):
    """Two runs of `clean` that W&B knows, two of `nullspace` that it does not."""
    for result in results:
        if result.model.name == "clean":
            seed = result.model.metadata["seed"]
            place = {"id": f"abc{seed}", "project": "their", "entity": "me", "online": True}
            result.model.metadata["wandb"] = place
    rows = tabulate(results, Score(weights={"pgd": 1}))
    (tmp_path / "report.html").write_text("<p>the report</p>")
    overview(aggregate_seeds(rows), tmp_path / "results.png")
    return tmp_path, rows, results


def publish(evaluated, **settings):
    folder, rows, results = evaluated
    EvaluationLogger(**settings).publish(folder, "digits of 4", rows, results)


def test_an_evaluation_goes_to_the_runs_that_trained(evaluated, monkeypatch):
    monkeypatch.setattr(wandb, "init", online := Online())
    publish(evaluated, wandb="online")
    first, second, own = online.runs
    assert [run.told.get("id") for run in online.runs] == ["abc0", "abc1", None]
    assert first.told["resume"] == "must"
    assert (first.told["project"], first.told["entity"]) == ("their", "me")
    assert first.summary["test/clean/top1"] == pytest.approx(0.9)
    assert second.summary["test/clean/top1"] == pytest.approx(0.92)
    assert "test/score/score" in first.summary
    assert set(first.sent["test/table"].get_column("checkpoint")) == {"runs/clean0"}
    assert len(first.sent["test/samples"]) == 2
    assert own.told["name"] == "digits of 4"
    assert set(own.sent["test/table"].get_column("checkpoint")) == {"runs/nullspace0", "runs/nullspace1"}
    assert {"test/overview", "test/report"} <= set(own.sent)


def test_an_evaluation_goes_to_a_run_of_its_own(evaluated, monkeypatch):
    monkeypatch.setattr(wandb, "init", online := Online())
    publish(evaluated, wandb="online", log_to="new_run", project="mine")
    (run,) = online.runs
    assert run.told["project"] == "mine"
    assert len(set(run.sent["test/table"].get_column("checkpoint"))) == 4


def test_without_an_account_an_evaluation_stays_where_it_is(evaluated, monkeypatch):
    monkeypatch.setattr(wandb, "init", lambda **_: pytest.fail("started"))
    publish(evaluated)
    publish(evaluated, wandb="off")


def test_an_evaluation_offline_is_really_recorded(evaluated):
    publish(evaluated, wandb="offline")
    (record,) = evaluated[0].glob("wandb/offline-run-*/*.wandb")
    assert b"the report" in b"".join(file.read_bytes() for file in record.parent.rglob("*.html"))
    assert wandb.run is None


def test_a_server_that_refuses_costs_a_warning(evaluated, monkeypatch, caplog):
    def refuse(**_):
        raise wandb.errors.CommError("no route to host\nand more")

    monkeypatch.setattr(wandb, "init", refuse)
    publish(evaluated, wandb="online")
    assert f"the evaluation could not be sent to W&B (no route to host); it is in {evaluated[0]}" in caplog.text


def test_a_run_says_where_it_is_recorded(tmp_path):
    loggers = LoggerConfig(csv=False, wandb="offline").loggers(tmp_path, "clean-0", None, {})
    try:
        told = wandb_run_info(loggers)
        assert told == {"id": loggers[0].experiment.id, "project": "nsaug", "entity": None, "online": False}
    finally:
        finish(loggers, failed=False)
    assert wandb_run_info([]) is None
