"""Wrong settings give one line before anything starts."""

import inspect
import json
import os
import sys
from types import SimpleNamespace

import lightning
import pytest
import torch
from hydra.errors import MissingConfigException
from lightning.fabric.utilities.exceptions import MisconfigurationException
from omegaconf import OmegaConf

from nsaug.cli import evaluate, train
from nsaug.cli.app import _sort_arguments, entry_point, instantiate, validate_value
from nsaug.cli.compose import compose
from nsaug.cli.errors import format_error
from nsaug.data import ImageDataModule
from nsaug.models.noisy_vit import NoisyViT
from nsaug.utils.errors import UserError
from tests.commands import cli_error, run
from tests.conftest import ROOT


def composed(*overrides, script=train):
    return compose(script.__name__.split(".")[-1], overrides)


def error_of(*overrides, script=train):
    """The error line of a command with these overrides, or None."""
    try:
        script.check_settings(composed(*overrides, script=script))
    except Exception as error:
        line = format_error(error, script.__name__.split(".")[-1], overrides)
        assert "\n" not in line
        return line
    return None


def test_defaults_are_valid():
    assert error_of() is None
    assert error_of(script=evaluate) is None


NEEDED = {"timm": "model.name=deit_tiny_patch16_224", "folder": "data.root=somewhere"}


@pytest.mark.parametrize("group", ["data", "model", "method", "nullspace", "attack", "optim", "trainer", "logger"])
def test_all_choices_are_valid(group):
    for file in sorted((ROOT / "conf" / group).glob("*.yaml")):
        if file.stem not in ("checkpoint", "custom"):  # for evaluate.py; for user classes
            needed = [NEEDED[file.stem]] if file.stem in NEEDED else []
            assert error_of(f"{group}={file.stem}", *needed) is None


def test_all_suites_are_valid():
    for file in sorted((ROOT / "conf" / "suite").glob("*.yaml")):
        assert error_of(f"suite={file.stem}", script=evaluate) is None


