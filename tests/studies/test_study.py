"""studies/study.py and study_report.py: reports of made-up results, and one short study from start to end."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from omegaconf import OmegaConf

from nsaug.cli import train
from tests.conftest import ROOT

STUDIES = ROOT / "studies"
T_2 = 4.302653
"""97.5 % quantile of Student's t with 2 degrees of freedom, from a printed table."""


@pytest.fixture
def study(monkeypatch):
    monkeypatch.syspath_prepend(str(STUDIES))
    import study

    return study


@pytest.fixture
def report(study, monkeypatch, tmp_path):
    import study_report

    monkeypatch.setattr(study_report, "RESULTS", tmp_path / "saved")
    return study_report


def write_results(folder, scores):
    """results.csv with these scores in points; PGD is 10 below the score, corruptions 10 above, clean images at 90."""
    rows = []
    for name, values in scores.items():
        for seed, value in enumerate(values):
            run = {"name": name, "seed": seed, "metric": "top1", "over": "images"}
            rows += [
                run | {"benchmark": "clean", "value": 0.9},
                run | {"benchmark": "pgd", "strength": 0.01, "value": value / 100 - 0.12},
                run | {"benchmark": "pgd", "strength": 0.02, "value": value / 100 - 0.08},
                run | {"benchmark": "fog", "strength": 1, "value": value / 100 + 0.15},
                run | {"benchmark": "snow", "strength": 1, "value": value / 100 + 0.05},
                run | {"benchmark": "score", "metric": "score", "value": value / 100},
                run | {"benchmark": "fog", "strength": 1, "metric": "nll", "value": 3.0},
            ]
    (folder / "results").mkdir(parents=True)
    pd.DataFrame(rows).to_csv(folder / "results" / "results.csv", index=False)


def write_radii(folder, radii):
    """results.csv of stage radius: three seeds with these radii + 0, 1, 2."""
    key = {"condition": "learned", "metric": "relative radius"}
    rows = [key | {"name": name, "seed": seed, "value": value + seed} for name, value in radii for seed in range(3)]
    (folder / "results").mkdir(parents=True)
    pd.DataFrame(rows).to_csv(folder / "results" / "results.csv", index=False)


def write_logs(folder, names):
    for name in names:
        for seed in (0, 1):
            (folder / name / f"seed{seed}").mkdir(parents=True)
            columns = ["train/influence", "train/influence_before", "train/noise_rms"]
            log = pd.DataFrame({"step": [9, 19], **{column: [0.1, 0.2] for column in columns}})
            log.to_csv(folder / name / f"seed{seed}" / "metrics.csv", index=False)


# Report


def test_differences_are_paired_by_seed(report, tmp_path):
    """Seeds differ by far more than methods do, so unpaired intervals would be ten times as wide."""
    folder = tmp_path / "digits" / "test"
    write_results(folder, {"clean": [40, 60, 50], "nullspace": [42, 61, 53], "pgd": [45, 65, 40]})
    text = report.write_report(folder)
    half_width = T_2 * 1.0 / 3**0.5  # differences 2, 1, 3
    interval = f"+2.0 ({2 - half_width:+.1f} to {2 + half_width:+.1f})"
    assert "Top-1 in %, 3 seeds" in text
    assert f"| nullspace | 90.0 | 42.0 | 62.0 | 52.0 | {interval} | +0.0 (+0.0 to +0.0) |" in text
    assert "| clean | 90.0 | 40.0 | 60.0 | 50.0 |  |  |" in text
    assert f"| better than plain finetuning | score | nullspace - clean | {interval} | no clear difference |" in text
    assert "| as robust as adversarial training | score | nullspace - pgd | +2.0" in text
    assert "random_noise" not in text, "claims about entries that were not run are left out"
    assert text == (folder / "summary.md").read_text()
    assert not (tmp_path / "saved").exists()


def test_clear_differences(report, tmp_path):
    folder = tmp_path / "digits" / "test"
    write_results(folder, {"clean": [40, 60, 50], "nullspace": [43, 63.1, 53.2], "pgd": [50, 70.3, 60.1]})
    text = report.write_report(folder)
    assert "nullspace - clean | +3.1 (+2.9 to +3.3) | higher |" in text
    assert "nullspace - pgd | -7.0 (-7.4 to -6.7) | lower |" in text


