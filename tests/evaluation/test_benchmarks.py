"""Benchmarks: scores equal those of forward passes by hand, at any block size."""

import copy
import dataclasses

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from nsaug.attacks import FGSM, PGD, EmbeddingPGD
from nsaug.corruptions import Corruption, GaussianNoise
from nsaug.data import CueConflict
from nsaug.evaluation import Clean, Entry, UnderAttack, UnderCorruption, UnderNoise
from nsaug.evaluation.benchmarks import Batch, Constants, ShapeBias, UnderEmbeddingAttack
from nsaug.evaluation.benchmarks.base import split_on_oom
from nsaug.evaluation.metrics import PerImageScores, score_logits
from nsaug.models.noisy_vit import NoisyViT
from nsaug.nullspace import NullspaceNoise
from tests.evaluation.conftest import evaluate, make_data

ATTACK = UnderAttack(attack=PGD(num_steps=3, eps=0.3))
CORRUPTION = UnderCorruption(corruption=GaussianNoise(std=0.3))
NOISE = UnderNoise(noise=NullspaceNoise(num_steps=2, init_scale=1.0))
EMBEDDING = UnderEmbeddingAttack(attack=EmbeddingPGD(eps=0.5, num_steps=3))
ALL = pytest.mark.parametrize(
    "benchmark", [Clean(), ATTACK, CORRUPTION, NOISE, EMBEDDING], ids=lambda benchmark: type(benchmark).__name__
)


@pytest.fixture
def run(vit, images, labels, tmp_path):
    """Run one benchmark; returns its PerImageResult, with the images in their original order."""
    count = 0

    def run(benchmark, labels=labels, vit=vit, images=images, **kwargs):
        nonlocal count
        count += 1
        (result,) = evaluate(
            [Entry("benchmark", benchmark)],
            lambda model: (vit, make_data(images, labels)),
            tmp_path / str(count),
            **kwargs,
        )
        assert result.failure is None
        order = np.argsort([int(image_id.removeprefix("image")) for image_id in result.output.ids])
        scores = result.output.scores
        arrays = {
            name: getattr(scores, name)[order] for name in vars(scores) if name not in ("extra", "inputs", "notes")
        }
        extra = {name: values[order] for name, values in scores.extra.items()}
        return dataclasses.replace(result.output, scores=PerImageScores(**arrays, extra=extra))

    return run


def test_clean(run, vit, images):
    logits = vit.eval()(images)
    labels = logits.argmax(1)
    labels[:2] += 1
    result = run(Clean(), labels % 10)
    assert result.scores.top1.tolist() == [False, False, True, True, True, True]
    np.testing.assert_allclose(result.scores.confidence, logits.softmax(-1).amax(-1).detach())
    np.testing.assert_array_equal(result.scores.prediction, logits.argmax(1))
    first = [int(image_id.removeprefix("image")) for image_id in result.ids[:4]]
    expected = (images[first].permute(0, 2, 3, 1) * 255).round().byte()
    np.testing.assert_array_equal(result.sample_images, expected, "the first images of the first block")


def test_attack_equals_the_attack_itself(run, vit, images):
    labels = vit.eval()(images).argmax(1)
    result = run(UnderAttack(attack=FGSM(eps=0.3)), labels)
    np.testing.assert_array_equal(result.scores.prediction, vit(FGSM(eps=0.3)(vit, images, labels)).argmax(1))
    assert not result.scores.top1.all()


def test_masked_gradients_are_noted(run, vit, images):
    labels = vit.eval()(images).argmax(1)
    assert run(ATTACK, labels).notes == ()
    with torch.no_grad():
        vit.model.head.weight.mul_(1e6)
        vit.model.head.bias.mul_(1e6)
    (note,) = run(ATTACK, labels).notes
    assert note.startswith("PGD may overestimate this model's robustness: the loss has no gradient at 6 of 6 images")


def test_attack_that_leaves_the_unit_box_fails(vit, images, labels, tmp_path):
    class Broken(PGD):
        def __call__(self, *args):
            return super().__call__(*args) + 0.5

    entry = Entry("broken", UnderAttack(attack=Broken(num_steps=1)))
    (result,) = evaluate([entry], lambda model: (vit, make_data(images, labels)), tmp_path)
    assert result.failure == "RuntimeError: Broken returned images outside [0, 1], or not finite"


def test_corruptions_and_severities_have_independent_draws(run, images):
    clean = (images.permute(0, 2, 3, 1).numpy() * 255).round()

    def noise(name, severity):
        result = run(UnderCorruption(corruption=Corruption(name=name, severity=severity)))
        order = [int(image_id.removeprefix("image")) for image_id in result.ids[:4]]
        return (result.sample_images - clean[order]).ravel()

    reference = noise("gaussian_noise", 3)
    np.testing.assert_array_equal(noise("gaussian_noise", 3), reference)
    for other in (noise("gaussian_noise", 4), noise("speckle_noise", 3)):
        assert abs(np.corrcoef(reference, other)[0, 1]) < 0.3


def test_nullspace_noise_is_refined_on_the_model(run, vit, images):
    labels = vit.eval()(images).argmax(1)
    clean = run(Clean(), labels).scores
    before, after = (
        run(UnderNoise(noise=NullspaceNoise(num_steps=steps, eps=0.001, init_scale=1.0)), labels).scores
        for steps in (0, 10)
    )
    assert np.abs(after.nll - clean.nll).mean() < 0.7 * np.abs(before.nll - clean.nll).mean()
    assert before.extra["converged"].mean() < after.extra["converged"].mean()
    assert clean.extra == {}


