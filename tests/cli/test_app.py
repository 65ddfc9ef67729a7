"""Every way to get a setting wrong, in-process: one line, before anything starts."""

import os

import pytest
from hydra import compose, initialize_config_dir

from nsaug.cli import evaluate, train
from nsaug.cli.app import format_error, instantiate, validate_value
from nsaug.utils.errors import UserError
from tests.conftest import ROOT


def refused(*overrides, script=train):
    """The line that a command with these overrides prints."""
    try:
        with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            cfg = compose(script.__name__.split(".")[-1], list(overrides))
        script.check_settings(cfg)
    except Exception as error:
        line = format_error(error)
        assert "\n" not in line
        return line
    return None


def test_the_defaults_are_accepted():
    assert refused() is None
    assert refused(script=evaluate) is None


@pytest.mark.parametrize("group", ["data", "model", "method", "nullspace", "attack", "optim", "trainer", "logger"])
def test_every_choice_of_every_group_is_accepted(group):
    needed = {"timm": "model.name=deit_tiny_patch16_224", "folder": "data.root=somewhere"}
    for file in sorted((ROOT / "conf" / group).glob("*.yaml")):
        if file.stem not in ("checkpoint", "custom"):  # evaluate.py's; incomplete without a target
            extra = [needed[file.stem]] if file.stem in needed else []
            assert refused(f"{group}={file.stem}", *extra) is None


def test_every_experiment_and_suite_is_accepted():
    for file in sorted((ROOT / "conf" / "experiment").glob("*.yaml")):
        assert refused(f"experiment={file.stem}", *(["data.root=somewhere"] if file.stem == "finetune" else [])) is None
    for file in sorted((ROOT / "conf" / "suite").glob("*.yaml")):
        assert refused(f"suite={file.stem}", script=evaluate) is None


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("nullspace.epss=0.1", "nullspace.epss: no such setting; did you mean nullspace.eps?"),
        ("+nullspace.epss=0.1", "nullspace.epss: no such setting; did you mean nullspace.eps?"),
        ("+sead=1", "sead: no such setting; did you mean seed?"),
        ("sead=1", "sead: no such setting; did you mean seed?"),
        ("+trainer.max_epoch=1", "trainer.max_epoch: no such setting; did you mean trainer.max_epochs?"),
        ("+data.foo=1", "data.foo: no such setting; choose among auto_augment, batch_size, crop, hflip"),
        ("+method.synthesis.foo=1", "method.synthesis={'foo': 1}: Unexpected keyword argument"),
        ("+optim.momentum=0.9", "optim.momentum: no such setting"),
        ("nullspace.eps=5", "nullspace.eps=5: should be less than 2"),
        ("nullspace.eps=0", "nullspace.eps=0: should be greater than 0"),
        ("nullspace.eps=small", "nullspace.eps=small: should be a valid number"),
        ("nullspace.eps=null", "nullspace.eps=null: should be a valid number"),
        ("nullspace.steps=2.5", "nullspace.steps=2.5: should be a valid integer"),
        ("nullspace.scope=epoc", "nullspace.scope=epoc: should be 'sample' or 'batch'"),
        ("attack.eps=4/0", "attack.eps=4/0: '4/0' is neither a number nor a fraction such as 4/255"),
        ("attack.eps=8", "attack.eps=8: should be less than or equal to 1"),
        ("data.batch_size=0", "data.batch_size=0: should be greater than or equal to 1"),
        ("data.batch_size=[1,2]", "data.batch_size=[1, 2]: should be a valid integer"),
        ("data.crop=square", "data.crop=square: should be 'resized', 'padded' or 'none'"),
        ("optim.lr=-1", "optim.lr=-1: should be greater than 0"),
        ("optim.warmup=2", "optim.warmup=2: should be less than or equal to 1"),
        ("method.unreached=skip", "method.unreached=skip: should be 'keep' or 'drop'"),
        ("model.img_size=big", "model.img_size=big: should be a valid integer"),
        ("trainer.max_epochs=many", "trainer.max_epochs=many: should be a valid integer"),
        ("trainer.precision=float7", "trainer.precision=float7: should be"),
        ("logger.wandb=maybe", "logger.wandb=maybe: should be 'auto', 'online', 'offline' or 'off'"),
        ("seed=-1", "seed=-1: should be greater than or equal to 0"),
        ("finetune=some", "finetune=some: should be all, head, or last_N with N from 1 on, such as last_4"),
        ("finetune=last_0", "finetune=last_0: should be all, head, or last_N"),
        ("ema=1", "ema=1: should be less than 1"),
        ("optim.layer_decay=0", "optim.layer_decay=0: should be greater than 0"),
        ("mixing.mixup=-1", "mixing.mixup=-1: should be greater than or equal to 0"),
        ("+mixing.mixupp=1", "mixing.mixupp: no such setting; did you mean mixing.mixup?"),
        ("keep=first", "keep=first: should be 'last' or 'best'"),
        (
            "model=vit_xxl",
            "model=vit_xxl: no such choice; model is one of checkpoint, custom, deit_s, micro",
        ),
        ("method=nullspce", "method=nullspce: no such choice; method is one of clean, clean_same_compute,"),
        ("modle=vit_s", "modle: no such setting; did you mean model?"),
        ("model=timm", "model.name is not set: type model.name=..."),
        ("data=checkpoint", "data=checkpoint is for evaluate.py"),
        ("data=folder", "data.root is not set: type data.root=..."),
        ("nullspace.eps=[0.1", "nullspace.eps=[0.1: cannot be read as name=value"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(override, line):
    said = refused(override)
    assert said is not None, "accepted"
    assert said.startswith(line)


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("suite.eps=[4/0]", "suite.benchmarks.fgsm.strengths=['4/0']: '4/0' is neither a number nor a fraction"),
        ("+suite.benchmarks.pgd.attack.step=1", "suite.benchmarks.pgd.attack.step: no such setting"),
        ("device=gpu7", "device=gpu7 cannot be used"),
        ("batch_size=0", "batch_size=0: should be"),
        ("suite.max_images=0", "suite.max_images=0: should be"),
        (
            "+suite.max_image=3",
            "suite.max_image: no such setting; choose among benchmarks, corruption_error, eps, eps_autoattack,",
        ),
        ("checkpoint=3", "checkpoint=3: should be"),
        (
            "suite.benchmarks.pgd._target_=nsaug.Nothing",
            "suite.benchmarks.pgd._target_=nsaug.Nothing: there is no such",
        ),
        (
            "suite=fast",
            "suite=fast: no such choice; suite is one of attacks, cifar10, cifar10_c, cifar10_study,",
        ),
    ],
)
def test_evaluation_too(override, line):
    said = refused(override, script=evaluate)
    assert said is not None, "accepted"
    assert said.startswith(line)