def test_table_holds_means_and_differences(report, tmp_path):
    write_results(tmp_path / "test", {"clean": [40, 60, 50], "nullspace": [42, 61, 53]})
    table = report.compare_runs(report.read_runs(tmp_path / "test"), "test").set_index(["entry", "metric"])
    row = table.loc["nullspace", "pgd"]  # 32, 51, 43: mean 42, variance (100 + 81 + 1) / 2
    half_width = T_2 * (91 / 3) ** 0.5
    assert row[["mean", "low", "high"]].tolist() == pytest.approx([42, 42 - half_width, 42 + half_width], abs=1e-4)
    half_width = T_2 / 3**0.5
    expected = [2, 2 - half_width, 2 + half_width]
    assert row[["difference", "difference_low", "difference_high"]].tolist() == pytest.approx(expected, abs=1e-4)
    assert (row["reference"], row["num_seeds"]) == ("clean", 3)


@pytest.mark.parametrize("stage", ["tune", "test", "curves", "radius"])
@pytest.mark.filterwarnings("ignore:An input array is constant")
def test_saved_table_gives_the_same_text(report, tmp_path, stage, monkeypatch, capsys):
    scores = {"clean": [40.04, 60, 50], "nullspace": [42.049, 61.3, 53], "eps_0.3": [45, 65, 40.123]}
    write_results(tmp_path / "digits" / "test", scores)
    folder = tmp_path / "digits" / stage
    if stage == "radius":
        write_radii(folder, [("clean", 3.0), ("nullspace", 1.0), ("eps_0.3", 2.0)])
    elif stage != "test":
        write_results(folder, scores)
    if stage == "curves":
        write_logs(folder, scores)
    text = report.write_report(folder, save=True)
    file = tmp_path / "saved" / f"digits_{stage}.csv"
    assert list(pd.read_csv(file)) == report.COLUMNS
    monkeypatch.setattr(sys, "argv", ["study_report.py", str(file)])
    report.main()
    assert capsys.readouterr().out == text + "\n"


def test_committed_tables_can_be_printed(report):
    for file in (STUDIES / "results").glob("*.csv"):
        assert report.to_markdown(report.read_table(file), file.stem.rpartition("_")[2]).startswith(
            ("Top-1", "Spearman")
        )


def test_report_needs_results(report, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["study_report.py", str(tmp_path)])
    with pytest.raises(SystemExit, match="error: .* is neither a finished stage"):
        report.main()


def test_curves_include_the_default(report, tmp_path):
    names = ["clean", "nullspace", "eps_0.001", "eps_1.5", "init_scale_9", "num_steps_30"]
    write_results(tmp_path / "curves", {name: [50 + place, 60 + place, 70 + place] for place, name in enumerate(names)})
    write_logs(tmp_path / "curves", names)
    text = report.write_report(tmp_path / "curves")
    default = report.default_settings()
    assert f"| ε | 0.001, {default.eps:g}, 1.5 | eps_1.5 - nullspace | +2.0 (+2.0 to +2.0) |" in text
    assert f"| K | {default.num_steps}, 30 | num_steps_30 - nullspace | +4.0 (+4.0 to +4.0) |" in text
    assert {file.name for file in (tmp_path / "curves").glob("*.png")} == {"curves.png", "training.png"}


def test_curves_without_values(report, tmp_path):
    write_results(tmp_path / "curves", {"clean": [50, 60], "nullspace": [51, 62]})
    write_logs(tmp_path / "curves", ["nullspace"])
    assert "highest" not in report.write_report(tmp_path / "curves")


@pytest.mark.filterwarnings("ignore:An input array is constant")
def test_radius_takes_runs_of_both_stages_from_the_first(report, tmp_path):
    """With the accuracy of `clean` in the second stage, the order would be perfect."""
    write_results(tmp_path / "test", {"clean": [40, 50, 60], "pgd": [50, 60, 70]})
    write_results(tmp_path / "curves", {"clean": [80, 90, 95], "eps_0.1": [45, 55, 65]})
    write_radii(tmp_path / "radius", [("clean", 3.0), ("eps_0.1", 1.0), ("pgd", 2.0)])
    text = report.write_report(tmp_path / "radius")
    assert "9 runs of 3 entries" in text
    assert "| -0.50 (-0.50 to -0.50) |" in text
    assert "| clean | 4.00 | 90.0 | 40.0 | 60.0 | 50.0 |" in text
    assert (tmp_path / "radius" / "radius.png").exists()


def test_rank_correlation_within_and_across_seeds(report):
    """Within a seed the order is perfect, across seeds reversed."""
    seeds = np.repeat(np.arange(6), 4)
    x = np.tile(np.arange(4.0), 6) - 10 * seeds
    runs = pd.DataFrame({"seed": seeds, "x": x, "y": np.tile([1.0, 2.0, 4.0, 8.0], 6) + 100 * seeds})
    over_runs, over_entries = report.rank_correlation(runs, "x", "y")
    assert over_entries.value == pytest.approx(1)
    assert over_runs.value < -0.8