def test_embedding_attack_lowers_the_accuracy_more_than_nullspace_noise(run, vit, images):
    labels = vit.eval()(images).argmax(1)
    attacked, noised = run(EMBEDDING, labels).scores, run(NOISE, labels).scores
    assert attacked.nll.mean() > noised.nll.mean() + 0.5


@ALL
def test_results_depend_on_the_seed_but_not_on_the_blocks(run, vit, images, benchmark):
    labels = vit.eval()(images).argmax(1)
    one_block = run(benchmark, labels, block_size=6).scores
    single_images = run(benchmark, labels, block_size=1).scores
    other_seed = run(benchmark, labels, block_size=6, seed=1).scores
    np.testing.assert_allclose(one_block.nll, single_images.nll, rtol=1e-6)
    if not isinstance(benchmark, Clean):
        assert np.abs(one_block.nll - other_seed.nll).max() > 1e-6


def test_logits_that_are_not_finite_are_an_error(vit, images, labels):
    vit.model.head.bias.data[0] = float("nan")
    with pytest.raises(RuntimeError, match="not finite"):
        score_logits(vit(images), labels)


def make_batch(images, labels):
    return Batch(images, labels, [str(index) for index in range(len(images))], Constants(None, None))


def test_split_on_oom_halves_the_batch(vit, images, labels):
    sizes = []

    def limited(batch):
        sizes.append(len(batch))
        if len(batch) > 2:
            raise torch.OutOfMemoryError("no memory")
        return score_logits(vit(batch.images), batch.labels, inputs=batch.images)

    vit.eval()
    scores = split_on_oom(limited, make_batch(images, labels))
    expected = score_logits(vit(images), labels)
    np.testing.assert_allclose(scores.nll, expected.nll)
    torch.testing.assert_close(scores.inputs, images)
    assert sizes == [6, 3, 1, 2, 3, 1, 2]


def test_split_on_oom_raises_other_errors(images, labels):
    def never_fits(batch):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    with pytest.raises(RuntimeError, match="allocate"):
        split_on_oom(never_fits, make_batch(images, labels))

    sizes = []

    def broken(batch):
        sizes.append(len(batch))
        raise RuntimeError("shape mismatch")

    with pytest.raises(RuntimeError, match="shape"):
        split_on_oom(broken, make_batch(images, labels))
    assert sizes == [6], "only out-of-memory errors are tried again"


@pytest.mark.parametrize(
    ("benchmark", "settings"),
    [
        (UnderNoise, {"noise": NullspaceNoise(scope="per_batch")}),
        (UnderAttack, {}),
        (UnderAttack, {"attack": PGD(), "corruption": GaussianNoise()}),
        (UnderEmbeddingAttack, {"attack": EmbeddingPGD(), "transfer": True}),
        (UnderEmbeddingAttack, {"attack": PGD()}),
        (Clean, {"data": "imagenet"}),
        (Clean, {"classes": "imagenet_x"}),
    ],
)
def test_contradicting_settings_are_refused(benchmark, settings):
    with pytest.raises(ValidationError):
        benchmark(**settings)


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


@ALL
def test_restricted_classes_equal_masked_logits(run, vit, images, benchmark):
    class_subset = [1, 2, 7]
    labels = torch.tensor([1, 2, 7, 7, 2, 1])
    restricted = run(dataclasses.replace(benchmark, classes=class_subset), labels)
    masked = run(benchmark, labels, vit=mask_logits(vit, class_subset))
    for field in ("label", "prediction", "confidence", "top1", "nll", "brier"):
        np.testing.assert_allclose(
            getattr(restricted.scores, field), getattr(masked.scores, field), err_msg=field, rtol=1e-5, atol=1e-7
        )
    assert set(restricted.scores.prediction) <= set(class_subset)
    np.testing.assert_array_equal(restricted.sample_images, masked.sample_images)
    assert vit(images).shape == (6, 10), "the restriction is undone"


def test_noise_is_restricted_to_the_classes(run):
    """With a single class, the probability is always 1 and every noise has no influence."""
    scores = run(dataclasses.replace(NOISE, classes=[4]), torch.full((6,), 4)).scores
    assert scores.top1.all()
    assert scores.extra["converged"].all()


def test_sets_of_labels(vit, images):
    """A set counts as one class with the summed probability of its members."""
    logits = vit.eval()(images).detach()
    probabilities = logits.softmax(-1)
    ranked = probabilities.argsort(-1, descending=True)
    label_sets = torch.stack([ranked[:, 3], ranked[:, 0], torch.full((6,), -1)], 1)
    label_sets[:2, 1] = ranked[:2, 8]
    scores = score_logits(logits, label_sets)
    assert scores.top1.tolist() == [False, False, True, True, True, True]
    assert scores.top5.all()
    for i in range(6):
        members = [label for label in label_sets[i].tolist() if label >= 0]
        total = probabilities[i, members].sum()
        assert scores.nll[i] == pytest.approx(-float(total.log()))
        others = [label for label in range(10) if label not in members]
        assert scores.brier[i] == pytest.approx(float((1 - total) ** 2 + (probabilities[i, others] ** 2).sum()))
        assert scores.label[i] == min(members)


def test_shape_and_texture_decisions(images):
    """A model that always sees an elephant: right where the shape is one, or the texture."""

    def elephant(images):
        logits = torch.zeros(len(images), 1000)
        logits[:, 385:387] = 9
        return logits

    ids = ["elephant/elephant1-cat2.png", "cat/cat1-elephant2.png", "bear/bear3-oven1.png"]
    batch = Batch(images[:3], torch.zeros(3, dtype=torch.long), ids, Constants(None, None))
    scores = ShapeBias(data=CueConflict(root="nowhere")).evaluate(elephant, batch, seed=0)
    assert scores.extra["shape"].tolist() == [True, False, False]
    assert scores.extra["texture"].tolist() == [False, True, False]
