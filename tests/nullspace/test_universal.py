"""The authors' recipe: one noise from batch after batch."""

import copy
import dataclasses
import math
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from nsaug.nullspace import EpochSynthesis, embedding_rms, influence
from nsaug.utils.errors import UserError
from nsaug.utils.rng import make_generator as draws
from tests.conftest import tiny_vit

SYNTHESIS = EpochSynthesis(limit=1.0, eps=1e-4, lr=0.1, rounds=3, share=0.5)
RMS = torch.tensor(1.0)
COUNT = 4
"""Batches of a round; half of them are stepped."""


@pytest.fixture
def batches():
    rng = torch.Generator().manual_seed(5)
    rounds = torch.rand(3, COUNT, 5, 3, 8, 8, generator=rng, dtype=torch.float64)
    return lambda number: iter(rounds[number])


def rederived(vit, batches, synthesis, noise):
    """The recipe as FACTS tells it, in plain float64: AdamW by its formulas, cosine over all of every round."""
    m, s, t = torch.zeros_like(noise), torch.zeros_like(noise), 0
    for number in range(synthesis.rounds):
        for images in list(batches(number))[:2]:
            target = vit(images).detach()
            noise = noise.detach().requires_grad_()
            logits = vit(images, noise, synthesis.layer)
            if (logits.softmax(1) - target.softmax(1)).square().sum(1).mean() < synthesis.eps:
                return noise.detach(), t, True
            (g,) = torch.autograd.grad((logits - target).square().sum(1).sqrt().mean(), noise)
            lr = synthesis.lr * 0.5 * (1 + math.cos(math.pi * t / (COUNT * synthesis.rounds)))
            t += 1
            m, s = 0.9 * m + 0.1 * g, 0.999 * s + 0.001 * g * g
            noise = noise.detach() * (1 - lr * synthesis.weight_decay)
            noise = noise - lr * (m / (1 - 0.9**t)) / ((s / (1 - 0.999**t)).sqrt() + 1e-8)
    return noise.detach(), t, False


@pytest.mark.parametrize("setting", [{}, {"eps": 0.05}, {"limit": 0.3}, {"weight_decay": 2.0}, {"layer": "blocks.1"}])
def test_against_a_plain_rederivation(vit, batches, setting):
    synthesis = dataclasses.replace(SYNTHESIS, units="absolute", **setting)
    found = synthesis.learn(vit.eval(), batches, COUNT, draws("cpu", 7))
    shape = (1, *vit.noise_shape(synthesis.layer))
    start = synthesis.limit * (2 * torch.rand(shape, generator=draws("cpu", 7), dtype=torch.float64) - 1)
    noise, steps, converged = rederived(vit, batches, synthesis, start)
    torch.testing.assert_close(found.noise, noise)
    assert found.steps == steps
    assert found.converged.tolist() == [converged] * 5


def test_the_rederivation_meets_every_case(vit, batches):
    """All updates without success, success on the way, success at once."""
    counts = []
    for eps in (1e-4, 0.05, 1.9):
        synthesis = dataclasses.replace(SYNTHESIS, units="absolute", eps=eps)
        counts.append(synthesis.learn(vit.eval(), batches, COUNT, draws("cpu", 7)).steps)
    assert counts[0] == 6
    assert 0 < counts[1] < 6
    assert counts[2] == 0


def test_relative_units_count_in_rms(vit, batches):
    first = next(batches(0))
    plain = dataclasses.replace(SYNTHESIS, weight_decay=0.0)  # it counts in lr, which the units scale
    relative = plain.learn(vit.eval(), batches, COUNT, draws("cpu", 7))
    rms = float(embedding_rms(vit, first))
    absolute = dataclasses.replace(plain, units="absolute", limit=rms, lr=plain.lr * rms)
    other = absolute.learn(vit, batches, COUNT, draws("cpu", 7))
    torch.testing.assert_close(relative.noise, other.noise, atol=1e-4, rtol=0)


