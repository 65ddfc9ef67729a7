"""Tables: rows, means over seeds, paired differences, and their formats."""

import dataclasses
import io

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from rich.console import Console
from scipy import stats

from nsaug.evaluation import AnalysisResult, BenchmarkResult, Measurement
from nsaug.evaluation.reporting.aggregate import aggregate_seeds, tabulate, write_csv
from nsaug.evaluation.reporting.comparisons import pairwise_differences
from nsaug.evaluation.reporting.formatting import ResultKey, caption, markdown, terminal_tables
from nsaug.evaluation.reporting.plots import overview
from tests.evaluation.conftest import EPS, make_model, make_result, make_results

SCORE = {"clean": 1, "pgd": 3}


def only_row(frame, **where):
    for key, value in where.items():
        frame = frame[frame[key] == value]
    (row,) = frame.to_dict("records")
    return row


def test_one_row_per_number(results):
    rows = tabulate(results, SCORE)
    columns = ["checkpoint", "name", "method", "eps", "seed", "benchmark", "condition", "strength", "metric", "value"]
    assert list(rows.columns) == [*columns, "low", "high", "n", "over", "notes"]
    # 4 runs: 6 clean metrics; 6 metrics and the relative accuracy at 2 radii; expected robustness; a score
    assert len(rows) == 4 * (6 + 2 * 7 + 2)
    row = only_row(rows, name="clean", seed=1, benchmark="pgd", strength=EPS[0], metric="top1")
    assert row["value"] == pytest.approx(0.54)
    assert row["condition"] == "attacked"
    assert row["n"] == 50
    z = stats.norm.ppf(0.975)  # Wilson's formula, as in his paper
    center, spread = 0.54 + z**2 / 100, z * (0.54 * 0.46 / 50 + z**2 / 10_000) ** 0.5
    assert row["low"] == pytest.approx((center - spread) / (1 + z**2 / 50))
    assert row["high"] == pytest.approx((center + spread) / (1 + z**2 / 50))
    relative = only_row(rows, name="clean", seed=1, benchmark="pgd", strength=EPS[0], metric="relative_accuracy")
    assert relative["value"] == pytest.approx(0.54 / 0.92)
    assert relative["low"] < relative["value"] < relative["high"]


def test_score(results):
    rows = tabulate(results, SCORE)
    row = only_row(rows, name="nullspace", seed=1, metric="score")
    assert row["value"] == pytest.approx((1 * 0.82 + 3 * (0.64 + 0.3) / 2) / 4)
    assert row["low"] < row["value"] < row["high"]
    assert "score" not in set(tabulate(results[1:2], SCORE)["metric"]), "a weighted benchmark is missing"


def test_score_of_all_corruptions():
    model = make_model()
    results = [
        make_result(model, accuracy, name, 1.0, "corrupted", corruption=name)
        for name, accuracy in (("fog", 0.6), ("snow", 0.2))
    ]
    results.append(make_result(model, 0.9, "imagenet_c_fog", 1.0, "corrupted", corruption="fog", is_stored=True))
    assert only_row(tabulate(results, {"corruptions": 1}), metric="score")["value"] == pytest.approx(0.4)


def test_expected_robustness(results):
    rows = tabulate(results, {})
    row = only_row(rows, name="nullspace", seed=1, metric="expected_robustness")
    assert row["value"] == pytest.approx((0.82 + 0.64 + 0.3) / 3)
    assert row["low"] < row["value"] < row["high"]
    assert row["notes"] == "expected robustness over the radii 0, 4/255, 8/255"
    difference = only_row(pairwise_differences(results, {}), metric="expected_robustness")
    assert difference["difference"] == pytest.approx((-0.1 + 0.1 + 0.2) / 3)


@pytest.mark.parametrize("missing", ["clean", "a radius", "own data"])
def test_expected_robustness_needs_several_radii_and_clean_images(results, missing):
    clean, weak, strong = results[:3]
    changed = {
        "clean": [weak, strong],
        "a radius": [clean, weak],
        "own data": [clean, dataclasses.replace(weak, is_own_data=False), strong],
    }
    assert "expected_robustness" not in set(tabulate(changed[missing], {})["metric"])


