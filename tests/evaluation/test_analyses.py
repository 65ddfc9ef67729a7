"""Analyses: their numbers, their cache entries, and how tables and the report show them."""

import dataclasses
from unittest import mock

import numpy as np
import pytest
import torch

from nsaug.evaluation import (
    AnalysisResult,
    BenchmarkResult,
    Clean,
    Entry,
    Measurement,
    NoiseAnalysis,
    NoiseRadius,
    NoiseTransfer,
    NullspacePair,
    ResultCache,
)
from nsaug.evaluation.analyses import AnalysisImages
from nsaug.evaluation.reporting.aggregate import aggregate_seeds, tabulate
from nsaug.evaluation.reporting.formatting import analysis_lines
from nsaug.evaluation.reporting.report import write_report
from nsaug.nullspace import UniversalConfig, influence
from tests.conftest import tiny_vit
from tests.evaluation.conftest import evaluate, make_data, make_model, make_plan

SYNTHESIS = UniversalConfig(eps=0.01, init_scale=1.0, lr=0.1, num_passes=10, data_fraction=1.0)
NOISE = NoiseAnalysis(synthesis=SYNTHESIS, num_noises=3, alphas=(0.5, 1.0), mix_weights=(0.25,))
KINDS = {
    *("learned", "permuted", "permuted within", "permuted across"),
    *("random, same norm", "random, same influence"),
}


@pytest.fixture
def many():
    rng = torch.Generator().manual_seed(8)
    return torch.rand(24, 3, 8, 8, generator=rng), torch.randint(10, (24,), generator=rng)


@pytest.fixture
def small():
    return tiny_vit().eval()


def run(analysis, vit, many, batch_size=4):
    ids = [f"image{index}" for index in range(len(many[0]))]
    return analysis.analyze(vit, AnalysisImages(many[0], ids, batch_size), 0, {})


def values(result, **where):
    return [m.value for m in result.measurements if all(getattr(m, key) == value for key, value in where.items())]


def images_of(result, many):
    """The images that a result was measured on."""
    return torch.stack([many[0][int(image_id.removeprefix("image"))] for image_id in result.ids])


def mean_influence(logits, clean):
    return float(influence(logits, clean).mean())


def test_every_kind_of_noise_is_measured_at_every_scale(small, many):
    result = run(NOISE, small, many)
    for metric in ("influence", "agreement", "confidence_change", "feature_change"):
        for kind in KINDS:
            for alpha in (0.5, 1.0):
                assert len(values(result, condition=kind, strength=alpha, metric=metric)) == 3, (kind, metric)
        assert len(values(result, condition="sum", metric=metric)) == 3
        assert len(values(result, condition="mix", strength=0.25, metric=metric)) == 3
    assert len(set(result.ids)) == 12, "measured on half of the images"
    assert result.noises.shape == (3, 16, 24)
    assert len(result.images) == len(result.titles) == 5


def test_numbers_equal_forward_passes_by_hand(small, many):
    result = run(NOISE, small, many)
    images, learned = images_of(result, many), torch.from_numpy(result.noises)
    with torch.no_grad():
        clean = small(images)
        noisy = [small(images, 0.5 * noise[None]) for noise in learned]
        added = small(images, (learned[0] + learned[1])[None])
        mixed = small(images, (0.25 * learned[2] + 0.75 * learned[0])[None])
    half = {"condition": "learned", "strength": 0.5}
    expected = [mean_influence(logits, clean) for logits in noisy]
    assert values(result, **half, metric="influence") == pytest.approx(expected, rel=1e-4)
    agreement = [float((logits.argmax(1) == clean.argmax(1)).float().mean()) for logits in noisy]
    assert values(result, **half, metric="agreement") == pytest.approx(agreement)
    sums, mixes = (values(result, condition=condition, metric="influence") for condition in ("sum", "mix"))
    assert sums[0] == pytest.approx(mean_influence(added, clean), rel=1e-4)
    assert mixes[2] == pytest.approx(mean_influence(mixed, clean), rel=1e-4)
    norms = learned.flatten(1).square().mean(1).sqrt().tolist()
    for kind in KINDS - {"random, same influence"}:
        assert values(result, condition=kind, metric="rms") == pytest.approx(norms, rel=1e-4), kind