@pytest.mark.parametrize("group", sorted(file.parent.name for file in (ROOT / "conf").glob("*/custom.yaml")))
def test_custom_choices_need_a_class(group):
    line = error_of(f"{group}=custom")
    assert line.startswith(f"{group}._target_ is not set: type {group}._target_=")


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("nullspace.epss=0.1", "nullspace.epss: no such setting; did you mean nullspace.eps?"),
        ("+nullspace.epss=0.1", "nullspace.epss: no such setting; did you mean nullspace.eps?"),
        ("+sead=1", "sead: no such setting; did you mean seed?"),
        ("sead=1", "sead: no such setting; did you mean seed?"),
        ("trainer.max_epoch=1", "trainer.max_epoch: no such setting; did you mean trainer.max_epochs?"),
        ("trainer.limit_val_batch=1", "trainer.limit_val_batch: no such setting; did you mean trainer.limit_val_batc"),
        ("+data.foo=1", "data.foo: no such setting; choose among auto_augment, batch_size, crop, hflip"),
        ("+optim.momentum=0.9", "optim.momentum: no such setting"),
        ("nullspace.eps=5", "nullspace.eps=5: should be less than 2"),
        ("nullspace.eps=0", "nullspace.eps=0: should be greater than 0"),
        ("nullspace.eps=small", "nullspace.eps=small: should be a valid number"),
        ("nullspace.eps=null", "nullspace.eps=null: should be a valid number"),
        (
            "nullspace.eps=0.1,0.2",
            "nullspace.eps=0.1,0.2: add -m to run every value, or type 'nullspace.eps=[0.1,0.2]'",
        ),
        ("attack.eps=4/0", "attack.eps=4/0: '4/0' is neither a number nor a fraction such as 4/255"),
        ("attack.eps=8", "attack.eps=8: should be less than or equal to 1"),
        ("data.batch_size=0", "data.batch_size=0: should be greater than or equal to 1"),
        ("data.batch_size=[1,2]", "data.batch_size=[1, 2]: should be a valid integer"),
        ("data.crop=square", "data.crop=square: should be 'resized', 'padded' or 'none'"),
        ("optim.lr=-1", "optim.lr=-1: should be greater than 0"),
        ("optim.warmup=2", "optim.warmup=2: should be less than or equal to 1"),
        ("optim.betas=[0.9]", "optim.betas=[0.9]: lacks a value"),
        ("optim.betas=[0.9,1]", "optim.betas=[0.9, 1]: should be less than 1"),
        ("model.img_size=big", "model.img_size=big: should be a valid integer"),
        ("trainer.max_epochs=many", "trainer.max_epochs=many: should be a valid integer"),
        ("trainer.max_epochs=0", "trainer.max_epochs=0 trains nothing"),
        ("trainer.max_epochs=-1", "trainer.max_epochs=-1 needs trainer.max_steps"),
        ("trainer.precision=float7", "trainer.precision=float7: should be"),
        ("trainer.limit_val_batches=some", "trainer.limit_val_batches=some: should be a valid integer"),
        ("trainer.fast_dev_run=true", "trainer.fast_dev_run writes no checkpoint: type trainer.max_steps=1"),
        (
            "trainer.overfit_batches=2",
            "trainer.overfit_batches would replace the order of the images, which",
        ),
        ("ema='0.5'", "ema=0.5: should be a valid number"),
        ("ema=1/2", "ema=1/2: should be a valid number"),
        ("trainer.logger=false", "trainer.logger cannot be set: choose the loggers with logger=wandb"),
        ("logger.wandb=maybe", "logger.wandb=maybe: should be 'auto', 'online', 'offline' or 'off'"),
        ("seed=-1", "seed=-1: should be greater than or equal to 0"),
        ("seed=true", "seed=True: should be a valid integer"),
        ("seed=4294967296", "seed=4294967296: should be less than 4294967296"),
        ("checkpoint=", "checkpoint=: should not be empty"),
        ("trainable=some", "trainable=some: should be all, head, or last_N with N from 1 on, such as last_4"),
        ("trainable=last_0", "trainable=last_0: should be all, head, or last_N"),
        ("ema=1", "ema=1: should be less than 1"),
        ("optim.layer_decay=0", "optim.layer_decay=0: should be greater than 0"),
        ("mixup.mixup_alpha=-1", "mixup.mixup_alpha=-1: should be greater than or equal to 0"),
        ("mixup.mixup_alhpa=1", "mixup.mixup_alhpa: no such setting; did you mean mixup.mixup_alpha?"),
        ("mixup=null", "mixup=null: this group cannot be left out"),
        ("attack=null", "attack=null: no such choice; attack is one of autoattack, custom, cw, deepfool,"),
        ("save=first", "save=first: should be 'last' or 'best'"),
        ("model=vit_xxl", "model=vit_xxl: no such choice; model is one of checkpoint, "),
        ("method=nullspce", "method=nullspce: no such choice; method is one of augmix, clean,"),
        ("epochs=3", "epochs: no such setting; did you mean trainer.max_epochs?"),
        ("lr=0.1", "lr: no such setting; did you mean optim.lr?"),
        ("eps=0.1", "eps: no such setting; did you mean nullspace.eps or attack.eps?"),
        ("nothing=1", "nothing: no such setting; choose among attack, checkpoint"),
        ("modle=vit_s", "modle: no such setting; did you mean model?"),
        ("model=timm", "model.name is not set: type model.name=..."),
        ("data=checkpoint", "data=checkpoint is for evaluate.py"),
        ("data=folder", "data.root is not set: type data.root=..."),
        ("nullspace.eps=[0.1", "nullspace.eps=[0.1: cannot be read as name=value"),
        ("data=1", "data=1: no such choice; data is one of checkpoint, cifar10,"),
        ("data=[a,b]", "data=[a,b]: no such choice; data is one of checkpoint, cifar10,"),
        ("optim='a/b'", "optim='a/b': no such choice; optim is one of adamw"),
        ("optim=../train", "optim=../train: no such choice; optim is one of adamw"),
        ("optim=${seed}", "optim=${seed}: no such choice; optim is one of adamw"),
        ("suite=1", "suite=1: suite is not a group of this command: leave it out"),
        ("suite=quick", "suite: no such setting; choose among attack, checkpoint"),
        ("hydra/launcher=1", "hydra/launcher=1: no such choice; hydra/launcher is one of processes, slurm"),
        ("seed=choice(0,1)", "seed=choice(0,1): add -m to run every value, or type 'seed=[choice(0,1)]' for a list"),
        ("~data=0.5", "~data=0.5: type ~data, without a value"),
        ("data.num_workers=1025", "data.num_workers=1025: should be less than or equal to 1024"),
        ("model.crop_pct=1e-6", "model.crop_pct=1e-06: should be greater than or equal to 0.1"),
        ("~trainer.strategy", "~trainer.strategy: nothing to remove, there is no such setting"),
        ("+seed=1", "+seed: this setting exists: leave out the +"),
        ("x@y=1", "x@y=1: there is no group x"),
        ("=", "=: a setting has the form name=value"),
        ("method._target_=-1", "method._target_=-1: should be the name of a class or function"),
        ("optim._target_=abc", "optim._target_=abc: is a module, not a class or function"),
        ("method.noise=0.5", "method.noise=0.5: should be an instance of NoiseSource"),
        ("model.mean=1", "model.mean=1: should be a list, such as [a,b]"),
        ("+model.checkpoint=x", "model.checkpoint cannot be set: type checkpoint=PATH"),
        ("+model.num_classes=3", "model.num_classes cannot be set: it is that of the data"),
        ("trainer.log_every_n_steps=-7", "trainer.log_every_n_steps=-7: should be greater than or equal to 0"),
        (
            "trainer.accumulate_grad_batches=0",
            "trainer.accumulate_grad_batches=0: should be greater than",
        ),
        ("trainer.min_steps='1'", "trainer.min_steps=1: should be a valid integer"),
        ("trainer.gradient_clip_val=-1", "trainer.gradient_clip_val=-1: should be greater than or equal to 0"),
    ],
)
def test_wrong_setting_is_one_line(override, line):
    error = error_of(override)
    assert error is not None, "accepted"
    assert error.startswith(line)


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("suite.attacks.fgsm.eps=[4/0]", "suite.attacks.fgsm.eps=4/0: '4/0' is neither a number nor a fraction"),
        ("+suite.attacks.pgd.step=1", "suite.attacks.pgd.step: no such setting"),
        ("batch_size=0", "batch_size=0: should be"),
        ("suite.max_images=0", "suite.max_images=0: should be"),
        ("+suite.max_image=3", "suite.max_image: no such setting; did you mean suite.max_images?"),
        ("checkpoint=3", "checkpoint=3: should be"),
        ("checkpoint=", "checkpoint=: should not be empty"),  # an unset variable of the shell
        ("cache=", "cache=: should not be empty"),
        ("suite.root=", "suite.root=: should not be empty"),
        ("+suite.image_list=", "suite.image_list=: should not be empty"),
        ("compare=['',a]", "compare=['', 'a']: should not be empty"),
        ("+model.checkpoint=x", "model.checkpoint cannot be set: type checkpoint=PATH"),
        (
            "num_nodes=2",
            "num_nodes=2: start the command on each machine with torchrun --nnodes=2 or srun, or",
        ),
        ("num_nodes='1'", "num_nodes=1: should be a valid integer"),
        ("batch_size='8'", "batch_size=8: should be a valid integer"),
        ("+suite.attacks.mine={attack: []}", "suite.attacks.mine.[]: no such setting; choose among autoattack, cw,"),
        (
            "+suite.benchmarks.mine._target_=nsaug.Nothing",
            "suite.benchmarks.mine._target_=nsaug.Nothing: there is no such",
        ),
        (
            "suite=fast",
            "suite=fast: no such choice; suite is one of attacks, cifar10, cifar10_c, cifar10_study, clean,",
        ),
    ],
)
def test_wrong_setting_of_evaluate_is_one_line(override, line):
    error = error_of(override, script=evaluate)
    assert error is not None, "accepted"
    assert error.startswith(line)


