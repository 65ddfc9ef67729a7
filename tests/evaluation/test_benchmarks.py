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
from nsaug.evaluation.benchmarks import in_memory
from nsaug.models.noisy_vit import NoisyViT
from nsaug.nullspace import NoiseSynthesis
from nsaug.utils.errors import UserError
from tests.evaluation.conftest import Images

ATTACK = Benchmark(attack=PGD(num_steps=3), vary="eps", values=["4/255", 0.3])
CORRUPTION = Benchmark(corruption=GaussianNoise(), vary="std", values=[0.05, 0.3])
NOISE = Benchmark(noise=NoiseSynthesis(steps=2, lr=0.03), vary="limit", values=[0.5, 1.0])


def vars_of(benchmark):
    """What it does to images, as arguments of another one."""
    return {key: value for key, value in vars(benchmark).items() if value and not key.startswith("_")}


def run(benchmark, vit, images, labels, size=4, seed=0):
    forwards = []
    own = Digits().test_dataset()
    result = benchmark.run(
        vit, Images(images, labels, size), seed, forwards.append, class_subset=benchmark.class_subset(own)
    )
    assert sum(forwards) == benchmark.work(len(images))
    assert result.ids == [f"image{index}" for index in range(len(images))]
    assert result.strengths == benchmark.strengths
    return result


def test_an_attack_that_cannot_be_trusted_is_warned_of(vit, images, caplog):
    labels = vit.eval()(images).argmax(1)
    run(ATTACK, vit, images, labels)
    assert "may find less" not in caplog.text
    with torch.no_grad():
        vit.model.head.weight.mul_(1e6)
        vit.model.head.bias.mul_(1e6)
    run(ATTACK, vit, images, labels)
    assert "PGD may find less on this model than there is: the loss has no gradient at 4 of 4 images" in caplog.text


def test_an_attack_that_leaves_the_box_is_no_result(vit, images):
    class Broken(PGD):
        def __call__(self, *args):
            return super().__call__(*args) + 0.5

    broken = Benchmark(attack=Broken(num_steps=1), vary="eps", values=(0.1,))
    with pytest.raises(RuntimeError, match=r"Broken left \[0, 1\]"):
        run(broken, vit, images, torch.zeros(6, dtype=torch.long))


def test_draws_of_a_corruption_do_not_depend_on_the_suite(vit, images):
    """Neither on the other severities that are asked for, nor on another corruption's."""
    labels = torch.zeros(6, dtype=torch.long)

    def of(name, *severities):
        result = run(
            Benchmark(corruption=Corruption(name=name), vary="severity", values=severities), vit, images, labels
        )
        return dict(zip(severities, result.pictures, strict=True))

    both, alone = of("gaussian_noise", 1, 4), of("gaussian_noise", 4)
    np.testing.assert_array_equal(both[4], alone[4])
    clean = (images.permute(0, 2, 3, 1).numpy() * 255).round()
    noises = [of(name, 3)[3] - clean for name in ("gaussian_noise", "speckle_noise")]
    assert abs(np.corrcoef(*(noise.ravel() for noise in noises))[0, 1]) < 0.3


def test_clean(vit, images):
    logits = vit.eval()(images)
    labels = logits.argmax(1)
    labels[:2] += 1
    result = run(Benchmark(), vit, images, labels % 10)
    (judged,) = result.judged
    assert judged.top1.tolist() == [False, False, True, True, True, True]
    np.testing.assert_allclose(judged.confidence, logits.softmax(-1).amax(-1).detach())
    np.testing.assert_array_equal(judged.prediction, logits.argmax(1))
    assert result.pictured == list(range(6))
    seen = (images.permute(0, 2, 3, 1) * 255).round().byte()
    np.testing.assert_array_equal(result.pictures[0], seen)


def test_pictures_are_spread_over_the_data_set(vit, images):
    """A data set is often sorted by class: its first images are all alike."""
    many = images.repeat(5, 1, 1, 1) * torch.linspace(0.1, 1, 30, dtype=torch.float64).view(-1, 1, 1, 1)
    result = run(ATTACK, vit, many, torch.zeros(30, dtype=torch.long), size=7)
    assert result.pictured == [0, 6, 12, 17, 23, 29]
    assert result.pictures.shape == (2, 6, 8, 8, 3)
    attacked = many[result.pictured].permute(0, 2, 3, 1).numpy() * 255 - result.pictures[0]
    assert np.abs(attacked).max() <= 4.51


