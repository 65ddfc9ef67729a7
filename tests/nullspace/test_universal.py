"""The paper's recipe: one noise for all images, learned batch after batch."""

import copy
import dataclasses
import math
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from nsaug.nullspace import UniversalConfig, UniversalNoise, influence, learn_universal
from nsaug.utils.errors import UserError
from nsaug.utils.rng import make_generator
from tests.conftest import tiny_vit

CONFIG = UniversalConfig(init_scale=1.0, eps=1e-4, lr=0.1, num_passes=3, data_fraction=0.5)
COUNT = 4
"""Batches of the data set; a pass uses half of them."""


@pytest.fixture
def batches():
    rng = torch.Generator().manual_seed(5)
    passes = torch.rand(3, COUNT, 5, 3, 8, 8, generator=rng, dtype=torch.float64)
    return lambda number, count: iter(passes[number][:count])


def learn(vit, batches, config=CONFIG, **kwargs):
    return learn_universal(vit, batches, COUNT, config, make_generator("cpu", 7), **kwargs)


def start_noise(vit, config):
    shape = (1, *vit.noise_shape(config.layer))
    return config.init_scale * (2 * torch.rand(shape, generator=make_generator("cpu", 7), dtype=torch.float64) - 1)


def rederive(vit, batches, config):
    """The recipe of the authors' code in plain float64: AdamW by its formulas, a cosine over all of every pass."""
    noise = start_noise(vit, config)
    m, s, t = torch.zeros_like(noise), torch.zeros_like(noise), 0
    for number in range(config.num_passes):
        for images in batches(number, 2):
            target = vit(images).detach()
            noise = noise.detach().requires_grad_()
            logits = vit(images, noise, config.layer)
            if (logits.softmax(1) - target.softmax(1)).square().sum(1).mean() < config.eps:
                return noise.detach(), t, True
            (g,) = torch.autograd.grad((logits - target).square().sum(1).sqrt().mean(), noise)
            lr = config.lr * 0.5 * (1 + math.cos(math.pi * t / (COUNT * config.num_passes)))
            t += 1
            m, s = 0.9 * m + 0.1 * g, 0.999 * s + 0.001 * g * g
            noise = noise.detach() * (1 - lr * 0.01)
            noise = noise - lr * (m / (1 - 0.9**t)) / ((s / (1 - 0.999**t)).sqrt() + 1e-8)
    return noise.detach(), t, False


@pytest.mark.parametrize("settings", [{}, {"eps": 0.05}, {"init_scale": 0.3}, {"lr": 0.5}, {"layer": "blocks.1"}])
def test_matches_rederivation(vit, batches, settings):
    config = dataclasses.replace(CONFIG, **settings)
    result = learn(vit.eval(), batches, config)
    noise, _, converged = rederive(vit, batches, config)
    torch.testing.assert_close(result.noise, noise)
    assert result.converged.tolist() == [converged] * 5


def test_rederivation_covers_all_cases(vit, batches):
    """All updates without success, success on the way, success at once."""
    counts = [rederive(vit.eval(), batches, dataclasses.replace(CONFIG, eps=eps))[1] for eps in (1e-4, 0.05, 1.9)]
    assert counts[0] == 6
    assert 0 < counts[1] < 6
    assert counts[2] == 0


def test_influence_is_of_the_first_and_of_the_last_batch(vit, batches):
    config = dataclasses.replace(CONFIG, eps=0.05)
    result = learn(vit.eval(), batches, config)
    seen = [images for number in range(3) for images in batches(number, 2)]
    last = seen[rederive(vit, batches, config)[1]]
    with torch.no_grad():
        before = influence(vit(seen[0], start_noise(vit, config)), vit(seen[0]))
        after = influence(vit(last, result.noise), vit(last))
    torch.testing.assert_close(result.influence_before, before)
    torch.testing.assert_close(result.influence_after, after)
    assert after.mean() < config.eps <= before.mean()


def test_ranks_learn_the_same_noise(vit, batches):
    """Two ranks with halves of each batch, in threads: the mean of their means is the mean over the whole."""
    vit.eval()
    whole = learn(vit, lambda *key: (batch[:4] for batch in batches(*key)))
    box, barrier = [torch.empty(0)] * 2, threading.Barrier(2, timeout=60)

    def learn_on(rank):
        def mean(value):
            box[rank] = value
            barrier.wait()
            both = (box[0] + box[1]) / 2
            barrier.wait()
            return both

        half = slice(2 * rank, 2 * rank + 2)
        halves = lambda *key: (batch[half] for batch in batches(*key))  # noqa: E731
        return learn(copy.deepcopy(vit), halves, reduce_mean=mean)

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(learn_on, range(2))
    assert torch.equal(first.noise, second.noise)
    torch.testing.assert_close(first.noise, whole.noise)


def test_keep_norm_turns_the_noise_without_shrinking_it(vit, batches):
    start = start_noise(vit, CONFIG)
    result = learn(vit.eval(), batches, start=start, keep_norm=True)
    torch.testing.assert_close(result.noise.norm(), start.norm())
    assert result.influence_after.mean() < result.influence_before.mean()
    assert abs(learn(vit, batches, start=start).noise.norm() / start.norm() - 1) > 0.01


def test_dropout_is_off_and_the_model_unchanged(batches):
    vit = tiny_vit(drop_path_rate=0.5).double().train()
    for parameter in vit.parameters():
        parameter.grad = torch.full_like(parameter, 0.25)
    result = learn(vit, batches)
    assert vit.training
    assert all((parameter.grad == 0.25).all() for parameter in vit.parameters())
    torch.testing.assert_close(result.noise, learn(vit.eval(), batches).noise)


def test_no_batches_are_refused(vit):
    with pytest.raises(UserError, match="no batches"):
        learn(vit, lambda *key: iter(()))


def test_data_fraction_counts_batches():
    assert [UniversalConfig().num_updates(count) for count in (1, 19, 20, 10_000)] == [1, 1, 2, 1000]


def test_source_learns_once_per_epoch_and_keeps_its_noise_in_the_checkpoint(vit, batches, images):
    settings = dataclasses.asdict(CONFIG)
    source, restored = UniversalNoise(**settings).double(), UniversalNoise(**settings).double()
    for module in (source, restored):
        module.setup(vit.eval())
    source.start_epoch(vit, batches, COUNT, make_generator("cpu", 7), lambda value: value)
    torch.testing.assert_close(source.noise, learn(vit, batches).noise)
    restored.load_state_dict(source.state_dict())
    result = restored(vit, images)
    assert torch.equal(result.noise, source.noise)
    torch.testing.assert_close(result.logits, vit(images, source.noise))
    torch.testing.assert_close(result.influence_after, influence(vit(images, source.noise), vit(images)).detach())
    assert result.converged.tolist() == [bool(result.influence_after.mean() < CONFIG.eps)] * 6
