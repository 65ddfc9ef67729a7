import copy
import dataclasses

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from nsaug.attacks import FGSM, PGD
from nsaug.corruptions import Corruption, GaussianNoise
from nsaug.data import Digits, ImageNetC
from nsaug.evaluation import Benchmark
from nsaug.evaluation.benchmarks import split_on_oom
from nsaug.models.noisy_vit import NoisyViT
from nsaug.nullspace import NullspaceNoise
from nsaug.utils.errors import UserError
from tests.evaluation.conftest import Images

ATTACK = Benchmark(attack=PGD(num_steps=3), param="eps", strengths=["4/255", 0.3])
CORRUPTION = Benchmark(corruption=GaussianNoise(), param="std", strengths=[0.05, 0.3])
NOISE = Benchmark(noise=NullspaceNoise(num_steps=2), param="init_scale", strengths=[0.5, 1.0])


def settings_of(benchmark):
    """Constructor arguments of a benchmark."""
    return {key: value for key, value in vars(benchmark).items() if value and not key.startswith("_")}


def run(benchmark, vit, images, labels, size=4, seed=0):
    num_forwards = []
    class_subset = benchmark.class_subset(Digits().test_dataset())
    loader = Images(images, labels, size)
    result = benchmark.run(vit, loader, seed, num_forwards.append, class_subset=class_subset)
    assert sum(num_forwards) == benchmark.num_forwards(len(images))
    assert result.ids == [f"image{index}" for index in range(len(images))]
    assert result.strengths == benchmark.evaluated_strengths
    return result


def test_masked_gradients_are_logged(vit, images, caplog):
    labels = vit.eval()(images).argmax(1)
    run(ATTACK, vit, images, labels)
    assert "may overestimate" not in caplog.text
    with torch.no_grad():
        vit.model.head.weight.mul_(1e6)
        vit.model.head.bias.mul_(1e6)
    run(ATTACK, vit, images, labels)
    assert "PGD may overestimate this model's robustness: the loss has no gradient at 4 of 4 images" in caplog.text


def test_attack_that_leaves_the_unit_box_is_an_error(vit, images):
    class Broken(PGD):
        def __call__(self, *args):
            return super().__call__(*args) + 0.5

    broken = Benchmark(attack=Broken(num_steps=1), param="eps", strengths=(0.1,))
    with pytest.raises(RuntimeError, match=r"Broken returned images outside \[0, 1\]"):
        run(broken, vit, images, torch.zeros(6, dtype=torch.long))


def test_corruption_draws_do_not_depend_on_other_severities(vit, images):
    labels = torch.zeros(6, dtype=torch.long)

    def samples(name, *severities):
        benchmark = Benchmark(corruption=Corruption(name=name), param="severity", strengths=severities)
        return dict(zip(severities, run(benchmark, vit, images, labels).sample_images, strict=True))

    two, one = samples("gaussian_noise", 1, 4), samples("gaussian_noise", 4)
    np.testing.assert_array_equal(two[4], one[4])
    clean = (images.permute(0, 2, 3, 1).numpy() * 255).round()
    noises = [samples(name, 3)[3] - clean for name in ("gaussian_noise", "speckle_noise")]
    assert abs(np.corrcoef(*(noise.ravel() for noise in noises))[0, 1]) < 0.3, "corruptions have independent draws"


def test_clean(vit, images):
    logits = vit.eval()(images)
    labels = logits.argmax(1)
    labels[:2] += 1
    result = run(Benchmark(), vit, images, labels % 10)
    (scores,) = result.scores
    assert scores.top1.tolist() == [False, False, True, True, True, True]
    np.testing.assert_allclose(scores.confidence, logits.softmax(-1).amax(-1).detach())
    np.testing.assert_array_equal(scores.prediction, logits.argmax(1))
    assert result.sample_indices == list(range(6))
    expected = (images.permute(0, 2, 3, 1) * 255).round().byte()
    np.testing.assert_array_equal(result.sample_images[0], expected)


def test_sample_images_are_spread_over_the_data_set(vit, images):
    """Data sets are often sorted by class."""
    many = images.repeat(5, 1, 1, 1) * torch.linspace(0.1, 1, 30, dtype=torch.float64).view(-1, 1, 1, 1)
    result = run(ATTACK, vit, many, torch.zeros(30, dtype=torch.long), size=7)
    assert result.sample_indices == [0, 6, 12, 17, 23, 29]
    assert result.sample_images.shape == (2, 6, 8, 8, 3)
    difference = many[result.sample_indices].permute(0, 2, 3, 1).numpy() * 255 - result.sample_images[0]
    assert np.abs(difference).max() <= 4.51