def test_a_model_without_finite_answers_is_refused(vit, images):
    vit.model.head.bias.data[0] = float("nan")
    with pytest.raises(RuntimeError, match="not finite"):
        run(Benchmark(), vit, images, torch.zeros(6, dtype=torch.long))


def test_an_attack_at_each_strength(vit, images):
    labels = vit.eval()(images).argmax(1)
    benchmark = Benchmark(attack=FGSM(), vary="eps", values=["4/255", 0.3])
    result = run(benchmark, vit, images, labels)
    for strength, judged in zip((4 / 255, 0.3), result.judged, strict=True):
        attacked = FGSM(eps=strength)(vit, images, labels)
        np.testing.assert_array_equal(judged.prediction, vit(attacked).argmax(1))
    assert not result.judged[1].top1.all()
    assert benchmark.condition == "attacked"


def test_nullspace_noise_is_refined_on_the_model(vit, images):
    labels = vit.eval()(images).argmax(1)
    start = Benchmark(noise=NoiseSynthesis(steps=0, eps=0.001), vary="limit", values=[1.0])
    refined = Benchmark(noise=NoiseSynthesis(steps=10, lr=0.03, eps=0.001), vary="limit", values=[1.0])
    clean = run(Benchmark(), vit, images, labels).judged[0]
    before, after = (run(each, vit, images, labels).judged[0] for each in (start, refined))
    assert np.abs(after.nll - clean.nll).mean() < 0.7 * np.abs(before.nll - clean.nll).mean()
    assert before.converged.mean() < after.converged.mean()
    assert np.isnan(clean.converged).all()


@pytest.mark.parametrize("benchmark", [ATTACK, CORRUPTION, NOISE], ids=["attack", "corruption", "noise"])
def test_results_depend_on_the_seed_and_not_on_the_batches(vit, images, benchmark):
    labels = vit.eval()(images).argmax(1)
    whole, single, other = (run(benchmark, vit, images, labels, *told) for told in ((6, 0), (1, 0), (6, 1)))
    for place in range(2):
        np.testing.assert_allclose(whole.judged[place].nll, single.judged[place].nll, rtol=1e-6)
        assert np.abs(whole.judged[place].nll - other.judged[place].nll).max() > 1e-6


def test_a_batch_that_does_not_fit_is_halved(images, labels):
    sizes = []

    def limited(images, labels, ids):
        sizes.append(len(images))
        if len(images) > 2:
            raise torch.OutOfMemoryError("no memory")
        return images.sum((1, 2, 3)), images

    ids = [str(index) for index in range(6)]
    sums, shown = in_memory(limited, images, labels, ids)
    torch.testing.assert_close(sums, images.sum((1, 2, 3)))
    torch.testing.assert_close(shown, images)
    assert sizes == [6, 3, 1, 2, 3, 1, 2]

    def hopeless(images, labels, ids):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    with pytest.raises(RuntimeError, match="allocate"):
        in_memory(hopeless, images, labels, ids)

    def broken(images, labels, ids):
        sizes.append("once")
        raise RuntimeError("shape mismatch")

    with pytest.raises(RuntimeError, match="shape"):
        in_memory(broken, images, labels, ids)
    assert sizes.count("once") == 1, "only a lack of memory is tried again"


@pytest.mark.parametrize(
    "wrong",
    [
        {"attack": PGD(), "corruption": GaussianNoise(), "vary": "eps", "values": [0.1]},
        {"attack": PGD(), "noise": NoiseSynthesis(), "vary": "eps", "values": [0.1]},
        {"noise": NoiseSynthesis(scope="batch"), "vary": "eps", "values": [0.1]},
        {"attack": PGD()},
        {"vary": "eps", "values": [0.1]},
        {"attack": PGD(), "vary": "eps", "values": [7]},
        {"attack": PGD(), "vary": "epsilon", "values": [0.1]},
    ],
)
def test_entries_that_make_no_sense_are_refused(wrong):
    with pytest.raises((ValidationError, TypeError)):
        Benchmark(**wrong)


def restricted(vit, class_subset):
    """A copy whose other logits are masked, as papers have it."""

    class Masked(NoisyViT):
        def forward(self, *args, **kwargs):
            logits = super().forward(*args, **kwargs)
            mask = torch.full_like(logits[0], -1e9)
            mask[class_subset] = 0
            return logits + mask

    masked = copy.deepcopy(vit)
    masked.__class__ = Masked
    return masked


