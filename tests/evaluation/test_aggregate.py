import dataclasses
import io

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from rich.console import Console
from scipy import stats

from nsaug.evaluation import Benchmark, BenchmarkResult, NamedBenchmark, Score
from nsaug.evaluation.reporting.aggregate import (
    COLUMNS,
    aggregate_seeds,
    append_csv,
    pairwise_differences,
    tabulate,
    write_csv,
)
from nsaug.evaluation.reporting.formatting import ResultKey, caption, markdown, terminal_tables
from nsaug.evaluation.reporting.plots import overview
from nsaug.utils.errors import UserError
from tests.evaluation.conftest import ATTACKED, CLEAN, EPS, make_model, make_result

SCORE = Score(weights={"clean": 1, "pgd": 3})


def only_row(frame, **where):
    for key, value in where.items():
        frame = frame[frame[key] == value]
    (row,) = frame.to_dict("records")
    return row


def test_appended_csv_equals_written_csv(results, tmp_path):
    rows = tabulate(results, SCORE)
    (tmp_path / "appended.csv").write_text("rows of an earlier run\n")
    for start in range(0, len(rows), 7):
        append_csv(rows[start : start + 7], tmp_path / "appended.csv", new=start == 0)
    write_csv(rows, tmp_path / "written.csv")
    assert (tmp_path / "appended.csv").read_text() == (tmp_path / "written.csv").read_text()


def test_one_row_per_number(results):
    rows = tabulate(results, SCORE)
    assert list(rows.columns) == COLUMNS
    # 4 runs: 5 clean metrics; 5 metrics and the relative accuracy at 2 radii; a score
    assert len(rows) == 4 * (5 + 2 * 6 + 1)
    row = only_row(rows, name="clean", seed=1, benchmark="pgd", strength=EPS[0], metric="top1")
    assert row["value"] == pytest.approx(0.54)
    assert row["condition"] == "attacked"
    assert row["n"] == 50
    low, high = stats.binom.interval(0.95, 50, 0.54)
    assert row["low"] == pytest.approx(low / 50, abs=0.03)
    assert row["high"] == pytest.approx(high / 50, abs=0.03)
    relative = only_row(rows, name="clean", seed=1, benchmark="pgd", strength=EPS[0], metric="relative_accuracy")
    assert relative["value"] == pytest.approx(0.54 / 0.92)
    assert relative["low"] < relative["value"] < relative["high"]


def test_score(results):
    rows = tabulate(results, SCORE)
    row = only_row(rows, name="nullspace", seed=1, metric="score")
    assert row["value"] == pytest.approx((1 * 0.82 + 3 * (0.64 + 0.3) / 2) / 4)
    assert row["low"] < row["value"] < row["high"]
    assert "score" not in set(tabulate(results[1:2], SCORE)["metric"]), "a weighted benchmark is missing"
    with pytest.raises(UserError, match="suite.score.weights.pgd: no such benchmark; the suite has clean, fgsm"):
        SCORE.check(["clean", "fgsm"])


def test_aggregate_seeds(results):
    groups = aggregate_seeds(tabulate(results, SCORE))
    row = only_row(groups, name="clean", benchmark="pgd", strength=EPS[0], metric="top1")
    low, high = stats.t.interval(0.95, 1, loc=0.52, scale=stats.sem([0.5, 0.54]))
    assert (row["value"], row["low"], row["high"]) == pytest.approx((0.52, low, high))
    assert (row["runs"], row["over"]) == (2, "seeds")
    single = only_row(aggregate_seeds(tabulate(results[:1], None)), metric="top1")
    assert (single["runs"], single["over"]) == (1, "images")
    assert 0 < single["low"] < single["high"] < 1


def test_paired_differences_over_seeds_and_over_images(results):
    differences = pairwise_differences(results, SCORE)
    row = only_row(differences, benchmark="pgd", strength=EPS[0])
    assert (row["name"], row["other"], row["seeds"], row["images"]) == ("nullspace", "clean", 2, 50)
    assert row["difference"] == pytest.approx(0.1)
    # Both seeds differ by 0.1: no spread over seeds, but one over images.
    assert (row["seeds_low"], row["seeds_high"]) == pytest.approx((0.1, 0.1))
    assert 0 < row["images_low"] < 0.1 < row["images_high"] < 0.25
    score = only_row(differences, metric="score")
    assert score["difference"] == pytest.approx((1 * (0.81 - 0.91) + 3 * (0.46 - 0.31)) / 4)


def test_paired_interval_is_narrower_than_unpaired(results):
    """Both models fail on the same images, so that most differences are 0."""
    row = only_row(pairwise_differences(results, None), benchmark="clean")
    rows = tabulate(results, None)
    first = only_row(rows, name="clean", seed=0, benchmark="clean", metric="top1")
    second = only_row(rows, name="nullspace", seed=0, benchmark="clean", metric="top1")
    unpaired = (first["high"] - first["low"]) ** 2 + (second["high"] - second["low"]) ** 2
    assert (row["images_high"] - row["images_low"]) ** 2 < 0.9 * unpaired


