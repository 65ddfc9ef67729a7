import dataclasses
import io

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from rich.console import Console
from scipy import stats

from nsaug.evaluation import Benchmark, BenchmarkResult, NamedBenchmark, Score
from nsaug.evaluation.reporting.aggregate import COLUMNS, append, compared, grouped, tabulate, write
from nsaug.evaluation.reporting.formatting import Place, caption, markdown, terminal_tables
from nsaug.evaluation.reporting.plots import overview
from nsaug.utils.errors import UserError
from tests.evaluation.conftest import ATTACKED, CLEAN, EPS, outcome, subject

SCORE = Score(weights={"clean": 1, "pgd": 3})


def of(frame, **where):
    for key, value in where.items():
        frame = frame[frame[key] == value]
    (row,) = frame.to_dict("records")
    return row


def test_a_table_that_grows_is_the_whole_one(outcomes, tmp_path):
    rows = tabulate(outcomes, SCORE)
    (tmp_path / "grown.csv").write_text("what an earlier run left\n")
    for start in range(0, len(rows), 7):
        append(rows[start : start + 7], tmp_path / "grown.csv", new=start == 0)
    write(rows, tmp_path / "whole.csv")
    assert (tmp_path / "grown.csv").read_text() == (tmp_path / "whole.csv").read_text()


def test_a_row_for_each_number(outcomes):
    rows = tabulate(outcomes, SCORE)
    assert list(rows.columns) == COLUMNS
    # 4 runs: clean 5 metrics; 2 radii with 5 metrics and retention each; a score
    assert len(rows) == 4 * (5 + 2 * 6 + 1)
    row = of(rows, name="clean", seed=1, benchmark="pgd", strength=EPS[0], metric="top1")
    assert row["value"] == pytest.approx(0.54)
    assert row["condition"] == "attacked"
    assert row["n"] == 50
    low, high = stats.binom.interval(0.95, 50, 0.54)
    assert row["low"] == pytest.approx(low / 50, abs=0.03)
    assert row["high"] == pytest.approx(high / 50, abs=0.03)
    kept = of(rows, name="clean", seed=1, benchmark="pgd", strength=EPS[0], metric="retention")
    assert kept["value"] == pytest.approx(0.54 / 0.92)
    assert kept["low"] < kept["value"] < kept["high"]


def test_the_score_is_its_formula(outcomes):
    rows = tabulate(outcomes, SCORE)
    row = of(rows, name="nullspace", seed=1, metric="score")
    assert row["value"] == pytest.approx((1 * 0.82 + 3 * (0.64 + 0.3) / 2) / 4)
    assert row["low"] < row["value"] < row["high"]
    assert "score" not in set(tabulate(outcomes[1:2], SCORE)["metric"]), "a benchmark that counts is missing"
    with pytest.raises(UserError, match="suite.score.weights.pgd: the suite has clean, fgsm"):
        SCORE.check(["clean", "fgsm"])


def test_runs_that_differ_by_their_seed_form_a_group(outcomes):
    groups = grouped(tabulate(outcomes, SCORE))
    row = of(groups, name="clean", benchmark="pgd", strength=EPS[0], metric="top1")
    low, high = stats.t.interval(0.95, 1, loc=0.52, scale=stats.sem([0.5, 0.54]))
    assert (row["value"], row["low"], row["high"]) == pytest.approx((0.52, low, high))
    assert (row["runs"], row["over"]) == (2, "seeds")
    alone = of(grouped(tabulate(outcomes[:1], None)), metric="top1")
    assert (alone["runs"], alone["over"]) == (1, "images")
    assert 0 < alone["low"] < alone["high"] < 1


def test_paired_differences_over_seeds_and_over_images(outcomes):
    found = compared(outcomes, SCORE)
    row = of(found, benchmark="pgd", strength=EPS[0])
    assert (row["name"], row["other"], row["seeds"], row["images"]) == ("nullspace", "clean", 2, 50)
    assert row["difference"] == pytest.approx(0.1)
    # Both runs differ by a tenth: over seeds there is no spread, over images there is.
    assert (row["seeds_low"], row["seeds_high"]) == pytest.approx((0.1, 0.1))
    assert 0 < row["images_low"] < 0.1 < row["images_high"] < 0.25
    score = of(found, metric="score")
    assert score["difference"] == pytest.approx((1 * (0.81 - 0.91) + 3 * (0.46 - 0.31)) / 4)


def test_pairing_is_tighter_than_two_intervals(outcomes):
    """Both models fail on the same images: the difference of each image is nearly always 0."""
    row = of(compared(outcomes, None), benchmark="clean")
    both = tabulate(outcomes, None)
    alone = of(both, name="clean", seed=0, benchmark="clean", metric="top1")
    other = of(both, name="nullspace", seed=0, benchmark="clean", metric="top1")
    unpaired = (alone["high"] - alone["low"]) ** 2 + (other["high"] - other["low"]) ** 2
    assert (row["images_high"] - row["images_low"]) ** 2 < 0.9 * unpaired