def test_logits_that_are_not_finite_are_an_error(vit, images):
    vit.model.head.bias.data[0] = float("nan")
    with pytest.raises(RuntimeError, match="not finite"):
        run(Benchmark(), vit, images, torch.zeros(6, dtype=torch.long))


def test_attack_at_two_strengths(vit, images):
    labels = vit.eval()(images).argmax(1)
    benchmark = Benchmark(attack=FGSM(), param="eps", strengths=["4/255", 0.3])
    result = run(benchmark, vit, images, labels)
    for strength, scores in zip((4 / 255, 0.3), result.scores, strict=True):
        attacked = FGSM(eps=strength)(vit, images, labels)
        np.testing.assert_array_equal(scores.prediction, vit(attacked).argmax(1))
    assert not result.scores[1].top1.all()
    assert benchmark.condition == "attacked"


def test_nullspace_noise_is_refined_on_the_model(vit, images):
    labels = vit.eval()(images).argmax(1)
    start = Benchmark(noise=NullspaceNoise(num_steps=0, eps=0.001), param="init_scale", strengths=[1.0])
    refined = Benchmark(noise=NullspaceNoise(num_steps=10, eps=0.001), param="init_scale", strengths=[1.0])
    clean, before, after = (
        run(benchmark, vit, images, labels).scores[0] for benchmark in (Benchmark(), start, refined)
    )
    assert np.abs(after.nll - clean.nll).mean() < 0.7 * np.abs(before.nll - clean.nll).mean()
    assert before.converged.mean() < after.converged.mean()
    assert np.isnan(clean.converged).all()


@pytest.mark.parametrize("benchmark", [ATTACK, CORRUPTION, NOISE], ids=["attack", "corruption", "noise"])
def test_results_depend_on_the_seed_but_not_on_the_batch_size(vit, images, benchmark):
    labels = vit.eval()(images).argmax(1)
    one_batch = run(benchmark, vit, images, labels, size=6)
    single_images = run(benchmark, vit, images, labels, size=1)
    other_seed = run(benchmark, vit, images, labels, size=6, seed=1)
    for i in range(2):
        np.testing.assert_allclose(one_batch.scores[i].nll, single_images.scores[i].nll, rtol=1e-6)
        assert np.abs(one_batch.scores[i].nll - other_seed.scores[i].nll).max() > 1e-6


def test_split_on_oom_halves_the_batch(images, labels):
    sizes = []

    def limited(images, labels, ids):
        sizes.append(len(images))
        if len(images) > 2:
            raise torch.OutOfMemoryError("no memory")
        return images.sum((1, 2, 3)), images

    ids = [str(index) for index in range(6)]
    sums, outputs = split_on_oom(limited, images, labels, ids)
    torch.testing.assert_close(sums, images.sum((1, 2, 3)))
    torch.testing.assert_close(outputs, images)
    assert sizes == [6, 3, 1, 2, 3, 1, 2]


def test_split_on_oom_raises_other_errors(images, labels):
    ids = [str(index) for index in range(6)]

    def never_fits(images, labels, ids):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    with pytest.raises(RuntimeError, match="allocate"):
        split_on_oom(never_fits, images, labels, ids)

    sizes = []

    def broken(images, labels, ids):
        sizes.append(len(images))
        raise RuntimeError("shape mismatch")

    with pytest.raises(RuntimeError, match="shape"):
        split_on_oom(broken, images, labels, ids)
    assert sizes == [6], "only out-of-memory errors are tried again"


@pytest.mark.parametrize(
    "settings",
    [
        {"attack": PGD(), "corruption": GaussianNoise(), "param": "eps", "strengths": [0.1]},
        {"attack": PGD(), "noise": NullspaceNoise(), "param": "eps", "strengths": [0.1]},
        {"noise": NullspaceNoise(scope="per_batch"), "param": "eps", "strengths": [0.1]},
        {"attack": PGD()},
        {"param": "eps", "strengths": [0.1]},
        {"attack": PGD(), "param": "eps", "strengths": [7]},
        {"attack": PGD(), "param": "epsilon", "strengths": [0.1]},
    ],
)
def test_contradicting_settings_are_refused(settings):
    with pytest.raises((ValidationError, TypeError)):
        Benchmark(**settings)


def mask_logits(vit, class_subset):
    """A copy of the model whose logits of other classes are masked, as in papers."""

    class Masked(NoisyViT):
        def forward(self, *args, **kwargs):
            logits = super().forward(*args, **kwargs)
            mask = torch.full_like(logits[0], -1e9)
            mask[class_subset] = 0
            return logits + mask

    masked = copy.deepcopy(vit)
    masked.__class__ = Masked
    return masked