def test_rank_correlation_interval_has_its_coverage(report):
    """95 % of the intervals of 100 simulated studies contain the coefficient, within 3.5 standard errors."""
    rng, intervals = np.random.default_rng(0), []
    for _ in range(100):
        seeds = np.repeat(np.arange(10), 8)
        shift = rng.normal(size=10)[seeds]
        x = rng.normal(size=80) + shift
        runs = pd.DataFrame({"seed": seeds, "x": x, "y": 0.5 * x + rng.normal(size=80) - 0.5 * shift})
        intervals.append(report.rank_correlation(runs, "x", "y")[0])
    truth = np.mean([interval.value for interval in intervals])
    assert 0.87 < np.mean([interval.low < truth < interval.high for interval in intervals]) < 1


# Composition and refusals


@pytest.mark.parametrize("data", ["digits", "cifar10"])
@pytest.mark.parametrize("stage", ["tune", "test", "curves"])
def test_all_entries_are_valid(study, stage, data):
    entries = study.stage_entries(stage, data)
    for folder, settings in study.Study(data, stage, entries, range(2), "val", "start").training_settings().items():
        config = study.compose_config(train, *settings, name=folder.name)
        assert (config.name, config.checkpoint) == (folder.name, "start")
        assert config.trainer.accelerator == {"digits": "cpu", "cifar10": "auto"}[data]


def test_settings_of_entries(study):
    """Names of tuning runs say what they are trained with; nullspace is the default and in every curve once."""
    default = study.default_settings()
    for name, words in study.TUNING_RUNS.items():
        if match := re.fullmatch("eps_(.*)_init_(.*)_steps_(.*)", name):
            values = [f"nullspace.{key}={value}" for key, value in zip(study.CURVES, match.groups(), strict=True)]
            assert words.split() == ["method=nullspace", *values]
    assert f"eps_{default.eps:g}_init_{default.init_scale:g}_steps_{default.num_steps}" in study.TUNING_RUNS
    assert len(set(study.NOISE_SETTINGS)) == 17
    curves = study.stage_entries("curves", "digits")
    assert len(curves) == 2 + sum(len(values) - 1 for values in study.CURVES.values())
    assert study.stage_entries("test", "cifar10")["pgd"] == ["method=pgd", "attack.eps=1/255"]


def test_settings_of_the_command_come_last(study, tmp_cwd):
    settings = ["trainer=gpu", "suite.max_images=7"]
    stage = study.Study("cifar10", "test", study.stage_entries("test", "cifar10"), range(2), "test", "start", settings)
    for words in stage.training_settings().values():
        assert study.compose_config(train, *words).trainer.accelerator == "gpu"
    assert stage.suite == ["suite=cifar10_study", "suite.max_images=7"]


def test_small_study_is_valid(study, tmp_cwd):
    entries = study.stage_entries("tune", "cifar10") | study.stage_entries("test", "cifar10")
    for name in ("clean", "pgd_3_steps_half", "clean_same_compute"):
        small = study.Study("cifar10", "test", {name: entries[name]}, range(2), "test", "start", study.SMALL)
        small.check_settings()


@pytest.fixture
def exit_line(study, monkeypatch, tmp_cwd):
    """Run study.py with arguments that it refuses, and return its message; no script may start."""

    def run(*arguments):
        monkeypatch.setattr(study.Study, "run_script", lambda *_: pytest.fail("a script was started"))
        monkeypatch.setattr(sys, "argv", ["study.py", *arguments])
        with pytest.raises(SystemExit) as stop:
            study.main()
        line = str(stop.value)
        assert "\n" not in line
        return line

    return run


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["radius"], "error: stage radius needs finished runs: run the stage test or curves first"),
        (["radius", "optim.lr=1"], "error: stage radius evaluates the runs of test and curves: only suite.* settings"),
        (["radius", "suite.epss=3"], "error: suite: suite.epss: no such setting"),
        (["test", "--entries", "nothing"], "error: --entries nothing: choose among clean, "),
        (["test", "--entries", "pgd"], "error: --entries has no clean, which the others are compared with: add it"),
        (["curves", "--entries", "clean"], "error: --entries has no nullspace, which"),
        (["test", "--small"], "error: --small applies to CIFAR-10: add --data cifar10, or remove it"),
        (["test", "--data", "cifar10"], "error: --checkpoint is missing: name a run of experiment=cifar10_pretrain"),
        (["test", "trainer.max_step=3"], "error: clean: trainer.max_step: no such setting"),
        (["test", "suite.max_image=3"], "error: suite: suite.max_image: no such setting"),
        (["test", "--seeds", "1"], "error: argument --seeds: 1 is too small: type 2 or more"),
        (["test", "--processes", "0"], "error: argument --processes: 0 is too small: type 1 or more"),
        (["test", "--foo"], "error: unrecognized arguments: --foo: see --help"),
    ],
)
def test_wrong_arguments_give_one_line(exit_line, arguments, line):
    assert exit_line(*arguments).startswith(line)


