import contextlib
import sys
from types import SimpleNamespace

import pytest
import wandb
from lightning.pytorch.loggers import WandbLogger

from nsaug.cli import train
from nsaug.evaluation import EvalModel
from nsaug.evaluation.reporting.aggregate import aggregate_seeds, tabulate
from nsaug.evaluation.reporting.plots import overview
from nsaug.evaluation.reporting.report import write_report
from nsaug.evaluation.reporting.wandb_logger import EvaluationLogger
from nsaug.training.loggers import LoggerConfig, MetricsLogger, finish, wandb_run_info
from tests.commands import SHORT, cli_error, metrics, run
from tests.evaluation.conftest import make_results
from tests.evaluation.conftest import results as results  # a fixture
from tests.wandb_records import read_run


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
    record = read_run(tmp_path)
    assert (record.name, record.group, record.project) == ("clean-0", "sweep", "nsaug")
    assert record.axes == {"trainer/global_step": "", "*": "trainer/global_step"}
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
    assert [run.options.get("id") for run in online.runs] == ["abc0", "abc1", None, None, None]
    first, second, *new, comparison = online.runs
    assert first.options["resume"] == "must"
    assert (first.options["project"], first.options["entity"]) == ("their", "me")
    assert first.summary["test/clean/top1"] == pytest.approx(0.9)
    assert second.summary["test/clean/top1"] == pytest.approx(0.92)
    assert "test/score/score" in first.summary
    assert set(first.sent["test/table"].get_column("checkpoint")) == {"runs/clean0"}
    assert len(first.sent["test/samples"]) == 3
    assert "config" not in first.options, "training has recorded all settings"
    assert [run.options["name"] for run in new] == ["nullspace-eps0.03-s0", "nullspace-eps0.03-s1"]
    for seed, own in enumerate(new):
        assert (own.options["job_type"], own.options["group"]) == ("evaluation", None), "runs/ is no sweep"
        columns = {"name": "nullspace", "method_name": "nullspace", "eps": 0.03, "seed": seed}
        assert own.options["config"] == columns | {"nullspace": {"eps": 0.03}}
        assert set(own.sent["test/table"].get_column("checkpoint")) == {f"runs/nullspace{seed}"}
        assert own.summary["test/clean/top1"] == pytest.approx(0.8 + 0.02 * seed)
    assert (comparison.options["name"], comparison.options["job_type"]) == ("digits of 4", "comparison")
    assert len(set(comparison.sent["test/table"].get_column("checkpoint"))) == 4
    assert comparison.summary == {}
    assert [run for run in online.runs if {"test/overview", "test/report"} & set(run.sent)] == [comparison]


def test_one_model_has_the_report_in_its_run(evaluated, monkeypatch):
    monkeypatch.setattr(wandb, "init", online := Online())
    folder, rows, results = evaluated
    publish((folder, rows, [result for result in results if result.model.label == "clean, seed 0"]), wandb="online")
    (run,) = online.runs
    assert run.options["id"] == "abc0"
    assert set(run.sent) == {"test/table", "test/samples", "test/overview", "test/report"}


def test_evaluation_can_have_its_own_runs(evaluated, monkeypatch):
    monkeypatch.setattr(wandb, "init", online := Online())
    publish(evaluated, wandb="online", log_to="new_run", project="mine")
    assert [run.options["project"] for run in online.runs] == 5 * ["mine"]
    assert online.runs[0].options["name"] == "clean-s0"


def test_runs_of_a_sweep_are_a_group_with_the_settings_that_vary(tmp_path, monkeypatch):
    results = []
    for lr in (1e-3, 1e-4):
        metadata = {"name": "clean", "method": "clean", "settings": {"nullspace": {"eps": 0.03}, "optim": {"lr": lr}}}
        model = EvalModel(f"outputs/train/sweep/{lr}/model.safetensors", None, metadata, f"clean optim.lr={lr}")
        results += make_results(model, 0.9, 0.5, 0.1)
    rows = write_report(results, {}, {"suite": "digits"}, tmp_path)
    monkeypatch.setattr(wandb, "init", online := Online())
    EvaluationLogger(wandb="online").publish(tmp_path, "digits of 2", rows, results)
    assert [run.options["group"] for run in online.runs] == 3 * ["sweep"]
    first, second, _ = online.runs
    assert (first.options["name"], second.options["name"]) == ("clean-lr0.001", "clean-lr0.0001")
    assert first.options["config"]["optim"] == {"lr": 1e-3}
    assert "eps" not in first.options["config"], "clean has no noise"


def test_without_account_evaluation_is_not_logged(evaluated, monkeypatch):
    monkeypatch.setattr(wandb, "init", lambda **_: pytest.fail("started"))
    publish(evaluated)
    publish(evaluated, wandb="off")


def test_offline_evaluation_is_recorded(evaluated):
    folder, rows, results = evaluated
    results = [result for result in results if result.model.label == "nullspace, seed 1"]
    publish((folder, rows, results), wandb="offline", group="sweep")
    record = read_run(folder)
    assert (record.name, record.group, record.job_type) == ("nullspace-eps0.03-s1", "sweep", "evaluation")
    assert (record.config["method_name"], record.config["eps"]) == ("nullspace", 0.03)
    assert record.summary["test/clean/top1"] == pytest.approx(0.82)
    assert {"test/table", "test/samples", "test/overview", "test/report"} <= {
        name.rpartition(".")[0] or name for name in record.summary
    }
    assert any(b"the report" in file.read_bytes() for file in folder.rglob("*.html"))
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


@pytest.fixture
def tensorboard():
    """Reads the scalars and images that were logged to a folder."""
    module = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator", reason="an extra")

    def read(folder):
        events = module.EventAccumulator(str(folder / "tensorboard"))
        events.Reload()
        return events

    return read


def test_tensorboard_has_metrics_and_noise(tmp_path, monkeypatch, tensorboard):
    settings = ["logger=tensorboard", "logger.num_images=2", f"hydra.run.dir={tmp_path}"]
    run(train, monkeypatch, *SHORT, *settings)
    events = tensorboard(tmp_path)
    row = metrics(tmp_path)[-1]
    (event,) = events.Scalars("val/top1")
    assert (event.step, event.value) == (int(row["step"]), pytest.approx(float(row["val/top1"])))
    assert events.Tags()["images"] == ["noise"]
    assert not (tmp_path / "wandb").exists()


def test_tensorboard_hides_events_after_the_checkpoint(tmp_path, monkeypatch, tensorboard):
    monkeypatch.setattr("nsaug.training.loggers.read_checkpoint", lambda *_, **__: {"global_step": 3})
    for resume_from, steps in ((None, (1, 2, 5)), (tmp_path / "last.ckpt", (4,))):
        (logger,) = LoggerConfig(csv=False, wandb="off", tensorboard=True).loggers(tmp_path, "", None, {}, resume_from)
        for step in steps:
            logger.log_metrics({"loss": step}, step)
        logger.finalize("success")
    assert [event.step for event in tensorboard(tmp_path).Scalars("loss")] == [1, 2, 4]


def test_missing_tensorboard_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    line = cli_error(train, monkeypatch, capsys, "logger=tensorboard", f"hydra.run.dir={tmp_path}")
    assert line == "error: this needs tensorboard: pip install 'nsaug[tensorboard]'"
