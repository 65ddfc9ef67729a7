import re

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from nsaug.cli import train
from nsaug.cli.sweeps import name_sweep_runs, to_filename
from tests.commands import SHORT, run


def test_folders_of_a_sweep_name_what_varies(monkeypatch, tmp_path, tmp_cwd):
    run(
        train, monkeypatch, "-m", *SHORT, "method=clean,nullspace", "attack.eps=4/255,1e-3", "optim.lr=1e-3",
        f"hydra.sweep.dir={tmp_path}/sweep",
    )  # fmt: skip
    names = sorted(path.name for path in (tmp_path / "sweep").iterdir() if path.is_dir())
    assert names == [
        "0_method-clean_eps-4-255",
        "1_method-clean_eps-0.001",
        "2_method-nullspace_eps-4-255",
        "3_method-nullspace_eps-0.001",
    ]
    assert (tmp_path / "sweep" / names[3] / "model.safetensors").is_file()
    run(train, monkeypatch, *SHORT, f"checkpoint={tmp_path}/sweep/{names[0]}", f"hydra.run.dir={tmp_path}/next")


def folder_name(settings, values, choices):
    _, override = name_sweep_runs(["-m", *settings])
    template = OverridesParser.create().parse_override(override).value()
    OmegaConf.clear_resolver("hydra")
    OmegaConf.register_new_resolver("hydra", lambda key: {"job.num": 7, **choices}[key])
    try:
        return str(OmegaConf.create({**values, "name": str(template)}).name)
    finally:
        OmegaConf.clear_resolver("hydra")


@pytest.fixture
def hydra_resolver():
    """Hydra registers it once per process."""
    from hydra.core.hydra_config import HydraConfig

    yield
    OmegaConf.register_new_resolver("hydra", lambda path: OmegaConf.select(HydraConfig.instance().cfg.hydra, path))


@pytest.mark.usefixtures("hydra_resolver")
@pytest.mark.parametrize(
    ("settings", "values", "choices", "expected"),
    [
        (["seed=0,1"], {"seed": 1}, {}, "7_seed-1"),
        (["seed=1"], {"seed": 1}, {}, "7"),
        (["+optim.betas=[0.9,0.99],[0.8,0.9]"], {"optim": {"betas": [0.8, 0.9]}}, {}, "7_betas-0.8-0.9"),
        (["attack.eps=1,2", "nullspace.eps=1,2"], {"attack": {"eps": 1}, "nullspace": {"eps": 2}}, {},
         "7_attack.eps-1_nullspace.eps-2"),
        (["seed=range(3)", "method=glob(*)"], {"seed": 2}, {"runtime.choices.method": "pgd"}, "7_seed-2_method-pgd"),
        (["checkpoint=a,b"], {"checkpoint": f"outputs/{'x' * 100}=1,/seed 0"}, {}, f"7_checkpoint-{'x' * 31}-1-seed-0"),
    ],
)  # fmt: skip
def test_names_need_no_quotes(settings, values, choices, expected):
    name = folder_name(settings, values, choices)
    assert name == expected
    assert re.fullmatch(r"[\w.+-]+", name)
    OverridesParser.create().parse_override(f"checkpoint=outputs/{name}")


def test_other_characters_become_dashes():
    assert to_filename("Ünï [b] $x 'y' \"z\" \n/../etc", 40) == "n-b-x-y-z-..-etc"
    assert to_filename("4/255", 40) == "4-255"
    assert to_filename("outputs/train/run 7", 5) == "run-7"
    assert [to_filename(value, 40) for value in (None, True, -1e-05, [1, 2])] == ["null", "true", "1e-05", "1-2"]


@pytest.mark.usefixtures("hydra_resolver")
def test_seventeen_settings_fit_a_folder_name():
    values = {f"setting_{number}": "long value " * 10 for number in range(17)}
    assert len(folder_name([f"{key}=a,b" for key in values], values, {})) <= 160


def test_a_given_name_is_kept():
    (shared,) = name_sweep_runs(["-m", "seed=1,2", "hydra.sweep.subdir=${seed}", "model=micro", "+optim.betas=[0,0.9]"])
    assert shared == 'hydra.job.config.override_dirname.exclude_keys=["model", "optim.betas"]'
    assert name_sweep_runs(["seed=1"]) == [], "a single run"
    assert name_sweep_runs(["-m", f"{'x' * 300}=1,2"]) != [], "no folder can have this name"
    assert name_sweep_runs(["seed=1,2", "hydra.mode=MULTIRUN"]) == name_sweep_runs(["-m", "seed=1,2"]) != []
    assert name_sweep_runs(["-m", "seed=[1"]) == [], "reported by Hydra"
