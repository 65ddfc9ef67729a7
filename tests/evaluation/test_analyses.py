"""Analyses: what they measure, that it is kept and found again, and that tables and the report show it."""

import dataclasses
from unittest import mock

import numpy as np
import pytest
import torch

from nsaug.evaluation import (
    ExactPair,
    NamedBenchmark,
    NoiseAnalysis,
    NoiseRadius,
    NoiseTransfer,
    ResultCache,
    Subset,
    run_suite,
)
from nsaug.evaluation.cache import AnalysisResult, CacheKey, Measurement
from nsaug.evaluation.reporting.aggregate import grouped, tabulate
from nsaug.evaluation.reporting.formatting import noise_lines
from nsaug.evaluation.reporting.report import write_report
from nsaug.nullspace import EpochSynthesis, influence
from nsaug.utils.errors import UserError
from tests.conftest import tiny_vit
from tests.evaluation.conftest import CLEAN, Images, data_of, subject

SYNTHESIS = EpochSynthesis(eps=0.01, limit=1.0, lr=0.1, units="relative", rounds=10, share=1.0)
NOISE = NoiseAnalysis(synthesis=SYNTHESIS, noises=3, alphas=(0.5, 1.0), mixes=(0.25,))
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


def values(findings, **wanted):
    return [m.value for m in findings.measures if all(getattr(m, key) == value for key, value in wanted.items())]


def test_each_kind_of_noise_is_measured_at_each_scale(small, many):
    done = []
    found = NOISE.run(small, Images(*many), 0, done.append)
    for metric in ("influence", "agreement", "confidence", "features"):
        for kind in KINDS:
            for alpha in (0.5, 1.0):
                assert len(values(found, condition=kind, strength=alpha, metric=metric)) == 3, (kind, metric)
        assert len(values(found, condition="sum", metric=metric)) == 3
        assert len(values(found, condition="mix", strength=0.25, metric=metric)) == 3
    assert len(set(found.ids)) == 12, "half of the images are judged"
    assert found.noises.shape == (3, 16, 24)
    assert len(found.pictures) == len(found.titles) == 5
    assert 0.3 < sum(done) / NOISE.work(24) < 3, "the forecast is of the right size"


def test_the_numbers_are_those_of_the_judged_images(small, many):
    """Forwards made by hand, on the images that were not learned on."""
    found = NOISE.run(small, Images(*many), 0, lambda work: None)
    judged = torch.stack([many[0][int(name.removeprefix("image"))] for name in found.ids])
    learned = torch.from_numpy(found.noises)
    with torch.no_grad():
        clean = small(judged)
        moved = [small(judged, 0.5 * noise[None]) for noise in learned]
        both = small(judged, (learned[0] + learned[1])[None])
        mixed = small(judged, (0.25 * learned[2] + 0.75 * learned[0])[None])
    expected = [float(influence(each, clean).mean()) for each in moved]
    assert values(found, condition="learned", strength=0.5, metric="influence") == pytest.approx(expected, rel=1e-4)
    stays = [float((each.argmax(1) == clean.argmax(1)).float().mean()) for each in moved]
    assert values(found, condition="learned", strength=0.5, metric="agreement") == pytest.approx(stays)
    assert values(found, condition="sum", metric="influence")[0] == pytest.approx(
        float(influence(both, clean).mean()), rel=1e-4
    )
    assert values(found, condition="mix", metric="influence")[2] == pytest.approx(
        float(influence(mixed, clean).mean()), rel=1e-4
    )
    norms = learned.flatten(1).square().mean(1).sqrt().tolist()
    for kind in KINDS - {"random, same influence"}:
        assert values(found, condition=kind, metric="rms") == pytest.approx(norms, rel=1e-4), kind