def test_other_images_are_not_paired():
    few = [outcome(subject("a"), CLEAN, [0.9], n=40), outcome(subject("b"), CLEAN, [0.9], n=50)]
    assert compared(few, None).empty


def test_runs_without_a_common_seed_have_no_interval_over_seeds():
    apart = [outcome(subject("a", 0), CLEAN, [0.9]), outcome(subject("b", 1), CLEAN, [0.8])]
    row = of(compared(apart, None), benchmark="clean")
    assert np.isnan(row["seeds_low"])
    assert row["difference"] == pytest.approx(-0.1)
    assert row["images_low"] < -0.1 < row["images_high"]


def test_runs_are_compared_with_the_weights_they_started_from():
    """The model before finetuning has no seed: each run is paired with it; the spread is that of the runs."""
    runs = [outcome(subject("ft", seed), CLEAN, [accuracy]) for seed, accuracy in enumerate((0.2, 0.5, 0.8))]
    start = [outcome(subject("start", None), CLEAN, [0.5])]
    for order, sign in ((start + runs, 1), (runs + start, -1)):
        row = of(compared(order, None), benchmark="clean")
        low, high = stats.t.interval(0.95, 2, loc=0, scale=stats.sem([0.2, 0.5, 0.8]))
        assert row["difference"] == pytest.approx(0, abs=1e-9)
        assert (row["seeds_low"], row["seeds_high"], row["seeds"]) == pytest.approx((low, high, 3)), sign


def test_groups_without_a_common_seed_are_compared_by_their_means():
    own = [outcome(subject("a", seed), CLEAN, [accuracy]) for seed, accuracy in ((0, 0.2), (1, 0.4))]
    theirs = [outcome(subject("b", seed), CLEAN, [accuracy]) for seed, accuracy in ((2, 0.8), (3, 0.6))]
    row = of(compared(own + theirs, None), benchmark="clean")
    assert row["difference"] == pytest.approx(0.4)
    assert np.isnan(row["seeds_low"])
    assert row["images_low"] < 0.4 < row["images_high"]


def test_the_share_that_reached_eps_is_told():
    from nsaug.nullspace import NoiseSynthesis

    noise = NamedBenchmark("noise", Benchmark(noise=NoiseSynthesis(), vary="limit", values=(1,)))
    found = outcome(subject(), noise, [0.9])
    found.result.judged[0].converged[:] = np.arange(50) < 20
    row = of(tabulate([found], None), metric="converged")
    assert row["value"] == pytest.approx(0.4)
    assert "converged" not in set(tabulate([outcome(subject(), CLEAN, [0.9])], None)["metric"])


def test_a_failure_leaves_no_row(outcomes):
    failed = BenchmarkResult(outcomes[0].subject, ATTACKED, None, "no memory")
    assert set(tabulate([outcomes[0], failed], SCORE)["benchmark"]) == {"clean"}


def test_what_the_terminal_shows(outcomes):
    rows = tabulate(outcomes, SCORE)
    console = Console(file=io.StringIO(), width=120)
    console.print(*terminal_tables(grouped(rows)))
    text = console.file.getvalue()
    assert caption(rows, grouped(rows)) == "top-1 in %, 50 test images; ± 95 % interval over seeds (t)"
    for part in ("91.0 ± 12.7", "pgd 4/255", "score"):
        assert part in text
    console = Console(file=io.StringIO(), width=120)
    alone = rows[rows["seed"] == 0]
    console.print(*terminal_tables(grouped(alone)))
    assert "±" not in console.file.getvalue(), "one run has no spread over seeds"
    assert "[" in console.file.getvalue()


def test_markdown_is_the_same_table(outcomes):
    rows = tabulate(outcomes, SCORE)
    lines = markdown(rows, grouped(rows)).splitlines()
    assert lines[2] == "|  | clean | nullspace |"
    assert lines[4] == "| runs | 2 | 2 |"
    assert lines[5] == "| clean | 91.0 ± 12.7 | 81.0 ± 12.7 |"


def test_only_the_radius_of_an_attack_counts_in_grey_levels():
    assert Place("pgd", "attacked", 4 / 255).heading == "pgd 4/255"
    assert Place("pgd", "attacked", 0.3).heading == "pgd 0.3"
    assert Place("gaussian_noise", "corrupted", 0.2).heading == "gaussian_noise 0.2"
    assert Place("clean", "clean", None).heading == "clean"


def test_files_hold_the_rows(outcomes, tmp_path):
    outcomes[0] = dataclasses.replace(outcomes[0], notes=("stored", "3 of 50 images cannot be read"))
    rows = tabulate(outcomes, SCORE)
    write(rows, tmp_path / "results.csv")
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "results.csv"), rows.replace({"notes": {"": float("nan")}}))
    assert rows["notes"][0] == "stored; 3 of 50 images cannot be read"


def test_the_plot_is_a_picture(outcomes, tmp_path):
    overview(grouped(tabulate(outcomes, SCORE)), tmp_path / "results.png")
    with Image.open(tmp_path / "results.png") as picture:
        assert picture.width > 300
        assert len(picture.convert("RGB").getcolors(100000)) > 20