def test_varying_settings_are_columns():
    results = []
    for eps, lr in ((0.01, 1e-3), (0.1, 1e-4)):
        settings = {"nullspace": {"eps": eps}, "optim": {"lr": lr, "betas": [0.9]}, "method": {"noise": {"eps": eps}}}
        results.append(make_result(make_model(f"{eps}", method="nullspace", settings=settings), 0.9))
    settings = {"nullspace": {"eps": 0.03}, "optim": {"lr": 1e-4, "betas": [0.9]}, "method": {"beta": 6}}
    results.append(make_result(make_model("trades", method="trades", settings=settings), 0.9))
    for frame in (rows := tabulate(results, {}), aggregate_seeds(rows)):
        top1 = frame[frame["metric"] == "top1"]
        assert top1["optim.lr"].tolist() == [1e-3, 1e-4, 1e-4]
        assert top1["eps"].tolist()[:2] == [0.01, 0.1]
        assert np.isnan(top1["eps"].tolist()[2]), "TRADES has no nullspace noise"
        assert top1["method"].tolist() == ["nullspace", "nullspace", "trades"]
        assert not {"optim.betas", "method.noise.eps", "method.beta", "nullspace.eps"} & set(frame.columns)


def test_shape_bias():
    result = make_result(make_model(), 0.5, "cue_conflict", None, "shifted", is_own_data=False, is_stored=True)
    shape, texture = np.arange(50) < 15, np.arange(50) >= 45
    scores = dataclasses.replace(result.output.scores, extra={"shape": shape, "texture": texture})
    result = dataclasses.replace(result, output=dataclasses.replace(result.output, scores=scores))
    rows = tabulate([result], {})
    assert only_row(rows, metric="shape_accuracy")["value"] == pytest.approx(0.3)
    assert only_row(rows, metric="texture_accuracy")["value"] == pytest.approx(0.1)
    bias = only_row(rows, metric="shape_bias")
    assert bias["value"] == pytest.approx(15 / 20)
    low, high = stats.binom.interval(0.95, 20, 0.75)  # about: the number of decisions varies, too
    assert (bias["low"], bias["high"]) == pytest.approx((low / 20, high / 20), abs=0.07)


def test_intervals_of_analyses():
    measurements = [Measurement("learned", 1.0, "rms", i, value) for i, value in enumerate((0.01, 0.1, 1.0))]
    measurements += [Measurement("learned", 2.0, "rms", i, value) for i, value in enumerate((1.0, 2.0))]
    result = BenchmarkResult(make_model(), "noise", None, "analyzed", AnalysisResult(measurements, ["a", "b"]))
    rows = tabulate([result], {})
    assert 0 < only_row(rows, strength=1.0)["low"] < 0.37 < only_row(rows, strength=1.0)["high"]
    assert np.isnan(only_row(rows, strength=2.0)["low"]), "two noises have no interval"


def test_aggregate_seeds():
    results = [make_result(make_model(seed=seed), accuracy) for seed, accuracy in enumerate((0.5, 0.54, 0.6))]
    row = only_row(aggregate_seeds(tabulate(results, {})), metric="top1")
    low, high = stats.t.interval(0.95, 2, loc=1.64 / 3, scale=stats.sem([0.5, 0.54, 0.6]))
    assert (row["value"], row["low"], row["high"]) == pytest.approx((1.64 / 3, low, high))
    assert (row["runs"], row["over"]) == (3, "seeds")
    assert np.isnan(only_row(aggregate_seeds(tabulate(results[:2], {})), metric="top1")["low"]), "two seeds"
    single = only_row(aggregate_seeds(tabulate(results[:1], {})), metric="top1")
    assert (single["runs"], single["over"]) == (1, "images")
    assert 0 < single["low"] < single["high"] < 1


def test_bounds_of_accuracies_over_seeds_stay_in_range():
    results = [make_result(make_model(seed=seed), accuracy) for seed, accuracy in enumerate((0.0, 0.02, 0.0))]
    row = only_row(aggregate_seeds(tabulate(results, {})), metric="top1")
    assert row["low"] == 0
    assert row["high"] == pytest.approx(0.02 / 3 * (1 + stats.t.ppf(0.975, 2)))
    results = [make_result(make_model(seed=seed), accuracy) for seed, accuracy in enumerate((1.0, 0.98, 1.0))]
    assert only_row(aggregate_seeds(tabulate(results, {})), metric="top1")["high"] == 1