@pytest.mark.parametrize(
    "argument",
    ["limit_val_batches=1", "limit_train_batches=0.5", "val_check_interval=0.5", "max_time='00:01:00:00'",
     "deterministic=warn", "check_val_every_n_epoch=null", "profiler=simple", "min_steps=3"],
)  # fmt: skip
def test_arguments_of_lightning_trainer_need_no_plus(argument):
    """Also those that conf/trainer does not list."""
    assert error_of(f"trainer.{argument}") is None
    assert error_of("trainer=ddp", f"+trainer.{argument}") is None


def test_all_arguments_of_lightning_trainer_can_be_set():
    defaults = {name: parameter.default for name, parameter in inspect.signature(lightning.Trainer).parameters.items()}
    del defaults["logger"], defaults["max_epochs"]
    assert error_of(*(f"trainer.{name}={json.dumps(default)}" for name, default in defaults.items())) is None


def test_callbacks_are_built_from_the_trainer_node():
    node = "trainer.callbacks=[{_target_: lightning.pytorch.callbacks.Timer, duration: 00:01:00:00}]"
    assert error_of(node) is None
    assert error_of(node.replace("duration", "durations")).startswith(
        "trainer.callbacks[0].durations: no such setting; did you mean trainer.callbacks[0].duration?"
    )