def test_learned_noise_has_less_influence_than_random_noise(small):
    synthesis = dataclasses.replace(SYNTHESIS, init_scale=3.0, eps=1e-6, num_passes=40)
    images = torch.rand(120, 3, 8, 8, generator=torch.Generator().manual_seed(8))
    analysis = dataclasses.replace(NOISE, synthesis=synthesis)
    result = run(analysis, small, [images], 32)
    means = {kind: np.mean(values(result, condition=kind, strength=1.0, metric="influence")) for kind in KINDS}
    assert means["learned"] < 0.6 * min(means["permuted"], means["random, same norm"])
    assert means["random, same influence"] == pytest.approx(means["learned"], rel=0.25)
    random_rms = np.mean(values(result, condition="random, same influence", metric="rms"))
    assert random_rms < 0.8 * np.mean(values(result, condition="learned", metric="rms"))


def test_noise_at_a_block(small, many):
    analysis = dataclasses.replace(NOISE, synthesis=dataclasses.replace(SYNTHESIS, layer="blocks.1"), num_noises=1)
    result = run(analysis, small, many)
    assert result.noises.shape == (1, 17, 24)
    assert result.images == []
    assert values(result, metric="unreachable_energy") == []
    assert values(result, condition="sum") == []


def test_radius(small, many):
    result = run(NoiseRadius(eps=(0.01, 0.05), num_noises=2, init_scales=(1.0,), num_updates=10), small, many)
    for condition in ("learned", "random"):
        low, high = (
            np.mean(values(result, condition=condition, strength=eps, metric="radius")) for eps in (0.01, 0.05)
        )
        assert 0 < low < high
    unit = values(result, metric="radius")[0] / values(result, metric="relative radius")[0]
    with torch.no_grad():
        rms = float(small.activations(images_of(result, many)[:4]).square().mean().sqrt())
    assert unit == pytest.approx(rms, rel=1e-4)


def test_nullspace_pair(many):
    """Patches of 48 values are embedded in 24 dimensions: the nullspace has the other 24."""
    vit = tiny_vit(patch_size=4, img_size=8).eval()
    result = run(NullspacePair(), vit, many)
    assert values(result, metric="nullity") == [24.0]
    assert values(result, metric="pixels")[0] > 0.05
    assert values(result, metric="logits")[0] < 1e-6 < 1e-2 < values(result, metric="targets")[0]
    assert result.titles[0].removeprefix("image") == result.titles[1].removeprefix("pair"), "the same prediction"
    assert vit.mean.dtype == torch.float32
    without_nullspace = run(NullspacePair(), tiny_vit().eval(), many)
    assert [(m.metric, m.value) for m in without_nullspace.measurements] == [("nullity", 0.0)]


def test_one_image_is_too_few(small, many, tmp_path):
    load = lambda model: (small, make_data(many[0][:1], many[1][:1]))  # noqa: E731
    (result,) = evaluate([Entry("noise", NOISE)], load, tmp_path)
    assert "needs at least two images" in result.failure


def test_cache_round_trip(tmp_path, small, many):
    result = dataclasses.replace(run(NOISE, small, many), notes=("a note",))
    cache = ResultCache(tmp_path)
    cache.save("key", "title", result)
    loaded = cache.load("key")
    assert isinstance(loaded, AnalysisResult)
    assert loaded.measurements == result.measurements
    assert (loaded.ids, loaded.titles, loaded.notes) == (result.ids, result.titles, result.notes)
    np.testing.assert_array_equal(loaded.noises, result.noises)
    np.testing.assert_array_equal(loaded.images, result.images)


@pytest.fixture
def vits():
    before, after = tiny_vit().eval(), tiny_vit().eval()
    with torch.no_grad():
        after.model.head.weight.mul_(0.5)
    return {"before": before, "after": after}


