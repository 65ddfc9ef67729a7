"""benchmarks/study.py: what it says of known results, and one small study from start to end."""

import re
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from omegaconf import OmegaConf

from tests.cli.test_app import refused

STUDIES = Path(__file__).parents[2] / "studies"


@pytest.fixture
def study(monkeypatch):
    monkeypatch.syspath_prepend(str(STUDIES))
    import study

    return study


@pytest.fixture
def report(study):
    return sys.modules["study_report"]


def results(folder, scores):
    """results.csv of runs with these scores, in points, by name and seed; 90 on clean images, score ± 10 otherwise."""
    rows = []
    for name, values in scores.items():
        for seed, value in enumerate(values):
            told = {"name": name, "seed": seed, "metric": "top1", "over": "images"}
            rows += [
                told | {"benchmark": "clean", "value": 0.9},
                told | {"benchmark": "pgd", "strength": 0.01, "value": value / 100 - 0.12},
                told | {"benchmark": "pgd", "strength": 0.02, "value": value / 100 - 0.08},
                told | {"benchmark": "fog", "strength": 1, "value": value / 100 + 0.15},
                told | {"benchmark": "snow", "strength": 1, "value": value / 100 + 0.05},
                told | {"benchmark": "score", "metric": "score", "value": value / 100},
                told | {"benchmark": "fog", "strength": 1, "metric": "nll", "value": 3.0},
            ]
    (folder / "results").mkdir(parents=True)
    pd.DataFrame(rows).to_csv(folder / "results" / "results.csv", index=False)


def test_differences_are_paired_by_seed(report, tmp_path):
    """Seeds differ by far more than methods do: only pairs show it. Intervals by hand: mean ± t(0.975, 2) s / √3."""
    folder = tmp_path / "confirm"
    results(folder, {"clean": [40, 60, 50], "nullspace": [42, 61, 53], "pgd": [45, 65, 40]})
    text = report.report(folder)
    half = 4.302653 * 1.0 / 3**0.5
    assert "| nullspace | 90.0 | 42.0 | 62.0 | 52.0 |" in text
    assert f"| +2.0 ({2 - half:+.1f} to {2 + half:+.1f}) | +0.0 (+0.0 to +0.0) |" in text
    assert "| better than plain finetuning | score | nullspace - clean | +2.0 (-0.5 to +4.5) | within chance |" in text
    assert "| as robust as adversarial training | score | nullspace - pgd | +2.0" in text
    assert text == (folder / "summary.md").read_text()
    apart = report.difference(report.runs(folder), "nullspace", "clean", "pgd")
    assert apart.value == pytest.approx(2)


def test_a_lasting_difference_is_named(report, tmp_path):
    results(tmp_path / "confirm", {"clean": [40, 60, 50], "nullspace": [43, 63.1, 53.2], "pgd": [50, 70.3, 60.1]})
    text = report.report(tmp_path / "confirm")
    assert "nullspace - clean | +3.1 (+2.9 to +3.3) | higher |" in text
    assert "nullspace - pgd | -7.0" in text
    assert "| lower |" in text


def test_curves_hold_the_default_in_its_place(report, tmp_path):
    names = ["clean", "nullspace", "eps_0.001", "eps_1.5", "limit_9", "steps_30"]
    results(tmp_path / "curves", {name: [50 + place, 60 + place] for place, name in enumerate(names)})
    for name in names:
        for seed in (0, 1):
            (tmp_path / "curves" / name / f"seed{seed}").mkdir(parents=True)
            columns = ["train/influence", "train/influence_before", "train/noise_rms", "train/noise_rms_before"]
            log = pd.DataFrame({"step": [9, 19], **{column: [0.1, 0.2] for column in columns}})
            log.to_csv(tmp_path / "curves" / name / f"seed{seed}" / "metrics.csv", index=False)
    table = report.runs(tmp_path / "curves")
    assert [name for _, name in report.swept(table, "eps")] == ["eps_0.001", "nullspace", "eps_1.5"]
    assert "eps_1.5 - nullspace | +2.0 (+2.0 to +2.0)" in report.report(tmp_path / "curves")
    assert {file.name for file in (tmp_path / "curves").glob("*.png")} == {"curves.png", "training.png"}


