from pathlib import Path

import numpy as np
import pytest
from hydra import initialize_config_dir, version
from hydra._internal import hydra as hydra_app
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from nsaug.cli.compose import OpenNodesLoader, compose, open_nodes, to_overrides
from nsaug.utils.errors import UserError


def test_an_initialized_hydra_stays_as_it_is(tmp_path):
    (tmp_path / "config.yaml").write_text("answer: 42\n")
    with initialize_config_dir(str(tmp_path), version_base="1.2"):
        before = GlobalHydra.instance().hydra, version.getbase()
        assert compose("train", ["nullspace.eps=0.05"]).nullspace.eps == 0.05
        assert (GlobalHydra.instance().hydra, version.getbase()) == before
        assert before[0].compose_config("config", [], run_mode=None).answer == 42


def test_composing_needs_no_initialization():
    assert not GlobalHydra.instance().is_initialized()
    before = version.getbase()
    assert compose("train", []) == compose("train", [])
    assert "hydra" not in compose("evaluate", ["suite=clean"])
    assert not GlobalHydra.instance().is_initialized()
    assert version.getbase() is before


def test_nodes_with_a_target_take_settings_that_the_yaml_does_not_list():
    assert compose("train", ["trainer.limit_val_batches=3"]).trainer.limit_val_batches == 3
    with pytest.raises(Exception, match="Could not override 'suite.pgd'"):
        compose("evaluate", ["suite.pgd=3"])


def test_hydra_has_its_own_loader_outside_of_commands():
    assert hydra_app.ConfigLoaderImpl is ConfigLoaderImpl
    with open_nodes():
        assert hydra_app.ConfigLoaderImpl is OpenNodesLoader
    assert hydra_app.ConfigLoaderImpl is ConfigLoaderImpl


VALUES = [
    *(3, -1.5, 1e-7, float("inf"), True, False, None, "text", "true", "null", "12", "1e-3", "4/255", "a,b", "a b", ""),
    *("quote \" and '", "back\\slash\\", "${x}", "ε", [1, "2", [None]], {"a": {"b": [0.5, "x y"]}, "_c_": "true"}),
]


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_values_are_read_as_they_were_given(value):
    cfg = compose("train", to_overrides({"+trainer.value": value}))
    assert OmegaConf.to_container(cfg, resolve=False)["trainer"]["value"] == value


def test_numpy_numbers_and_tuples():
    settings = {"optim.lr": np.float32(0.5), "seed": np.int64(3), "optim.betas": (np.float64(0.5), 0.9)}
    assert to_overrides(settings) == ["optim.lr=0.5", "seed=3", "optim.betas=[0.5,0.9]"]
    settings = {"model.compile": np.bool_(True), "cache": Path("outputs") / "my cache"}
    assert to_overrides(settings) == ["model.compile=true", 'cache="outputs/my cache"']


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"optim lr": 1}, "settings: 'optim lr' is not the name of a setting, such as \"nullspace.eps\""),
        ({"suite.attacks": {"my pgd": None}}, "settings: 'my pgd' is not the name of a setting"),
        ({3: 1}, "settings: 3 is not the name of a setting"),
        ({"optim.lr": object()}, "settings: optim.lr is a object: give text, a number, True, False, None, or a list"),
        ({"optim.betas": [0.9, {1}]}, "settings: optim.betas is a set: give"),
    ],
)
def test_names_and_values_are_checked(settings, message):
    with pytest.raises(UserError) as error:
        to_overrides(settings)
    assert str(error.value).startswith(message)