@pytest.fixture
def two_entries(study, tmp_cwd):
    """A study of two entries on digits; with `finished`, the runs of its first seed are there."""

    def make(checkpoint, *settings, finished=False):
        entries = {name: study.stage_entries("test", "digits")[name] for name in ("clean", "pgd")}
        stage = study.Study("digits", "test", entries, range(100, 102), "test", checkpoint, settings)
        if finished:
            for folder, words in stage.training_settings().items():
                run = folder / "seed100"
                (run / ".hydra").mkdir(parents=True)
                (run / study.WEIGHTS).touch()
                OmegaConf.save(study.compose_config(train, *words, "seed=100"), run / ".hydra" / "config.yaml")
        return stage

    return make


def test_finished_runs_with_other_settings_are_refused(study, two_entries, monkeypatch):
    two_entries(None, "optim.lr=0.1", finished=True).check_settings()
    two_entries(None, "optim.lr=0.1", "data.num_workers=0").check_settings()
    for checkpoint, settings, line in (
        (None, (), "test/clean/seed100 was trained with optim.lr=0.1, this command has 0.001: type the command"),
        ("other", ("optim.lr=0.1",), "trained with checkpoint=outputs/study/digits/pretrained/seed100, this command"),
    ):
        with pytest.raises(SystemExit, match=re.escape(line)):
            two_entries(checkpoint, *settings).check_settings()
    monkeypatch.setitem(study.METHODS, "pgd", "method=pgd attack.eps=1/255")
    with pytest.raises(SystemExit, match=r"test/pgd/seed100 was trained with .*eps=16/255, this command has 1/255"):
        two_entries(None, "optim.lr=0.1").check_settings()


def test_only_missing_seeds_are_trained(study, two_entries, monkeypatch):
    commands = []
    stage = two_entries(None, finished=True)
    monkeypatch.setattr(study.Study, "run_script", lambda _, script, *settings: commands.append((script, settings)))
    stage.finetune()
    training = [settings for script, settings in commands if script == "train.py"]
    assert len(training) == 3
    assert {settings[1] for settings in training} == {"seed=101"}
    outputs = [settings[-1] for script, settings in commands if script == "evaluate.py"]
    assert outputs == [f"hydra.run.dir=outputs/study/digits/test/{name}" for name in ("part100", "results")]


def test_radius_evaluates_finished_runs_once(study, monkeypatch, tmp_cwd):
    root, evaluated = Path("outputs/study/digits"), []
    runs = ["test/clean/seed100", "test/pgd/seed100", "curves/clean/seed100", "curves/eps_1/seed100"]
    for run in [*runs, "test/clean/seed101", "test/clean/seed7"]:
        (root / run).mkdir(parents=True)
        (root / run / "config.json").touch()
        if run != "test/clean/seed101":  # interrupted
            (root / run / study.WEIGHTS).touch()
    for stage in ("test", "curves"):
        write_results(root / stage, {})
    monkeypatch.setattr(study.Study, "evaluate_runs", lambda _, folders, output: evaluated.append((output, folders)))
    study.Study("digits", "radius", {}, range(100, 102), "test", processes=2).measure_radius()
    assert dict(evaluated)["results"] == [root / run for run in (runs[0], runs[1], runs[3])]
    assert sorted(output for output, _ in evaluated) == ["part0", "part1", "results"]


@pytest.mark.slow
def test_study_from_start_to_end(tmp_path):
    def study(*arguments):
        command = [sys.executable, str(STUDIES / "study.py"), *arguments]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    arguments = ["test", "--seeds", "2", "--entries", "clean,nullspace"]
    first = study(*arguments, "trainer.max_steps=3")
    assert first.returncode == 0, first.stderr
    assert "| better than plain finetuning | score | nullspace - clean |" in first.stdout
    assert first.stdout.count("trained ") == 6, "in both processes, the start and two entries"
    second = study(*arguments, "trainer.max_steps=3")
    assert "trained" not in second.stdout
    assert second.stdout == first.stdout[first.stdout.index("Top-1") :]
    radius = study("radius")
    assert "Spearman's rank correlation" in radius.stdout, radius.stderr
    other = study(*arguments, "trainer.max_steps=4")
    assert other.returncode == 1
    assert "was trained with trainer.max_steps=3, this command has 4" in other.stderr
    failed = study(*arguments, "--data", "cifar10", "--checkpoint", "start", "data.root=nowhere")
    assert failed.returncode == 1
    assert failed.stderr.startswith("error: python train.py failed: data.root=nowhere")