@pytest.mark.filterwarnings("ignore:An input array is constant")
def test_radius_takes_a_run_of_two_stages_once(report, tmp_path):
    """The first stage's: with the accuracy of the second the order would be perfect."""
    results(tmp_path / "confirm", {"clean": [40, 50, 60], "pgd": [50, 60, 70]})
    results(tmp_path / "curves", {"clean": [80, 90, 95], "eps_0.1": [45, 55, 65]})
    radii = [("clean", 3.0), ("eps_0.1", 1.0), ("pgd", 2.0)]
    told = {"condition": "learned", "metric": "relative radius"}
    rows = [told | {"name": name, "seed": seed, "value": value + seed} for name, value in radii for seed in range(3)]
    (tmp_path / "radius" / "results").mkdir(parents=True)
    pd.DataFrame(rows).to_csv(tmp_path / "radius" / "results" / "results.csv", index=False)
    text = report.report(tmp_path / "radius")
    assert "9 runs of 3 entries" in text
    assert "| -0.50 (-0.50 to -0.50) |" in text
    assert "| clean | 4.00 | 40.0 | 60.0 |" in text
    assert (tmp_path / "radius" / "radius.png").exists()


def test_rank_correlation_within_seeds_and_over_all(report):
    """Within each seed the order is perfect, between them reversed."""
    seeds = np.repeat(np.arange(6), 4)
    x = np.tile(np.arange(4.0), 6) - 10 * seeds
    both = pd.DataFrame({"seed": seeds, "x": x, "y": np.tile([1.0, 2.0, 4.0, 8.0], 6) + 100 * seeds})
    pooled, within = report.rank_correlation(both, "x", "y")
    assert within.value == pytest.approx(1)
    assert pooled.value < -0.8


def test_the_interval_of_a_rank_correlation_covers_it(report):
    """Of 150 simulated studies whose seeds differ: 95 % of the intervals, give or take 3.5 standard errors."""
    rng, found = np.random.default_rng(0), []
    for _ in range(150):
        seeds = np.repeat(np.arange(10), 8)
        shift = rng.normal(size=10)[seeds]
        x = rng.normal(size=80) + shift
        both = pd.DataFrame({"seed": seeds, "x": x, "y": 0.5 * x + rng.normal(size=80) - 0.5 * shift})
        found.append(report.rank_correlation(both, "x", "y")[0])
    truth = np.mean([each.value for each in found])
    assert 0.88 < np.mean([each.low < truth < each.high for each in found]) < 1


@pytest.mark.parametrize("data", ["digits", "cifar10"])
@pytest.mark.parametrize("stage", ["choose", "confirm", "curves"])
def test_every_entry_is_accepted(study, stage, data):
    for settings in study.entries_of(stage, data).values():
        assert refused(f"experiment={data}_study", *settings) is None


@pytest.fixture
def told(study, monkeypatch, tmp_path):
    """Runs study.py's main with these arguments and returns the line that it ends with; no script is started."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        monkeypatch.setattr(study.Study, "script", lambda *_: pytest.fail("work was started"))
        monkeypatch.setattr(sys, "argv", ["study.py", *arguments])
        with pytest.raises(SystemExit) as ended:
            study.main()
        return str(ended.value)

    return run


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["radius"], "error: radius is of the models of confirm and curves: run one of them first"),
        (["radius", "optim.lr=1"], "error: radius is of the models of confirm and curves: leave out all but suite.*"),
        (["radius", "suite.epss=3"], "error: suite: suite.epss: no such setting"),
        (["confirm", "--entries", "nothing"], "error: --entries nothing: choose among clean, "),
        (["confirm", "--entries", "pgd"], "error: --entries lacks clean, with which the others are compared: add it"),
        (["curves", "--entries", "clean"], "error: --entries lacks nullspace, with which"),
        (["confirm", "--small"], "error: --small is of CIFAR-10: add --data cifar10, or leave it out"),
        (["confirm", "--data", "cifar10"], "error: --checkpoint is missing: name a run of experiment=cifar10_pretrain"),
        (["confirm", "trainer.max_step=3"], "error: clean: trainer.max_step: no such setting"),
        (["confirm", "suite.max_image=3"], "error: suite: suite.max_image: no such setting"),
    ],
)
def test_what_cannot_work_is_one_line(told, arguments, line):
    assert told(*arguments).startswith(line)


@pytest.mark.parametrize("arguments", [["--seeds", "1"], ["--processes", "0"]])
def test_numbers_that_are_too_small(told, capsys, arguments):
    assert told("confirm", *arguments) == "2"
    assert "is too few" in capsys.readouterr().err


@pytest.fixture
def made(study, monkeypatch, tmp_path):
    """A study whose command line is this one, and whose runs of its first seed are there already."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(STUDIES.parent))
    from nsaug.cli import train

    def make(data, checkpoint, *settings, present=False):
        told = Namespace(stage="confirm", data=data, checkpoint=checkpoint, settings=settings, processes=1)
        found = study.Study(told, study.entries_of("confirm", data), "test", range(100, 102))
        for folder, words in found.runs().items() if present else ():
            run = folder / "seed100"
            (run / ".hydra").mkdir(parents=True)
            (run / study.WEIGHTS).touch()
            OmegaConf.save(study.check(train, *words, "seed=100"), run / ".hydra" / "config.yaml")
        return found

    return make