@pytest.mark.parametrize(
    "settings", [{}, settings_of(ATTACK), settings_of(CORRUPTION)], ids=["clean", "attack", "corruption"]
)
def test_restricted_classes_equal_masked_logits(vit, images, settings):
    class_subset = [1, 2, 7]
    labels = torch.tensor([1, 2, 7, 7, 2, 1])
    restricted = run(Benchmark(classes=class_subset, **settings), vit, images, labels)
    masked = run(Benchmark(**settings), mask_logits(vit, class_subset), images, labels)
    unrestricted = run(Benchmark(**settings), vit, images, labels)
    for scores, expected in zip(restricted.scores, masked.scores, strict=True):
        for field in ("label", "prediction", "confidence", "top1", "nll", "brier"):
            np.testing.assert_allclose(getattr(scores, field), getattr(expected, field), err_msg=field)
    assert set(restricted.scores[0].prediction) <= set(class_subset)
    assert not set(unrestricted.scores[0].prediction) <= set(class_subset)
    np.testing.assert_array_equal(restricted.sample_images, masked.sample_images)
    assert vit(images).shape == (6, 10), "the restriction is undone"


def test_noise_is_restricted_to_the_classes(vit, images):
    """With a single class, the probability is always 1 and every noise has no influence."""
    result = run(Benchmark(classes=[4], **settings_of(NOISE)), vit, images, torch.full((6,), 4))
    assert result.scores[0].top1.all()
    assert result.scores[0].converged.all()


def test_sets_of_labels(vit, images):
    """A set counts as one class with the summed probability of its members."""
    probabilities = vit.eval()(images).softmax(-1).detach()
    ranked = probabilities.argsort(-1, descending=True)
    label_sets = torch.stack([ranked[:, 3], ranked[:, 0], torch.full((6,), -1)], 1)
    label_sets[:2, 1] = ranked[:2, 8]
    (scores,) = run(Benchmark(), vit, images, label_sets).scores
    assert scores.top1.tolist() == [False, False, True, True, True, True]
    assert scores.top5.all()
    for i in range(6):
        members = [label for label in label_sets[i].tolist() if label >= 0]
        total = probabilities[i, members].sum()
        assert scores.nll[i] == pytest.approx(-float(total.log()))
        others = [label for label in range(10) if label not in members]
        assert scores.brier[i] == pytest.approx(float((1 - total) ** 2 + (probabilities[i, others] ** 2).sum()))
        assert scores.label[i] == min(members)
    classes = sorted({*ranked[:, 3].tolist(), *ranked[:, 8].tolist(), *ranked[:, 0].tolist()})
    (restricted,) = run(Benchmark(classes=classes), vit, images, label_sets).scores
    np.testing.assert_array_equal(restricted.top1, scores.top1)
    np.testing.assert_array_equal(restricted.label, scores.label)


def test_stored_corruptions(vit, images):
    stored = Benchmark(data=ImageNetC(root="nowhere", corruption="fog", severities=(2, 5)))
    assert (stored.condition, stored.corruption_name, stored.evaluated_strengths) == ("corrupted", "fog", (2, 5))
    two_severities = torch.stack([images, images.flip(0)], 1)
    labels = vit.eval()(images).argmax(1)
    first, second = run(stored, vit, two_severities, labels).scores
    assert first.top1.all()
    np.testing.assert_array_equal(second.prediction, labels.flip(0))
    for benchmark in (ATTACK, CORRUPTION, NOISE):
        with pytest.raises(ValidationError, match="stored corruptions take no attack"):
            dataclasses.replace(benchmark, data=stored.data)


def test_unreadable_images_are_left_out(vit, images):
    """A batch that is None, and an incomplete one."""
    labels = vit.eval()(images).argmax(1)

    class PartlyReadable(Images):
        def __iter__(self):
            first, second = super().__iter__()
            yield None
            yield tuple(values[1:] for values in first)
            yield second

        def __getitem__(self, index):
            return None if index == 0 else super().__getitem__(index)

    for benchmark in (Benchmark(), NOISE):
        result = benchmark.run(vit, PartlyReadable(images, labels), 0, lambda count: None)
        assert result.ids == [f"image{index}" for index in range(1, 6)]
        assert result.sample_images.shape[1] == len(result.sample_indices) == 5

    class Unreadable(Images):
        def __iter__(self):
            yield None

    with pytest.raises(UserError, match="none of the 6 images can be read"):
        Benchmark().run(vit, Unreadable(images, labels), 0, lambda count: None)