def test_different_images_are_not_paired():
    results = [make_result(make_model("a"), CLEAN, [0.9], n=40), make_result(make_model("b"), CLEAN, [0.9], n=50)]
    assert pairwise_differences(results, None).empty


def test_single_runs_without_a_common_seed_have_no_interval_over_seeds():
    results = [make_result(make_model("a", 0), CLEAN, [0.9]), make_result(make_model("b", 1), CLEAN, [0.8])]
    row = only_row(pairwise_differences(results, None), benchmark="clean")
    assert np.isnan(row["seeds_low"])
    assert row["difference"] == pytest.approx(-0.1)
    assert row["images_low"] < -0.1 < row["images_high"]


def test_runs_are_paired_with_the_only_run_of_another_name():
    """Pretrained weights have no seed: every run is paired with them, and the spread is that of the runs."""
    runs = [make_result(make_model("ft", seed), CLEAN, [accuracy]) for seed, accuracy in enumerate((0.2, 0.5, 0.8))]
    start = [make_result(make_model("start", None), CLEAN, [0.5])]
    for results in (start + runs, runs + start):
        row = only_row(pairwise_differences(results, None), benchmark="clean")
        low, high = stats.t.interval(0.95, 2, loc=0, scale=stats.sem([0.2, 0.5, 0.8]))
        assert row["difference"] == pytest.approx(0, abs=1e-9)
        assert (row["seeds_low"], row["seeds_high"], row["seeds"]) == pytest.approx((low, high, 3))


def test_groups_without_a_common_seed_are_compared_by_their_means():
    first = [make_result(make_model("a", seed), CLEAN, [accuracy]) for seed, accuracy in ((0, 0.2), (1, 0.4))]
    second = [make_result(make_model("b", seed), CLEAN, [accuracy]) for seed, accuracy in ((2, 0.8), (3, 0.6))]
    row = only_row(pairwise_differences(first + second, None), benchmark="clean")
    assert row["difference"] == pytest.approx(0.4)
    assert np.isnan(row["seeds_low"])
    assert row["images_low"] < 0.4 < row["images_high"]


def test_fraction_of_converged_noise_is_reported():
    from nsaug.nullspace import NullspaceNoise

    noise = NamedBenchmark("noise", Benchmark(noise=NullspaceNoise(), param="init_scale", strengths=(1,)))
    result = make_result(make_model(), noise, [0.9])
    result.output.scores[0].converged[:] = np.arange(50) < 20
    row = only_row(tabulate([result], None), metric="converged")
    assert row["value"] == pytest.approx(0.4)
    assert "converged" not in set(tabulate([make_result(make_model(), CLEAN, [0.9])], None)["metric"])


def test_failures_have_no_rows(results):
    failed = BenchmarkResult(results[0].model, ATTACKED, None, "no memory")
    assert set(tabulate([results[0], failed], SCORE)["benchmark"]) == {"clean"}


def test_terminal_tables(results):
    rows = tabulate(results, SCORE)
    console = Console(file=io.StringIO(), width=120)
    console.print(*terminal_tables(aggregate_seeds(rows)))
    text = console.file.getvalue()
    assert caption(rows, aggregate_seeds(rows)) == "top-1 in %, 50 test images; ± 95 % interval over seeds (t)"
    for part in ("91.0 ± 12.7", "pgd 4/255", "score"):
        assert part in text
    console = Console(file=io.StringIO(), width=120)
    console.print(*terminal_tables(aggregate_seeds(rows[rows["seed"] == 0])))
    assert "±" not in console.file.getvalue(), "one run has no spread over seeds"
    assert "[" in console.file.getvalue()


def test_markdown(results):
    rows = tabulate(results, SCORE)
    lines = markdown(rows, aggregate_seeds(rows)).splitlines()
    assert lines[2] == "|  | clean | nullspace |"
    assert lines[4] == "| runs | 2 | 2 |"
    assert lines[5] == "| clean | 91.0 ± 12.7 | 81.0 ± 12.7 |"


def test_headings():
    assert ResultKey("pgd", "attacked", 4 / 255).heading == "pgd 4/255"
    assert ResultKey("pgd", "attacked", 0.3).heading == "pgd 0.3"
    assert ResultKey("gaussian_noise", "corrupted", 0.2).heading == "gaussian_noise 0.2"
    assert ResultKey("clean", "clean", None).heading == "clean"


def test_csv_round_trip(results, tmp_path):
    results[0] = dataclasses.replace(results[0], notes=("stored", "3 of 50 images cannot be read"))
    rows = tabulate(results, SCORE)
    write_csv(rows, tmp_path / "results.csv")
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "results.csv"), rows.replace({"notes": {"": float("nan")}}))
    assert rows["notes"][0] == "stored; 3 of 50 images cannot be read"


def test_overview_is_an_image(results, tmp_path):
    overview(aggregate_seeds(tabulate(results, SCORE)), tmp_path / "results.png")
    with Image.open(tmp_path / "results.png") as image:
        assert image.width > 300
        assert len(image.convert("RGB").getcolors(100000)) > 20