@pytest.mark.parametrize("model", ["vit_ti", "vit_s", "vit_b", "vit_l", "deit_s"])
def test_imagenet_models_choose_imagenet_data(model):
    cfg = composed(f"model={model}")
    assert cfg.data["_target_"] == "nsaug.data.ImageNet"
    assert cfg.optim.lr == 1e-4
    assert cfg.trainer.max_epochs == 10
    assert composed(f"model={model}", "data=cifar10").data["_target_"] == "nsaug.data.CIFAR10"
    assert composed(f"model={model}", script=evaluate).data["_target_"] == "nsaug.data.ImageNet"


def test_combined_settings_are_checked():
    assert error_of("mixup.mixup_alpha=0.8", "data.batch_size=7") == (
        "mixup and cutmix pair images: data.batch_size=7 should be even"
    )
    assert error_of("method=pgd", "method.attack.eps=2").startswith("method.attack.eps=2: should be less than or equal")
    assert error_of("method=trades", "+method.attack.norm=2").startswith("method.attack.norm: no such setting")
    assert error_of("method=random_noise", "method.noise.match=size").startswith("method.noise.match=size: should be ")


EXPERIMENTS = sorted(path.stem for path in (ROOT / "conf" / "experiment").glob("*.yaml"))


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_experiments_compose(experiment):
    root = ["data.root=somewhere"] if experiment.startswith(("finetune", "imagenette")) else []
    assert error_of(f"experiment={experiment}", *root) is None
    assert error_of(f"experiment={experiment}", *root, "method=trades", "nullspace=per_batch", "trainer=ddp") is None


@pytest.mark.parametrize("method", ["pgd", "fgsm_rs", "trades"])
def test_training_and_validation_attack_share_eps(method):
    assert composed(f"method={method}", "attack.eps=8/255").method.attack.eps == "8/255"
    assert composed(f"method={method}", "method.attack.eps=2/255").method.attack.eps == "2/255"


def test_data_are_checked_before_weights(monkeypatch):
    monkeypatch.setattr("nsaug.models.factory._require_hub_weights", lambda *_: pytest.fail("looked for weights"))
    cfg = composed("model=vit_s", "nullspace.eps=0.05", "data.root=/nowhere")
    with pytest.raises(UserError, match="data.root=/nowhere does not exist"):
        instantiate(cfg.data).setup("fit")


def test_values_are_checked_against_types():
    validate_value("x", "4/255", float | str)
    with pytest.raises(UserError, match="x=null: "):
        validate_value("x", None, int)


USER_MODULE = """
from __future__ import annotations
from typing import TYPE_CHECKING
from nsaug.methods import Clean
if TYPE_CHECKING:
    from somewhere import Nowhere

class Checked(Clean):
    def __init__(self, alpha: float = 1.0):
        super().__init__()

class Unresolvable(Clean):
    def __init__(self, alpha: Nowhere = 1.0):
        super().__init__()
"""


