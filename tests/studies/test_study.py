"""studies/study.py and study_report.py: reports of made-up results, and one short study from start to end."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt
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


@pytest.fixture
def entries(study):
    import entries

    return entries


def write_results(folder, scores, clean=None):
    """results.csv with these scores in points; PGD is 10 below the score, corruptions 10 above, clean images at 90."""
    rows = []
    for name, values in scores.items():
        for seed, value in enumerate(values):
            run = {"checkpoint": f"{folder}/{name}/seed{seed}/model.safetensors", "name": name, "seed": seed}
            top1 = run | {"metric": "top1", "over": "images", "condition": "attacked"}
            rows += [
                top1 | {"benchmark": "clean", "value": (clean or {}).get(name, 90) / 100, "condition": "clean"},
                top1 | {"benchmark": "pgd", "strength": 0.01, "value": 0.0},
                top1 | {"benchmark": "pgd", "metric": "expected_robustness", "value": value / 100 - 0.1},
                top1 | {"benchmark": "fog", "strength": 1, "value": value / 100 + 0.15, "condition": "corrupted"},
                top1 | {"benchmark": "snow", "strength": 1, "value": value / 100 + 0.05, "condition": "corrupted"},
                top1 | {"benchmark": "fog", "strength": 1, "metric": "nll", "value": 3.0, "condition": "corrupted"},
                top1 | {"benchmark": "clean", "metric": "ece", "value": 0.02, "condition": "clean"},
            ]
    (folder / "results").mkdir(parents=True)
    pd.DataFrame(rows).to_csv(folder / "results" / "results.csv", index=False)


def write_radii(folder, radii):
    """results.csv of stage radius: three seeds with these radii + 0, 1, 2."""
    key = {"condition": "learned", "metric": "relative radius"}
    rows = [key | {"name": name, "seed": seed, "value": value + seed} for name, value in radii for seed in range(3)]
    (folder / "results").mkdir(parents=True)
    pd.DataFrame(rows).to_csv(folder / "results" / "results.csv", index=False)


# Report


def test_differences_are_paired_by_seed(report, tmp_path):
    """Seeds differ by far more than methods do, so unpaired intervals would be ten times as wide."""
    folder = tmp_path / "digits" / "test"
    write_results(folder, {"clean": [40, 60, 50], "nullspace": [42, 61, 53], "pgd_3_steps": [45, 65, 40]})
    text = report.write_report(folder)
    half_width = T_2 * 1.0 / 3**0.5  # differences 2, 1, 3
    interval = f"+2.0 ({2 - half_width:+.1f} to {2 + half_width:+.1f})"
    assert "Top-1 in %, 3 seeds" in text
    assert f"| nullspace | 90.0 | 42.0 | 62.0 | 52.0 | 2.0 | {interval} | +0.0 (+0.0 to +0.0) |" in text
    assert "| clean | 90.0 | 40.0 | 60.0 | 50.0 | 2.0 |  |  |" in text
    assert f"| nullspace - clean | +0.0 (+0.0 to +0.0) | {interval} | {interval} | {interval} |" in text
    assert "| nullspace - pgd_3_steps | +0.0 (+0.0 to +0.0) | +2.0" in text
    assert text == (folder / "summary.md").read_text()
    assert not (tmp_path / "saved").exists()


def test_clear_differences_are_bold(report, tmp_path):
    folder = tmp_path / "digits" / "test"
    write_results(folder, {"clean": [40, 60, 50], "nullspace": [43, 63.1, 53.2], "pgd_3_steps": [50, 70.3, 60.1]})
    text = report.write_report(folder)
    assert "nullspace - clean | +0.0 (+0.0 to +0.0) | **+3.1 (+2.9 to +3.3)** |" in text
    assert "nullspace - pgd_3_steps | +0.0 (+0.0 to +0.0) | **-7.0 (-7.4 to -6.7)** |" in text


def test_table_holds_means_and_differences(report, tmp_path):
    write_results(tmp_path / "test", {"clean": [40, 60, 50], "nullspace": [42, 61, 53]})
    table = report.compare_runs(report.read_runs(tmp_path / "test"), "test")
    row = table[table["reference"] == "clean"].set_index(["entry", "metric"]).loc["nullspace", "robustness"]
    half_width = T_2 * (91 / 3) ** 0.5  # 32, 51, 43: mean 42, variance (100 + 81 + 1) / 2
    assert row[["mean", "low", "high"]].tolist() == pytest.approx([42, 42 - half_width, 42 + half_width], abs=1e-4)
    half_width = T_2 / 3**0.5
    expected = [2, 2 - half_width, 2 + half_width]
    assert row[["difference", "difference_low", "difference_high"]].tolist() == pytest.approx(expected, abs=1e-4)
    assert row["num_seeds"] == 3


def test_one_radius_and_one_seed(report, tmp_path):
    """Without several radii there is no expected robustness; without several seeds there are no intervals."""
    write_results(tmp_path / "digits" / "tune", {"clean": [40], "nullspace_0.3": [42]})
    rows = pd.read_csv(tmp_path / "digits" / "tune" / "results" / "results.csv")
    rows[rows["metric"] != "expected_robustness"].to_csv(
        tmp_path / "digits" / "tune" / "results" / "results.csv", index=False
    )
    text = report.write_report(tmp_path / "digits" / "tune")
    assert "Top-1 in %, 1 seed; differences in points." in text
    assert "| nullspace_0.3 | 90.0 | 0.0 | 52.0 | 26.0 | 2.0 | +1.0 | +0.0 |" in text


def test_influence_and_cost_are_those_of_the_runs(report, tmp_path):
    folder = tmp_path / "test"
    write_results(folder, {"clean": [40], "nullspace": [42]})
    for name in ("clean", "nullspace"):
        (folder / name / "seed0" / ".hydra").mkdir(parents=True)
    log = pd.DataFrame({"step": [9, 19, 20], "train/influence": [0.1, 0.3, np.nan]})
    log.to_csv(folder / "nullspace" / "seed0" / "metrics.csv", index=False)
    config = {"method": {"_target_": "nsaug.methods.NoiseAugmentation", "noise": "${nullspace}"}}
    config["nullspace"] = {"_target_": "nsaug.nullspace.NullspaceNoise", "num_steps": 1}
    OmegaConf.save(config, folder / "nullspace" / "seed0" / ".hydra" / "config.yaml")
    runs = report.read_runs(folder)
    assert runs.loc[("nullspace", 0), "influence"] == pytest.approx(0.2)
    assert runs.loc[("nullspace", 0), "cost"] == pytest.approx(8 / 3)
    assert runs.loc[("clean", 0), ["influence", "cost"]].isna().all()


@pytest.mark.parametrize("stage", ["tune", "variants", "test", "radius"])
@pytest.mark.filterwarnings("ignore:An input array is constant")
def test_saved_table_gives_the_same_text(report, tmp_path, stage, monkeypatch, capsys):
    scores = {"clean": [40.04, 60, 50], "nullspace": [42.049, 61.3, 53], "pgd_3_steps_8": [45, 65, 40.123]}
    write_results(tmp_path / "digits" / "test", scores)
    folder = tmp_path / "digits" / stage
    if stage == "radius":
        write_radii(folder, [("clean", 3.0), ("nullspace", 1.0), ("pgd_3_steps_8", 2.0)])
    elif stage != "test":
        write_results(folder, scores)
    text = report.write_report(folder, save=True)
    file = tmp_path / "saved" / f"digits_{stage}.csv"
    assert list(pd.read_csv(file)) == report.COLUMNS
    monkeypatch.setattr(sys, "argv", ["study_report.py", str(file)])
    report.main()
    assert capsys.readouterr().out == text + "\n"


def test_docs_show_the_committed_tables(study):
    """`python studies/study_report.py --docs` would change nothing."""
    import study_report

    pages = [page.read_text() for page in study_report.PAGES]
    for page in pages:
        assert study_report.update_docs(page) == page
    shown = set(re.findall(r"^<!-- (\w+\.csv)", "".join(pages), flags=re.MULTILINE))
    assert shown == {file.name for file in (STUDIES / "results").glob("*.csv")}


def test_report_needs_results(report, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["study_report.py", str(tmp_path)])
    with pytest.raises(SystemExit, match="error: .* is neither a finished stage"):
        report.main()


# Choice of strengths


def test_best_strength_has_the_highest_score_and_keeps_clean_images(report, tmp_path):
    """eps 0.8 loses 2 points on clean images; all radii of PGD do, so that the least loss counts."""
    scores = {
        "clean": [50, 50], "clean_3e-3": [51, 51], "nullspace_0.03": [52, 52], "nullspace_0.3": [55, 55],
        "nullspace_0.8": [60, 60], "pgd_3_steps_8": [70, 70], "pgd_3_steps_16": [80, 80],
    }  # fmt: skip
    clean = {"nullspace_0.8": 88, "pgd_3_steps_8": 86, "pgd_3_steps_16": 85}
    write_results(tmp_path / "digits" / "tune", scores, clean)
    text = report.write_report(tmp_path / "digits" / "tune", save=True)
    assert text.endswith("Best strengths: clean_3e-3, nullspace_0.3, pgd_3_steps_8.\n")
    assert report.choose_strengths("digits") == {
        "clean": "method=clean optim.lr=3e-3",
        "nullspace": "method=nullspace nullspace.eps=0.3",
        "pgd_3_steps": "method=pgd method.attack.num_steps=3 attack.eps=8/255",
    }
    assert (tmp_path / "digits" / "tune" / "frontiers.png").is_file()


def test_lines_of_the_frontiers_follow_the_strength(report, monkeypatch, tmp_path):
    strengths = {"clean_3e-5": 91, "clean_1e-3": 93, "pgd_3_steps_0.5": 92, "pgd_3_steps_1": 90, "pgd_3_steps_16": 94}
    accuracies = {"clean": 92} | dict(reversed(strengths.items()))
    rows = [
        (entry, metric, top1) for entry, top1 in accuracies.items() for metric in ("clean", "robustness", "corruptions")
    ]
    rows += [(entry, "cost", 3 if entry.startswith("pgd") else 1) for entry in accuracies]
    monkeypatch.setattr(report.plt, "close", lambda figure: None)
    report.plot_frontiers(pd.DataFrame(rows, columns=["entry", "metric", "mean"]), tmp_path / "frontiers.png")
    lines = {line.get_label(): list(line.get_xdata()) for panel in plt.gcf().axes for line in panel.get_lines()}
    monkeypatch.undo()
    plt.close()
    assert lines["clean"] == [91, 93]
    assert lines["pgd_3_steps"] == [92, 90, 94]


def test_strengths_need_the_tuning_table(report):
    line = "error: stage test needs the best strengths of .*cifar10_tune.csv: type .* tune --data cifar10 --save first"
    with pytest.raises(SystemExit, match=line):
        report.choose_strengths("cifar10")


# Radius


@pytest.mark.filterwarnings("ignore:An input array is constant")
def test_radius_is_compared_with_the_accuracies_of_stage_test(report, tmp_path):
    write_results(tmp_path / "test", {"clean": [40, 50, 60], "pgd": [50, 60, 70], "eps_0.1": [45, 55, 65]})
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


def test_method_of_every_entry(entries, report):
    for data in entries.DATA:
        for method, sweep in entries.METHODS.items():
            assert {report.method_of(entry) for entry in sweep.entries(method, data)} == {method}


@pytest.mark.parametrize(
    "data", ["digits", *(pytest.param(data, marks=pytest.mark.slow) for data in ("cifar10", "imagenette"))]
)
@pytest.mark.parametrize("stage", [pytest.param("tune", marks=pytest.mark.slow), "variants"])
def test_all_entries_are_valid(study, stage, data):
    entries = study.stage_entries(stage, data)
    root = () if data == "digits" else ("data.root=images",)
    for folder, settings in (
        study.Study(data, stage, entries, range(2), "val", "start", root).training_settings().items()
    ):
        config = study.compose_config(train, *settings, name=folder.name)
        assert config.trainer.accelerator == ("auto" if data == "cifar10" else "cpu")
        if folder.name == "pretrained":
            assert config.checkpoint == "start"
            assert data != "cifar10"
        else:
            expected = "start" if data == "cifar10" else f"outputs/study/{data}/pretrained/seed{config.seed}"
            assert (config.name, config.checkpoint) == (folder.name, expected)


def test_every_method_has_as_many_strengths(study, entries):
    """Including the default of conf/experiment for plain finetuning; controls without a strength have one entry."""
    counts = {name: len(sweep.entries(name, "imagenette")) for name, sweep in entries.METHODS.items()}
    counts["clean"] += 1
    assert {name for name, count in counts.items() if count != 4} == {"clean_same_compute", "clean_two_views"}
    for data in entries.DATA:
        settings = list(study.stage_entries("tune", data).values())
        assert len(set(settings)) == len(settings)


def test_families_cover_the_methods(study, entries, report):
    covered = {method for methods in report.FAMILIES.values() for method in methods}
    assert covered == entries.METHODS.keys() - {"clean", "clean_same_compute", "clean_two_views"}


def test_settings_of_the_command_come_last(study, tmp_cwd):
    settings = ["trainer=gpu", "suite.max_images=7"]
    entries = {name: study.stage_entries("tune", "cifar10")[name] for name in ("clean", "nullspace_0.3")}
    stage = study.Study("cifar10", "test", entries, range(2), "test", "start", settings)
    for words in stage.training_settings().values():
        assert study.compose_config(train, *words).trainer.accelerator == "gpu"
    assert stage.suite == ["suite=cifar10_study", "suite.max_images=7"]


def test_small_study_is_valid(study, tmp_cwd):
    entries = study.stage_entries("tune", "cifar10")
    for name in ("clean", "pgd_3_steps_1", "clean_same_compute"):
        small = study.Study("cifar10", "test", {name: entries[name]}, range(2), "test", "start", study.SMALL)
        small.check_settings()


def test_imagenette_is_tuned_on_a_cheaper_suite(study, tmp_cwd):
    """Its settings fit the suite of the study."""
    for stage in ("tune", "variants", "test"):
        entries = {"clean": "method=clean"}
        study.Study("imagenette", stage, entries, range(1), "val", "start", ["data.root=images"]).check_settings()


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
        (["radius"], "error: stage radius needs finished runs: run the stage test first"),
        (["radius", "optim.lr=1"], "error: stage radius evaluates the runs of test: only suite.* settings"),
        (["radius", "suite.epss=3"], "error: suite: suite.epss: no such setting"),
        (["tune", "--entries", "nothing"], "error: --entries nothing: choose among clean, "),
        (
            ["tune", "--entries", "smart_0.1"],
            "error: --entries has no clean, which the others are compared with: add it",
        ),
        (["tune", "--small"], "error: --small applies to CIFAR-10: add --data cifar10, or remove it"),
        (["tune", "--data", "cifar10"], "error: --checkpoint is missing: name a run of experiment=cifar10_pretrain"),
        (["tune", "--data", "imagenette"], "error: --checkpoint is missing: name weights of ViT-Ti/16"),
        (["tune", "trainer.max_step=3"], "error: clean: trainer.max_step: no such setting"),
        (["tune", "suite.max_image=3"], "error: suite: suite.max_image: no such setting"),
        (["tune", "--seeds", "0"], "error: argument --seeds: 0 is too small: type 1 or more"),
        (["tune", "--processes", "0"], "error: argument --processes: 0 is too small: type 1 or more"),
        (["tune", "--foo"], "error: unrecognized arguments: --foo: see --help"),
    ],
)
def test_wrong_arguments_give_one_line(exit_line, arguments, line):
    assert exit_line(*arguments).startswith(line)


@pytest.fixture
def two_entries(study, tmp_cwd):
    """A study of two entries on digits; with `finished`, the runs of its first seed are there."""

    def make(checkpoint, *settings, finished=False):
        entries = {"clean": "method=clean", "pgd": "method=pgd attack.eps=16/255"}
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
        (None, (), "runs_test/clean/seed100 was trained with optim.lr=0.1, this command has 0.01: type the command"),
        ("other", ("optim.lr=0.1",), "pretrained/seed100 was trained with checkpoint=None, this command has other"),
    ):
        with pytest.raises(SystemExit, match=re.escape(line)):
            two_entries(checkpoint, *settings).check_settings()
    with pytest.raises(
        SystemExit, match=r"runs_test/clean/seed100 was trained with .*eps=8/255, this command has 1/255"
    ):
        two_entries(None, "optim.lr=0.1", "attack.eps=1/255").check_settings()


def test_only_missing_seeds_are_trained(study, two_entries, monkeypatch):
    commands = []
    stage = two_entries(None, finished=True)
    monkeypatch.setattr(study.Study, "run_script", lambda _, script, *settings: commands.append((script, settings)))
    stage.finetune()
    training = [settings for script, settings in commands if script == "train.py"]
    assert len(training) == 3
    assert {settings[1] for settings in training} == {"seed=101"}
    outputs = [settings[-1] for script, settings in commands if script == "evaluate.py"]
    names = ("parts/clean", "parts/pgd", "results")
    assert outputs == [f"hydra.run.dir=outputs/study/digits/test/{name}" for name in names]


def test_radius_evaluates_finished_runs_once(study, monkeypatch, tmp_cwd):
    root, evaluated = Path("outputs/study/digits"), {}
    runs = ["runs_test/clean/seed100", "runs_test/pgd/seed100"]
    for run in [*runs, "runs_test/clean/seed101", "runs_test/clean/seed7", "runs_val/clean/seed100"]:
        (root / run).mkdir(parents=True)
        if run != "runs_test/clean/seed101":  # interrupted
            (root / run / study.WEIGHTS).touch()
    monkeypatch.setattr(study.Study, "evaluate_runs", lambda _, folders, output: evaluated.update({output: folders}))
    study.Study("digits", "radius", {}, range(100, 102), "test", processes=2).measure_radius()
    assert evaluated["results"] == [root / run for run in runs]
    assert sorted(evaluated) == ["parts/clean_seed100", "parts/pgd_seed100", "results"]


@pytest.mark.slow
def test_study_from_start_to_end(tmp_path):
    def study(*arguments):
        command = [sys.executable, str(STUDIES / "study.py"), *arguments]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    arguments = ["tune", "--seeds", "2", "--entries", "clean,nullspace_0.3,clean_same_compute"]
    first = study(*arguments, "trainer.max_steps=3")
    assert first.returncode == 0, first.stderr
    assert "| nullspace_0.3 | " in first.stdout
    assert "Best strengths: clean, nullspace_0.3, clean_same_compute." in first.stdout
    assert first.stdout.count("trained ") == 5, "two starts and three entries"
    second = study(*arguments, "trainer.max_steps=3")
    assert "trained" not in second.stdout
    assert second.stdout == first.stdout[first.stdout.index("Top-1") :]
    other = study(*arguments, "trainer.max_steps=4")
    assert other.returncode == 1
    assert "was trained with trainer.max_steps=3, this command has 4" in other.stderr
    failed = study(*arguments, "--data", "cifar10", "--checkpoint", "start", "data.root=nowhere")
    assert failed.returncode == 1
    assert failed.stderr.startswith("error: python train.py failed: data.root=nowhere")