def test_no_image_right_under_attack():
    """0 of 50: Wilson's interval for top-1; none for ratios and means whose bootstrap has no spread."""
    rows = tabulate(make_results(make_model(), 0.9, 0.0, 0.0), {})
    top1 = only_row(rows, benchmark="pgd", strength=EPS[0], metric="top1")
    z = stats.norm.ppf(0.975)
    assert (top1["low"], top1["high"]) == pytest.approx((0, z**2 / (50 + z**2)), abs=1e-12)
    relative = only_row(rows, benchmark="pgd", strength=EPS[0], metric="relative_accuracy")
    assert relative["value"] == 0
    assert np.isnan([relative["low"], relative["high"]]).all()


def test_models_with_the_same_errors_have_no_interval():
    results = [make_result(make_model(name), 0.9) for name in ("clean", "nullspace")]
    row = only_row(pairwise_differences(results, {}), metric="top1")
    assert row["difference"] == 0
    assert np.isnan([row["images_low"], row["images_high"]]).all()


def test_paired_differences_over_seeds_and_over_images():
    results = []
    for name, weak in (("clean", 0.5), ("nullspace", 0.6)):
        for seed in range(3):
            results += make_results(make_model(name, seed), 0.9, weak + 0.04 * seed, 0.1, seed)
    row = only_row(pairwise_differences(results, SCORE), benchmark="pgd", strength=EPS[0])
    assert (row["name"], row["other"], row["seeds"], row["images"]) == ("nullspace", "clean", 3, 50)
    assert row["difference"] == pytest.approx(0.1)
    # All seeds differ by 0.1: no spread over seeds, but one over images.
    assert (row["seeds_low"], row["seeds_high"]) == pytest.approx((0.1, 0.1))
    assert 0 < row["images_low"] < 0.1 < row["images_high"] < 0.25
    score = only_row(pairwise_differences(results, SCORE), metric="score")
    assert score["difference"] == pytest.approx(3 * 0.05 / 4)


def test_paired_interval_is_narrower_than_unpaired(results):
    """Both models fail on the same images, so that most differences are 0."""
    row = only_row(pairwise_differences(results, {}), benchmark="clean")
    rows = tabulate(results, {})
    first = only_row(rows, name="clean", seed=0, benchmark="clean", metric="top1")
    second = only_row(rows, name="nullspace", seed=0, benchmark="clean", metric="top1")
    unpaired = (first["high"] - first["low"]) ** 2 + (second["high"] - second["low"]) ** 2
    assert (row["images_high"] - row["images_low"]) ** 2 < 0.9 * unpaired


def test_different_images_are_not_paired():
    results = [make_result(make_model("a"), 0.9, n=40), make_result(make_model("b"), 0.9, n=50)]
    assert pairwise_differences(results, {}).empty


def test_single_runs_without_a_common_seed_have_no_interval_over_seeds():
    results = [make_result(make_model("a", 0), 0.9), make_result(make_model("b", 1), 0.8)]
    row = only_row(pairwise_differences(results, {}), benchmark="clean")
    assert np.isnan(row["seeds_low"])
    assert row["difference"] == pytest.approx(-0.1)
    assert row["images_low"] < -0.1 < row["images_high"]


def test_runs_are_paired_with_the_only_run_of_another_name():
    """Pretrained weights have no seed: every run is paired with them, and the spread is that of the runs."""
    runs = [make_result(make_model("ft", seed), accuracy) for seed, accuracy in enumerate((0.2, 0.5, 0.8))]
    start = [make_result(make_model("start", None), 0.5)]
    for results in (start + runs, runs + start):
        row = only_row(pairwise_differences(results, {}), benchmark="clean")
        low, high = stats.t.interval(0.95, 2, loc=0, scale=stats.sem([0.2, 0.5, 0.8]))
        assert row["difference"] == pytest.approx(0, abs=1e-9)
        assert (row["seeds_low"], row["seeds_high"], row["seeds"]) == pytest.approx((low, high, 3))


