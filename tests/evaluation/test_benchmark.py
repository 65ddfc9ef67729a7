import dataclasses

import pytest
import torch
from pydantic import ValidationError

from nsaug.attacks import FGSM, PGD
from nsaug.corruptions import GaussianNoise
from nsaug.evaluation import Benchmark
from nsaug.evaluation.benchmark import subset


def batches(images, labels, size):
    ids = [f"image{i}" for i in range(len(images))]
    return [(images[i : i + size], labels[i : i + size], ids[i : i + size]) for i in range(0, len(images), size)]


def run(benchmark, vit, images, labels, size=4, seed=0):
    counted = []
    data = batches(images, labels, size)
    rows = benchmark.run("it", vit, data, torch.device("cpu"), seed, lambda: counted.append(1))
    assert len(counted) == len(data)
    return rows


def test_clean_top1(vit, images):
    labels = vit.eval()(images).argmax(1)
    labels[:2] += 1
    (row,) = run(Benchmark(), vit, images, labels % 10)
    expected = {
        "benchmark": "it",
        "condition": "clean",
        "strength": None,
        "metric": "top1",
        "value": 4 / 6,
        "n": 6,
    }
    assert row == expected


def test_an_attack_at_each_strength(vit, images):
    labels = vit.eval()(images).argmax(1)
    rows = run(Benchmark(attack=FGSM(), vary="eps", values=["4/255", 0.3]), vit, images, labels)
    assert [row["strength"] for row in rows] == [4 / 255, 0.3]
    for row in rows:
        attacked = FGSM(eps=row["strength"])(vit, images, labels)
        assert row["value"] == (vit(attacked).argmax(1) == labels).double().mean()
        assert row["condition"] == "attacked"
    assert rows[1]["value"] < 1


def test_corruptions_depend_on_the_seed_and_not_on_the_batches(vit, images):
    labels = vit.eval()(images).argmax(1)
    benchmark = Benchmark(corruption=GaussianNoise(), vary="std", values=[0.05, 0.3])
    seen = []
    for size, seed in ((6, 0), (1, 0), (6, 1)):
        logits = []
        handle = vit.register_forward_hook(lambda m, a, out, kept=logits: kept.append(a[0]))
        run(benchmark, vit, images, labels, size, seed)
        handle.remove()
        seen.append(torch.cat(logits[1::2]))
    assert torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[0], seen[2])


@pytest.mark.parametrize(
    "wrong",
    [
        {"attack": PGD(), "corruption": GaussianNoise(), "vary": "eps", "values": [0.1]},
        {"attack": PGD()},
        {"vary": "eps", "values": [0.1]},
        {"attack": PGD(), "vary": "eps", "values": [7]},
        {"attack": PGD(), "vary": "epsilon", "values": [0.1]},
    ],
)
def test_entries_that_make_no_sense_are_refused(wrong):
    with pytest.raises((ValidationError, TypeError)):
        Benchmark(**wrong)


def test_a_subset_is_seeded_and_ordered():
    @dataclasses.dataclass
    class Images:
        def __len__(self):
            return 100

        def subset(self, indices):
            return indices

    first = subset(Images(), 10, seed=0)
    assert first == sorted(set(first)) == subset(Images(), 10, seed=0)
    assert first != subset(Images(), 10, seed=1)
    assert len(subset(Images(), None, 0)) == len(subset(Images(), 200, 0)) == 100