def test_learned_noise_is_learned(small):
    large = dataclasses.replace(SYNTHESIS, limit=3.0, eps=1e-6, rounds=40)
    images = torch.rand(120, 3, 8, 8, generator=torch.Generator().manual_seed(8))
    analysis = dataclasses.replace(NOISE, synthesis=large)
    found = analysis.run(small, Images(images, torch.zeros(120, dtype=int), 32), 0, lambda work: None)
    of = {kind: np.mean(values(found, condition=kind, strength=1.0, metric="influence")) for kind in KINDS}
    assert of["learned"] < 0.6 * min(of["permuted"], of["random, same norm"])
    assert of["random, same influence"] == pytest.approx(of["learned"], rel=0.25)
    weak = np.mean(values(found, condition="random, same influence", metric="rms"))
    assert weak < 0.8 * np.mean(values(found, condition="learned", metric="rms"))


def test_at_a_block(small, many):
    deep = dataclasses.replace(NOISE, synthesis=dataclasses.replace(SYNTHESIS, layer="blocks.1"), noises=1)
    found = deep.run(small, Images(*many), 0, lambda work: None)
    assert found.noises.shape == (1, 17, 24)
    assert found.pictures == []
    assert values(found, metric="overlap") == []
    assert values(found, condition="sum") == []


def test_the_radius(small, many):
    found = NoiseRadius(eps=(0.01, 0.05), noises=2, limits=(1.0,), updates=10).run(
        small, Images(*many), 0, lambda work: None
    )
    for condition in ("learned", "random"):
        low, high = (np.mean(values(found, condition=condition, strength=eps, metric="radius")) for eps in (0.01, 0.05))
        assert 0 < low < high
    unit = values(found, metric="radius")[0] / values(found, metric="relative radius")[0]
    judged = torch.stack([many[0][int(name.removeprefix("image"))] for name in found.ids])
    with torch.no_grad():
        rms = float(small.activations(judged[:4]).square().mean().sqrt())
    assert unit == pytest.approx(rms, rel=1e-4)


def test_the_exact_pair(many):
    """Patches of 48 values in 24 dimensions: half of what an image is, the model cannot see."""
    vit = tiny_vit(patch_size=4, img_size=8).eval()
    found = ExactPair().run(vit, Images(*many), 0, lambda work: None)
    assert values(found, metric="nullity") == [24.0]
    assert values(found, metric="pixels")[0] > 0.05
    assert values(found, metric="logits")[0] < 1e-6 < 1e-2 < values(found, metric="targets")[0]
    assert found.titles[0].removeprefix("image") == found.titles[1].removeprefix("its pair"), "one prediction of 1"
    assert vit.mean.dtype == torch.float32
    none = ExactPair().run(tiny_vit().eval(), Images(*many), 0, lambda work: None)
    assert [(m.metric, m.value) for m in none.measures] == [("nullity", 0.0)]


def test_one_image_is_too_few(small, many):
    with pytest.raises(UserError, match="needs two images at least"):
        NOISE.run(small, Images(many[0][:1], many[1][:1]), 0, lambda work: None)


def test_findings_are_kept_as_they_are(tmp_path, small, many):
    found = NOISE.run(small, Images(*many), 0, lambda work: None)
    store, identity = ResultCache(tmp_path), CacheKey("x", "noise", {"a": 1})
    store.keep(identity, found)
    again = store.find(identity)
    assert isinstance(again, AnalysisResult)
    assert again.measures == found.measures
    assert (again.ids, again.titles) == (found.ids, found.titles)
    np.testing.assert_array_equal(again.noises, found.noises)
    np.testing.assert_array_equal(again.pictures, found.pictures)