def test_groups_without_a_common_seed_are_compared_by_their_means():
    first = [make_result(make_model("a", seed), accuracy) for seed, accuracy in ((0, 0.2), (1, 0.4))]
    second = [make_result(make_model("b", seed), accuracy) for seed, accuracy in ((2, 0.8), (3, 0.6))]
    row = only_row(pairwise_differences(first + second, {}), benchmark="clean")
    assert row["difference"] == pytest.approx(0.4)
    assert np.isnan(row["seeds_low"])
    assert row["images_low"] < 0.4 < row["images_high"]


def test_fraction_of_converged_noise_is_reported():
    result = make_result(make_model(), 0.9, "noise", 1.0, "noised")
    scores = dataclasses.replace(result.output.scores, extra={"converged": np.arange(50) < 20})
    result = dataclasses.replace(result, output=dataclasses.replace(result.output, scores=scores))
    assert only_row(tabulate([result], {}), metric="converged")["value"] == pytest.approx(0.4)


def test_failures_have_no_rows(results):
    failed = BenchmarkResult(results[0].model, "pgd", EPS[0], "attacked", None, "no memory")
    assert set(tabulate([results[0], failed], SCORE)["benchmark"]) == {"clean"}


def print_tables(rows):
    console = Console(file=io.StringIO(), width=150)
    console.print(*terminal_tables(aggregate_seeds(rows)))
    return console.file.getvalue()


def test_terminal_tables():
    results = [result for seed in range(3) for result in make_results(make_model(seed=seed), 0.9 + seed / 50, 0.5, 0.1)]
    rows = tabulate(results, SCORE)
    assert caption(rows, aggregate_seeds(rows)) == "top-1 in %, 50 test images; ± 95 % interval over seeds (t)"
    for part in ("92.0 ± 5.0", "pgd 4/255", "pgd, expected robustness", "score"):
        assert part in print_tables(rows)
    text = print_tables(rows[rows["seed"] == 0])
    assert "±" not in text, "one run has no spread over seeds"
    assert "90.0 [78.6, 95.7]" in text, "brackets are not markup"


def test_markdown(results):
    rows = tabulate(results, SCORE)
    lines = markdown(rows, aggregate_seeds(rows)).splitlines()
    assert lines[0] == "top-1 in %, 50 test images", "two seeds have no interval"
    assert lines[2] == "|  | clean | nullspace |"
    assert lines[4] == "| runs | 2 | 2 |"
    assert lines[5] == "| clean | 91.0 | 81.0 |"


def test_headings():
    assert ResultKey("pgd", "attacked", 4 / 255).heading == "pgd 4/255"
    assert ResultKey("pgd", "attacked", 0.1 / 255).heading == "pgd 0.1/255"
    assert ResultKey("pgd", "attacked", 0.3).heading == "pgd 0.3"
    assert ResultKey("pgd", "averaged", None).heading == "pgd, expected robustness"
    assert ResultKey("gaussian_noise", "corrupted", 0.2).heading == "gaussian_noise 0.2"
    assert ResultKey("clean", "clean", None).heading == "clean"


def test_csv_round_trip(results, tmp_path):
    output = dataclasses.replace(results[0].output, notes=("stored", "3 of 50 images cannot be read"))
    results[0] = dataclasses.replace(results[0], output=output)
    rows = tabulate(results, SCORE)
    write_csv(rows, tmp_path / "results.csv")
    na_values = dict.fromkeys(("strength", "eps", "low", "high"), "")
    read = pd.read_csv(tmp_path / "results.csv", keep_default_na=False, na_values=na_values)
    pd.testing.assert_frame_equal(read, rows, check_dtype=False)
    assert rows["notes"][0] == "stored; 3 of 50 images cannot be read"


def test_overview_is_an_image(results, tmp_path):
    overview(aggregate_seeds(tabulate(results, SCORE)), tmp_path / "results.png")
    with Image.open(tmp_path / "results.png") as image:
        assert image.width > 300
        assert len(image.convert("RGB").getcolors(100000)) > 20