def test_user_classes_are_checked_like_own_ones(tmp_path, monkeypatch):
    (tmp_path / "userpackage.py").write_text(USER_MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    custom = ["method=custom", "method._target_=userpackage.Checked"]
    assert error_of(*custom, "method.alpha=2") is None
    assert error_of(*custom, "+method.alpha=2") is None
    assert error_of(*custom, "method.alpha=much") == "method.alpha=much: should be a valid number"
    assert error_of(*custom, "method.alhpa=2") == "method.alhpa: no such setting; did you mean method.alpha?"
    assert error_of("method=custom", "method._target_=userpackage.Unresolvable", "method.alpha=2") is None
    line = error_of("method=custom", "method._target_=userpackage.Wrong")
    assert line.startswith("method._target_=userpackage.Wrong: there is no such class or function (")
    monkeypatch.delitem(sys.modules, "userpackage")


def test_errors_of_targets_are_one_line():
    node = OmegaConf.create(
        {"_target_": "lightning.Trainer", "barebones": True, "callbacks": None, "profiler": "simple"}
    )
    with pytest.raises(UserError, match=r"lightning\.Trainer: "):
        instantiate(node)


def test_targets_that_build_something_else_are_refused():
    node = OmegaConf.create({"data": {"_target_": "os.getcwd"}}).data
    line = r"data\._target_=os\.getcwd: builds a str: name one that builds a NoisyViT or ImageDataModule"
    with pytest.raises(UserError, match=line):
        instantiate(node, (NoisyViT, ImageDataModule))


@pytest.mark.parametrize("argument", ["hydra.run.dir=", "hydra.sweep.dir="])
def test_empty_output_folder_is_refused(argument, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli_error(train, monkeypatch, capsys, argument) == f"error: {argument} is empty: type {argument}PATH"
    assert list(tmp_path.iterdir()) == []


def test_unknown_option_is_one_line(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    line = cli_error(train, monkeypatch, capsys, "seed=1", "--foo")
    assert line == "error: unrecognized arguments: --foo: type name=value, or see --help and --hydra-help"
    assert list(tmp_path.iterdir()) == []


def test_options_may_follow_settings():
    assert _sort_arguments(["a=1", "-m", "b=2", "--config-dir", "dir"]) == ["-m", "--config-dir", "dir", "a=1", "b=2"]


@pytest.mark.parametrize(
    ("argument", "line"),
    [
        ("hydra.job_logging.version=2", "hydra.job_logging.version=2: Unsupported version: 2"),
        (
            "hydra.searchpath=[nowhere]",
            "hydra.searchpath=[nowhere]: provider=hydra.searchpath in command-line, ",
        ),
        ("hydra.job.chdir=often", "hydra.job.chdir: Value 'often' is not a valid bool"),
        ("method=nothing", "method=nothing: no such choice; method is one of augmix, clean,"),
        ("attack=null", "attack=null: no such choice; attack is one of autoattack,"),
        (f"name={'x' * 5000}\n", "name=xxxx"),
    ],
)
def test_errors_of_hydra_are_one_line(monkeypatch, tmp_path, capsys, argument, line):
    monkeypatch.chdir(tmp_path)
    error = cli_error(train, monkeypatch, capsys, argument, "seed=x")
    assert error.startswith(f"error: {line}")
    assert len(error) < 1200


def raising(error):
    """A command whose task raises an error."""

    @entry_point("train")
    def task(cfg):
        raise error

    return SimpleNamespace(main=task, __name__="train")


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (UserError("seed=x: wrong"), "seed=x: wrong"),
        (OSError(28, "No space left on device"), "[Errno 28] No space left on device"),
        (MisconfigurationException("no such device\nmore"), "trainer: no such device"),
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried"),
            "memory ran out (CUDA out of memory. Tried): lower",
        ),
        (MemoryError(), "memory ran out (MemoryError): lower data.batch_size"),
    ],
)
def test_errors_of_libraries_are_one_line(monkeypatch, tmp_path, capsys, error, line):
    monkeypatch.chdir(tmp_path)
    assert cli_error(raising(error), monkeypatch, capsys).startswith(f"error: {line}")


@pytest.mark.parametrize("option", ["-m", "hydra.mode=MULTIRUN"])
def test_values_of_a_sweep_are_not_blamed(option):
    error = MissingConfigException("", missing_cfg_file="method/nothing")
    line = format_error(error, "train", [option, "seed=0,1", "method=nothing"])
    assert line.startswith("method=nothing: no such choice")


def test_bugs_are_one_line_and_their_traceback_is_logged(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    line = cli_error(raising(KeyError("x")), monkeypatch, capsys, f"hydra.run.dir={tmp_path}/run")
    assert line.startswith("error: internal error: KeyError: 'x'; the log file of this run and HYDRA_FULL_ERROR=1 show")
    assert "the log file" not in format_error(KeyError("x"), "train", []), "before Hydra has made one"
    (log,) = (tmp_path / "run").glob("*.log")
    assert "in task" in log.read_text()
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(KeyError):
        run(raising(KeyError("x")), monkeypatch)


def test_bug_in_a_run_does_not_stop_a_multirun(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="1"):
        run(raising(KeyError("x")), monkeypatch, "-m", "seed=0,1")
    assert capsys.readouterr().err.count("error: internal error: KeyError: 'x'") == 2


def test_full_error_setting_is_restored():
    assert "HYDRA_FULL_ERROR" not in os.environ