def test_what_it_says_is_so(vit, batches):
    """Influence before on the first batch, influence after on the last one looked at."""
    synthesis = dataclasses.replace(SYNTHESIS, eps=0.05, units="absolute")
    found = synthesis.learn(vit.eval(), batches, COUNT, draws("cpu", 7))
    seen = [images for number in range(3) for images in list(batches(number))[:2]]
    with torch.no_grad():
        start = synthesis.start(vit, seen[0], draws("cpu", 7))
        before = influence(vit(seen[0], start), vit(seen[0]))
        after = influence(vit(seen[found.steps], found.noise), vit(seen[found.steps]))
    torch.testing.assert_close(found.influence_before, before)
    torch.testing.assert_close(found.influence_after, after)
    assert after.mean() < synthesis.eps <= before.mean()
    torch.testing.assert_close(found.norm_after, found.noise.square().mean().sqrt()[None])


def test_ranks_end_with_one_noise(vit, batches):
    """Two ranks with halves of each batch, in threads: the mean of their means is the mean over the whole."""
    vit.eval()
    whole = SYNTHESIS.learn(vit, lambda number: (b[:4] for b in batches(number)), COUNT, draws("cpu", 7), RMS)
    box, meeting = [torch.empty(0)] * 2, threading.Barrier(2, timeout=60)

    def learn(rank):
        def mean(own):
            box[rank] = own
            meeting.wait()
            both = (box[0] + box[1]) / 2
            meeting.wait()
            return both

        half = slice(2 * rank, 2 * rank + 2)
        own = copy.deepcopy(vit)
        halves = lambda number: (b[half] for b in batches(number))  # noqa: E731
        return SYNTHESIS.learn(own, halves, COUNT, draws("cpu", 7), RMS, reduce_mean=mean)

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(learn, range(2))
    assert torch.equal(first.noise, second.noise)
    torch.testing.assert_close(first.noise, whole.noise)


def test_variants(vit, batches):
    vit.eval()
    held = dataclasses.replace(SYNTHESIS, norm="held").learn(vit, batches, COUNT, draws("cpu", 7))
    torch.testing.assert_close(held.norm_after, held.norm_before)
    small = dataclasses.replace(SYNTHESIS, limit=0.1, eps=0.02)
    assert small.learn(vit, batches, COUNT, draws("cpu", 7)).steps == 0
    grown = dataclasses.replace(small, growth=1.5).learn(vit, batches, COUNT, draws("cpu", 7))
    assert grown.norm_after > 1.5 * grown.norm_before
    assert grown.steps == 6
    warm = dataclasses.replace(SYNTHESIS, init="warm")
    first = warm.learn(vit, batches, COUNT, draws("cpu", 7))
    second = warm.learn(vit, batches, COUNT, draws("cpu", 8), last=first.noise)
    torch.testing.assert_close(second.norm_before, first.norm_after)


def test_with_dropout_it_works_in_eval_mode_and_leaves_everything_as_it_was(batches):
    vit = tiny_vit(drop_path_rate=0.5).double().train()
    for parameter in vit.parameters():
        parameter.grad = torch.full_like(parameter, 0.25)
    found = SYNTHESIS.learn(vit, batches, COUNT, draws("cpu", 7))
    assert vit.training
    assert all((parameter.grad == 0.25).all() for parameter in vit.parameters())
    torch.testing.assert_close(found.noise, SYNTHESIS.learn(vit.eval(), batches, COUNT, draws("cpu", 7)).noise)


def test_no_batches_are_refused(vit):
    with pytest.raises(UserError, match="no batches"):
        SYNTHESIS.learn(vit, lambda number: iter(()), COUNT)


def test_the_share_is_of_the_batches():
    assert [EpochSynthesis().updates(count) for count in (1, 19, 20, 10_000)] == [1, 1, 2, 1000]