@pytest.mark.parametrize(("data", "accelerator"), [("digits", "cpu"), ("cifar10", "auto")])
def test_what_trains_it(study, made, data, accelerator):
    for folder, words in made(data, "start").runs().items():
        composed = study.check(study.train, *words)
        assert composed.trainer.accelerator == accelerator
        assert (composed.name, composed.checkpoint) == (folder.name, "start")
    for words in made(data, "start", "trainer=gpu").runs().values():
        assert study.check(study.train, *words).trainer.accelerator == "gpu"


def test_runs_with_other_settings_are_refused(study, made, monkeypatch):
    made("digits", None, "optim.lr=0.1", present=True).check_settings()
    made("digits", None, "optim.lr=0.1", "data.num_workers=0").check_settings()
    for checkpoint, settings, line in (
        (None, (), "confirm/clean/seed100 was trained with optim.lr=0.1, this command says 0.001: type the command"),
        ("other", ("optim.lr=0.1",), "trained with checkpoint=outputs/study/digits/pretrained/seed100, this command"),
    ):
        with pytest.raises(SystemExit, match=re.escape(line)):
            made("digits", checkpoint, *settings).check_settings()
    monkeypatch.setitem(study.METHODS, "pgd", "method=pgd attack.eps=1/255")
    with pytest.raises(SystemExit, match=r"confirm/pgd/seed100 was trained with .*eps=16/255, this command says 1/255"):
        made("digits", None, "optim.lr=0.1").check_settings()


def test_radius_is_of_finished_runs_the_first_stages(study, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    root, judged = Path("outputs/study/digits"), []
    runs = ["confirm/clean/seed100", "confirm/pgd/seed100", "curves/clean/seed100", "curves/eps_1/seed100"]
    for run in [*runs, "confirm/clean/seed101", "confirm/clean/seed7"]:
        (root / run).mkdir(parents=True)
        (root / run / "config.json").touch()
        if run != "confirm/clean/seed101":
            (root / run / study.WEIGHTS).touch()
    for stage in ("confirm", "curves"):
        results(root / stage, {})
    monkeypatch.setattr(study.Study, "evaluate", lambda _, found, name, *suite: judged.append((name, found)))
    told = Namespace(stage="radius", data="digits", checkpoint=None, entries=None, settings=[], processes=2)
    study.Study(told, {}, "test", range(100, 102)).radius()
    assert dict(judged)["results"] == [root / run for run in (runs[0], runs[1], runs[3])]
    assert sorted(name for name, _ in judged) == ["part0", "part1", "results"]


@pytest.mark.slow
def test_a_study_goes_on_where_it_was_stopped(tmp_path):
    def study(*arguments):
        command = [sys.executable, str(STUDIES / "study.py"), *arguments]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    told = ["confirm", "--seeds", "2", "--entries", "clean,nullspace"]
    done = study(*told, "trainer.max_steps=3")
    assert done.returncode == 0, done.stderr
    assert "| better than plain finetuning | score | nullspace - clean |" in done.stdout
    assert done.stdout.count("trained ") == 6, "for each of two processes a start and two methods"
    again = study(*told, "trainer.max_steps=3")
    assert "trained" not in again.stdout
    assert again.stdout[again.stdout.index("top-1") :] == done.stdout[done.stdout.index("top-1") :]
    found = study("radius")
    assert "Spearman's rank correlation" in found.stdout, found.stderr
    other = study(*told, "trainer.max_steps=4")
    assert other.returncode == 1
    assert "was trained with trainer.max_steps=3, this command says 4" in other.stderr
    failed = study(*told, "--data", "cifar10", "--checkpoint", "start", "data.root=nowhere")
    assert failed.returncode == 1
    assert failed.stderr.startswith("error: python train.py failed: data.root=nowhere holds neither")
