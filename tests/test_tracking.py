import json
import logging
from types import SimpleNamespace

import pytest
import wandb
from lightning.pytorch.loggers import CSVLogger, WandbLogger

from nsaug.tracking import NoiseWatch, Tracking, finish


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
    loggers = Tracking().loggers(tmp_path, "clean-0", "sweep", {"seed": 0, "nullspace": {"eps": 0.03}})
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
    loggers = Tracking().loggers(tmp_path, "clean-0", None, {})
    finish(loggers, failed=False)
    assert kinds(loggers) == [CSVLogger, WandbLogger]
    assert "W&B cannot be reached (Run initialization has timed out)" in caplog.text


def test_each_run_of_a_multirun_is_its_own(tmp_path):
    ids = []
    for name in ("a", "b"):
        loggers = Tracking(wandb="offline").loggers(tmp_path / name, name, "sweep", {})
        ids.append(loggers[1].experiment.id)
        finish(loggers, failed=False)
    assert ids[0] != ids[1]


def test_csv_alone_and_nothing_at_all(tmp_path):
    assert kinds(Tracking(wandb="off").loggers(tmp_path, "x", None, {})) == [CSVLogger]
    assert Tracking(wandb="off", csv=False).loggers(tmp_path, "x", None, {}) == []


@pytest.mark.parametrize(
    ("steps", "reached", "says"),
    [(0, 1, "the noise starts below eps"), (3, 0, "no noise gets below eps"), (3, 0.4, None)],
)
def test_noise_that_is_none_is_warned_of_once(steps, reached, says, caplog):
    caplog.set_level(logging.WARNING)
    watch = NoiseWatch(batches=5)
    trainer = SimpleNamespace(callback_metrics={"train/refinement_steps": steps, "train/reached": reached})
    for _ in range(20):
        watch.on_train_batch_end(trainer, None)
    watch.on_train_end(trainer, None)
    assert len(caplog.records) == (1 if says else 0)
    assert json.dumps(says) == "null" or says in caplog.text