@pytest.mark.parametrize("kind", [{}, vars_of(ATTACK), vars_of(CORRUPTION)], ids=["clean", "attack", "corruption"])
def test_answers_among_some_classes_are_those_of_masked_logits(vit, images, kind):
    class_subset = [1, 2, 7]
    labels = torch.tensor([1, 2, 7, 7, 2, 1])
    ours = run(Benchmark(classes=class_subset, **kind), vit, images, labels)
    theirs = run(Benchmark(**kind), restricted(vit, class_subset), images, labels)
    free = run(Benchmark(**kind), vit, images, labels)
    for a, b in zip(ours.judged, theirs.judged, strict=True):
        for field in ("label", "prediction", "confidence", "top1", "nll", "brier"):
            np.testing.assert_allclose(getattr(a, field), getattr(b, field), err_msg=field)
    assert set(ours.judged[0].prediction) <= set(class_subset)
    assert not set(free.judged[0].prediction) <= set(class_subset)
    np.testing.assert_array_equal(ours.pictures, theirs.pictures)
    assert vit(images).shape == (6, 10), "the model answers as before"


def test_noise_knows_of_no_other_class(vit, images):
    """Its influence is over the classes that count: on one class nothing can be moved."""
    alone = run(Benchmark(classes=[4], **vars_of(NOISE)), vit, images, torch.full((6,), 4))
    assert alone.judged[0].top1.all()
    assert alone.judged[0].converged.all()


def test_any_of_several_labels_is_right(vit, images):
    """The set counts as one class, which has its members' probability."""
    probabilities = vit.eval()(images).softmax(-1).detach()
    likeliest = probabilities.argsort(-1, descending=True)
    sets = torch.stack([likeliest[:, 3], likeliest[:, 0], torch.full((6,), -1)], 1)
    sets[:2, 1] = likeliest[:2, 8]
    (judged,) = run(Benchmark(), vit, images, sets).judged
    assert judged.top1.tolist() == [False, False, True, True, True, True]
    assert judged.top5.all()
    for at in range(6):
        inside = [each for each in sets[at].tolist() if each >= 0]
        together = probabilities[at, inside].sum()
        assert judged.nll[at] == pytest.approx(-float(together.log()))
        others = [each for each in range(10) if each not in inside]
        assert judged.brier[at] == pytest.approx(float((1 - together) ** 2 + (probabilities[at, others] ** 2).sum()))
        assert judged.label[at] == min(inside)
    restrict_classes = sorted({*likeliest[:, 3].tolist(), *likeliest[:, 8].tolist(), *likeliest[:, 0].tolist()})
    (fewer,) = run(Benchmark(classes=restrict_classes), vit, images, sets).judged
    np.testing.assert_array_equal(fewer.top1, judged.top1)
    np.testing.assert_array_equal(fewer.label, judged.label)


def test_stored_severities_are_judged_one_by_one(vit, images):
    stored = Benchmark(data=ImageNetC(root="nowhere", corruption="fog", severities=(2, 5)))
    assert (stored.condition, stored.corrupted_by, stored.strengths) == ("corrupted", "fog", (2, 5))
    both = torch.stack([images, images.flip(0)], 1)
    labels = vit.eval()(images).argmax(1)
    first, second = run(stored, vit, both, labels).judged
    assert first.top1.all()
    np.testing.assert_array_equal(second.prediction, labels.flip(0))
    for kind in (ATTACK, CORRUPTION, NOISE):
        with pytest.raises(ValidationError, match="judged as they are"):
            dataclasses.replace(kind, data=stored.data)


def test_images_that_could_not_be_read_are_left_out(vit, images):
    """A batch that is None, and one that is short."""
    labels = vit.eval()(images).argmax(1)

    class Some(Images):
        def __iter__(self):
            whole = list(super().__iter__())
            pixels, targets, ids = whole[0]
            yield None
            yield pixels[1:], targets[1:], ids[1:]
            yield whole[1]

        def __getitem__(self, index):
            return None if index == 0 else super().__getitem__(index)

    for benchmark in (Benchmark(), NOISE):
        result = benchmark.run(vit, Some(images, labels), 0, lambda work: None)
        assert result.ids == [f"image{index}" for index in range(1, 6)]
        assert result.pictures.shape[1] == len(result.pictured) == 5

    class Nothing(Images):
        def __iter__(self):
            yield None

    with pytest.raises(UserError, match="none of its 6 images can be read"):
        Benchmark().run(vit, Nothing(images, labels), 0, lambda work: None)