@pytest.mark.parametrize("model", ["vit_ti", "vit_s", "vit_b", "vit_l", "deit_s"])
def test_models_that_live_on_imagenet_bring_it_along(model):
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose("train", [f"model={model}"])
        assert cfg.data["_target_"] == "nsaug.data.ImageNet"
        assert cfg.optim.lr == 1e-4
        assert cfg.trainer.max_epochs == 10
        assert compose("train", [f"model={model}", "data=cifar10"]).data["_target_"] == "nsaug.data.CIFAR10"
        assert compose("evaluate", [f"model={model}"]).data["_target_"] == "nsaug.data.ImageNet"


def test_several_wrong_settings_together():
    assert refused("mixing.mixup=0.8", "data.batch_size=7") == (
        "mixup and cutmix pair images: data.batch_size=7 should be even"
    )
    assert refused("method=pgd", "method.attack.eps=2").startswith("method.attack.eps=2: should be less than or equal")
    assert refused("method=trades", "+method.attack.norm=2").startswith("method.attack.norm: no such setting")
    assert refused("method=random_noise", "method.match=size").startswith("method.match=size: should be 'norm', ")


EXPERIMENTS = sorted(path.stem for path in (ROOT / "conf" / "experiment").glob("*.yaml"))


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_experiments_compose(experiment):
    root = ["data.root=somewhere"] if experiment == "finetune" else []
    assert refused(f"experiment={experiment}", *root) is None
    assert refused(f"experiment={experiment}", *root, "method=trades", "nullspace=per_batch", "trainer=ddp") is None


@pytest.mark.parametrize("method", ["pgd", "fgsm_rs", "trades"])
def test_one_radius_for_training_and_validation(method):
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose("train", [f"method={method}", "attack.eps=8/255"])
        assert cfg.method.attack.eps == "8/255"
        assert compose("train", [f"method={method}", "method.attack.eps=2/255"]).method.attack.eps == "2/255"


def test_missing_data_is_said_before_weights_are_sought(monkeypatch):
    monkeypatch.setattr("nsaug.models.factory._require_hub_weights", lambda *_: pytest.fail("weights sought"))
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose("train", ["model=vit_s", "nullspace.eps=0.05", "data.root=/nowhere"])
    with pytest.raises(UserError, match="data.root=/nowhere does not exist"):
        instantiate(cfg.data).setup("fit")


def test_values_are_held_against_their_type():
    validate_value("x", "4/255", float | str)
    with pytest.raises(UserError, match="x=null: "):
        validate_value("x", None, int)


def test_full_errors_are_not_left_switched_on():
    assert "HYDRA_FULL_ERROR" not in os.environ
