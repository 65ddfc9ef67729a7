import re

import pytest
import wandb
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf
from wandb import wandb_agent

from nsaug.cli import train
from nsaug.cli.sweeps import name_sweep_runs, to_filename
from nsaug.training.loggers import LoggerConfig
from tests.commands import SHORT, cli_error, metrics, run
from tests.conftest import ROOT
from tests.wandb_records import read_run


@pytest.fixture
def titles(monkeypatch):
    """Names of the runs that were started, as W&B shows them."""
    names, loggers = [], LoggerConfig.loggers

    def record(self, folder, name, *args):
        names.append(name)
        return loggers(self, folder, name, *args)

    monkeypatch.setattr(LoggerConfig, "loggers", record)
    return names


def test_names_and_folders_tell_what_varies(monkeypatch, tmp_path, tmp_cwd, titles):
    run(
        train, monkeypatch, "-m", *SHORT, "method=clean,nullspace", "attack.eps=4/255,1e-3", "optim.lr=1e-3",
        f"hydra.sweep.dir={tmp_path}/sweep",
    )  # fmt: skip
    assert titles == [
        "clean-eps4-255-s0", "clean-eps0.001-s0", "nullspace-nullspace.eps0.3-attack.eps4-255-s0",
        "nullspace-nullspace.eps0.3-attack.eps0.001-s0",
    ]  # fmt: skip
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


def test_a_single_run_is_named_after_its_method_and_noise(monkeypatch, tmp_path, titles):
    run(train, monkeypatch, *SHORT, "nullspace.init_scale=0.2", "seed=3", f"hydra.run.dir={tmp_path}")
    assert titles == ["nullspace-eps0.3-init_scale0.2-s3"]


SEARCHED = {"nullspace.eps", "nullspace.init_scale"}


def test_optuna_searches_two_settings(monkeypatch, tmp_path, titles):
    optuna = pytest.importorskip("optuna", reason="needs nsaug[optuna]")
    search = ["hydra/sweeper=nullspace", "hydra.sweeper.n_trials=2", f"hydra.sweep.dir={tmp_path}"]
    storage = f"sqlite:///{tmp_path}/search.db"
    run(train, monkeypatch, "-m", *SHORT, *search, f"hydra.sweeper.storage={storage}", "hydra.sweeper.study_name=noise")
    result = OmegaConf.load(tmp_path / "optimization_results.yaml")
    assert set(result.best_params) == SEARCHED
    values = [float(metrics(tmp_path / str(trial))[-1]["val/adv_top1"]) for trial in range(2)]
    assert result.best_value == pytest.approx(max(values))
    best = values.index(max(values))
    used = OmegaConf.load(tmp_path / str(best) / ".hydra" / "config.yaml").nullspace
    assert used.eps == result.best_params["nullspace.eps"]
    assert re.fullmatch(r"nullspace-eps[0-9.]+-init_scale[0-9.]+-s0", titles[best])
    assert len(set(titles)) == 2
    stored = optuna.load_study(study_name="noise", storage=storage)
    assert [trial.value for trial in stored.trials] == pytest.approx(values)


def test_a_search_without_results_is_one_line(monkeypatch, tmp_path, capsys):
    pytest.importorskip("optuna", reason="needs nsaug[optuna]")
    search = ["hydra/sweeper=nullspace", "hydra.sweeper.n_trials=1", f"hydra.sweep.dir={tmp_path}"]
    with pytest.raises(SystemExit) as stop:
        run(train, monkeypatch, "-m", *SHORT, *search, "nullspace.num_steps=-1")
    assert stop.value.code == 1
    first, last = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert first.startswith("error: nullspace.num_steps=-1")
    assert last == "error: the search has no result: all of its runs failed, or had no validation images"


@pytest.fixture
def agent(monkeypatch, tmp_cwd):
    """W&B's agent with the configuration of the sweep; a stand-in starts its commands and records them."""
    sweep = OmegaConf.to_container(OmegaConf.load(ROOT / "scripts" / "wandb_sweep.yaml"))
    commands = []

    class Process:
        def __init__(self, command, env, forward_signals):
            commands.append(command)

    wandb.teardown()  # it caches the environment of its first use
    for name in ("DIR", "RUN_ID", "SWEEP_PARAM_PATH"):  # the agent sets them
        monkeypatch.setenv(f"WANDB_{name}", "")
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep1")
    monkeypatch.setattr(wandb_agent, "AgentProcess", Process)
    agent = wandb_agent.Agent(None, None, sweep_id="sweep1")
    agent._sweep_command = sweep["command"]

    def start(run_id, **values):
        assert set(values) == set(sweep["parameters"])
        args = {name: {"value": value} for name, value in values.items()}
        agent._command_run({"run_id": run_id, "program": sweep["program"], "args": args})
        return commands[-1]

    yield start
    wandb.teardown()


def test_agents_of_wandb_search_two_settings(monkeypatch, tmp_path, agent):
    for trial, (eps, init_scale) in enumerate(((0.0123456, 0.5), (1e-05, 0.04))):
        python, program, *settings = agent(
            f"trial{trial}", **{"nullspace.eps": eps, "nullspace.init_scale": init_scale}
        )
        assert (python, program) == ("python", "train.py")
        folder = tmp_path / str(trial)
        own = ["logger=wandb", "logger.wandb=offline", "trainer.max_epochs=1", f"hydra.run.dir={folder}"]
        run(train, monkeypatch, *settings, *SHORT, *own)
        record = read_run(folder)
        assert record.id == f"trial{trial}"
        assert record.name == f"nullspace-eps{eps:.4g}-init_scale{init_scale}-s0"
        assert (record.config["nullspace"]["eps"], record.config["nullspace"]["init_scale"]) == (eps, init_scale)
        assert "val/adv_top1" in record.summary, "what the sweep maximizes"


def test_both_searches_are_the_same():
    sweep = OmegaConf.load(ROOT / "scripts" / "wandb_sweep.yaml")
    assert (sweep.metric.name, sweep.metric.goal) == ("val/adv_top1", "maximize")
    optuna = OmegaConf.load(ROOT / "conf" / "hydra" / "sweeper" / "nullspace.yaml")
    assert (optuna.direction, optuna.n_trials) == ("maximize", sweep.run_cap)
    assert set(optuna.params) == set(sweep.parameters) == SEARCHED
    for name, values in sweep.parameters.items():
        assert values.distribution == "log_uniform_values"
        assert optuna.params[name] == f"tag(log, interval({values.min}, {values.max}))"


def test_missing_optuna_is_one_line(monkeypatch, tmp_path, capsys):
    load = ConfigLoaderImpl.load_configuration

    def without_plugin(self, *args, **kwargs):
        source = ConfigStore.instance().repo["hydra"]["sweeper"]
        with monkeypatch.context() as patch:
            if "optuna.yaml" in source:
                patch.delitem(source, "optuna.yaml")
            return load(self, *args, **kwargs)

    monkeypatch.setattr(ConfigLoaderImpl, "load_configuration", without_plugin)
    line = cli_error(train, monkeypatch, capsys, "-m", "hydra/sweeper=nullspace", f"hydra.sweep.dir={tmp_path}")
    assert line == "error: this sweeper needs another package: pip install 'nsaug[optuna]'"