@pytest.fixture
def suite(vits, tmp_path, many):
    """Runs two models on a suite with every analysis."""
    entries = [
        Entry("transfer", NoiseTransfer(source="noise")),
        Entry("clean", Clean()),
        Entry("noise", NOISE),
        Entry("radius", NoiseRadius(num_noises=2, init_scales=(1.0,), num_updates=5)),
        Entry("exact", NullspacePair()),
    ]

    def run():
        models = [make_model("before", None), make_model("after")]
        return evaluate(entries, lambda model: (vits[model.name], make_data(*many)), tmp_path, models)

    return run


def output_of(results, model, benchmark):
    return next(r.output for r in results if r.model.name == model and r.name == benchmark)


def test_noise_transfers_between_models(suite, vits, many, monkeypatch):
    results = suite()
    assert [(r.model.name, r.name) for r in results[-2:]] == [("before", "transfer"), ("after", "transfer")]
    transferred, learned = results[-1].output, output_of(results, "before", "noise")
    assert {m.condition for m in transferred.measurements} == {"from before"}
    assert set(transferred.ids) == set(learned.ids), "not measured on images that noise was learned on"
    images = images_of(transferred, many)
    with torch.no_grad():
        vit, noise = vits["after"], torch.from_numpy(learned.noises[:1])
        expected = mean_influence(vit(images, noise), vit(images))
    assert values(transferred, metric="influence")[0] == pytest.approx(expected, rel=1e-4)

    monkeypatch.setattr(NoiseAnalysis, "analyze", mock.Mock(side_effect=AssertionError))
    monkeypatch.setattr(NoiseTransfer, "analyze", mock.Mock(side_effect=AssertionError))
    assert suite()[-1].output.measurements == transferred.measurements, "loaded from the cache"


def test_table_has_means_over_noises(suite):
    results = suite()
    rows = tabulate(results, {})
    row = rows[
        (rows["name"] == "after") & (rows["condition"] == "learned") & (rows["strength"] == 0.5)
        & (rows["metric"] == "influence")
    ].iloc[0]  # fmt: skip
    per_noise = values(output_of(results, "after", "noise"), condition="learned", strength=0.5, metric="influence")
    assert row["value"] == pytest.approx(np.mean(per_noise))
    spread = np.std(np.log(per_noise), ddof=1)
    half_width = 4.302652729911275 * spread / 3**0.5  # Student's t, two degrees of freedom
    assert row["high"] / row["value"] == pytest.approx(np.exp(half_width))
    assert (row["over"], row["n"]) == ("noises", 12)
    assert set(rows[rows["condition"] == "clean"]["over"]) == {"images"}


def test_report_shows_models_side_by_side(suite, tmp_path):
    results = suite()
    rows = write_report(results, {}, {"suite": "nullspace"}, tmp_path)
    page = (tmp_path / "report.html").read_text()
    for text in ("Analysis of nullspace noise", "Unchanged predictions", "image with permuted noise", "from before"):
        assert text in page
    lines = dict(analysis_lines(aggregate_seeds(rows)))
    assert {"influence, learned", "agreement, permuted", "influence, mix, 0.25", "radius, random, 0.03"} <= set(lines)
    assert lines["agreement, from before"][0] == "-"
    assert "[" in lines["influence, learned"][1], "an interval of a positive quantity is not symmetric"
    assert rows[rows["metric"] == "agreement"]["high"].max() <= 1
    assert "influence, learned" in (tmp_path / "results.md").read_text()


def test_report_of_analyses_only(tmp_path):
    output = AnalysisResult([Measurement("learned", 1.0, "influence", 0, 0.1)], ["a", "b"])
    results = [BenchmarkResult(make_model("before"), "noise", None, "analyzed", output)]
    write_report(results, {}, {"suite": "x"}, tmp_path)
    assert "this suite has analyses only" in (tmp_path / "report.html").read_text()


def test_analyses_are_computed_again_with_another_batch_size(small, many):
    """Noise is learned batch by batch."""
    load = lambda model: (small, make_data(*many))  # noqa: E731
    keys = [make_plan([Entry("noise", NOISE)], load, block_size=size).units[0].key for size in (4, 4, 8)]
    assert keys[0] == keys[1] != keys[2]