@pytest.fixture
def before_and_after(tmp_path, many):
    """Two models on a suite with every analysis, judged once and found again."""
    before, after = tiny_vit().eval(), tiny_vit().eval()
    with torch.no_grad():
        after.model.head.weight.mul_(0.5)
    models = {"before": before, "after": after}
    entries = [
        NamedBenchmark("moved", NoiseTransfer(of="noise")),
        CLEAN,
        NamedBenchmark("noise", NOISE),
        NamedBenchmark("radius", NoiseRadius(noises=2, limits=(1.0,), updates=5)),
        NamedBenchmark("exact", ExactPair()),
    ]

    def go():
        return list(
            run_suite(
                [subject("before", None), subject("after")], entries, lambda of: (models[of.name], data_of(*many)),
                ResultCache(tmp_path), Subset(), lambda title, work: None,
            )
        )  # fmt: skip

    return models, go


def test_noise_is_transferred_between_models(before_and_after, many, monkeypatch):
    models, go = before_and_after
    outcomes = go()
    assert [(o.subject.name, o.entry.name) for o in outcomes[-2:]] == [("before", "moved"), ("after", "moved")]
    moved = outcomes[-1].result
    assert {m.condition for m in moved.measures} == {"from before"}
    given = next(o.result for o in outcomes if o.subject.name == "before" and o.entry.name == "noise")
    judged = torch.stack([many[0][int(name.removeprefix("image"))] for name in moved.ids])
    assert set(moved.ids) == set(given.ids), "noise is judged on no image that it was learned on"
    with torch.no_grad():
        vit, noise = models["after"], torch.from_numpy(given.noises[:1])
        expected = float(influence(vit(judged, noise), vit(judged)).mean())
    assert values(moved, metric="influence")[0] == pytest.approx(expected, rel=1e-4)

    monkeypatch.setattr(NoiseAnalysis, "run", mock.Mock(side_effect=AssertionError))
    monkeypatch.setattr(NoiseTransfer, "run", mock.Mock(side_effect=AssertionError))
    assert go()[-1].result.measures == moved.measures, "found again"


def test_the_table_holds_means_over_noises(before_and_after):
    _, go = before_and_after
    outcomes = go()
    rows = tabulate(outcomes, None)
    row = rows[
        (rows["name"] == "after") & (rows["condition"] == "learned") & (rows["strength"] == 0.5)
        & (rows["metric"] == "influence")
    ].iloc[0]  # fmt: skip
    found = next(o.result for o in outcomes if o.subject.name == "after" and o.entry.name == "noise")
    each = values(found, condition="learned", strength=0.5, metric="influence")
    assert row["value"] == pytest.approx(np.mean(each))
    half = 4.302652729911275 * np.std(each, ddof=1) / 3**0.5  # Student's t, two degrees of freedom
    assert row["high"] - row["value"] == pytest.approx(half)
    assert (row["over"], row["n"]) == ("noises", 12)
    assert set(rows[rows["condition"] == "clean"]["over"]) == {"images"}


def test_the_report_shows_it_side_by_side(before_and_after, tmp_path):
    _, go = before_and_after
    outcomes = go()
    rows = tabulate(outcomes, None)
    write_report(rows, outcomes, None, [str(i) for i in range(10)], {"suite": "nullspace"}, tmp_path)
    page = (tmp_path / "report.html").read_text()
    for text in ("What nullspace noise is like", "Predictions that stay", "image with permuted noise", "from before"):
        assert text in page
    lines = dict(noise_lines(grouped(rows)))
    assert {"influence, learned", "agreement, permuted", "influence, mix, 0.25", "radius, random, 0.03"} <= set(lines)
    assert lines["agreement, from before"][0] == "-"
    assert "±" in lines["influence, learned"][1]
    assert "influence, learned" in (tmp_path / "results.md").read_text()


def test_a_suite_of_analyses_alone(tmp_path):
    from nsaug.evaluation import BenchmarkResult

    found = AnalysisResult([Measurement("learned", 1.0, "influence", 0, 0.1)], ["a", "b"])
    outcomes = [BenchmarkResult(subject("before"), NamedBenchmark("noise", NOISE), found)]
    write_report(tabulate(outcomes, None), outcomes, None, ["0"], {"suite": "x"}, tmp_path)
    assert "holds analyses alone" in (tmp_path / "report.html").read_text()
