"""Each method's loss against its definition, and that a step lowers it."""

import copy
import dataclasses

import pytest
import torch
from torch.nn import functional as F

from nsaug.draws import generator as draws
from nsaug.methods import Clean, Nullspace
from nsaug.nullspace import NoiseSynthesis, embedding_rms
from tests.conftest import tiny_vit

SYNTHESIS = NoiseSynthesis(limit=1.0, eps=0.01, lr=0.03)


def prepared(method, vit, images):
    method.double().prepare(vit, images, lambda value: value)
    return method


def test_clean_is_the_cross_entropy(vit, images, labels):
    loss, values = Clean().loss(vit, images, labels, draws("cpu", 0))
    torch.testing.assert_close(loss, F.cross_entropy(vit(images), labels))
    torch.testing.assert_close(values["top1"], (vit(images).argmax(1) == labels).float().mean())


@pytest.mark.parametrize("unreached", ["keep", "drop"])
@pytest.mark.parametrize("scope", ["sample", "batch"])
def test_nullspace_is_the_sum_of_both_cross_entropies(vit, images, labels, unreached, scope):
    synthesis = dataclasses.replace(SYNTHESIS, steps=1, scope=scope)
    method = prepared(Nullspace(synthesis, unreached=unreached), vit, images)
    loss, values = method.loss(vit, images, labels, draws("cpu", 0))
    found = synthesis.refine(vit, images, draws("cpu", 0))
    noisy = F.cross_entropy(vit(images, found.noise), labels, reduction="none")
    kept = found.reached if unreached == "drop" else torch.ones(6)
    torch.testing.assert_close(loss, F.cross_entropy(vit(images), labels) + (noisy * kept).mean())
    assert values["reached"] == found.reached.float().mean()
    torch.testing.assert_close(values["influence"], found.influence_after.mean())
    if scope == "sample":
        assert 0 < found.reached.sum() < 6, "both kinds of images are in the batch"


def test_the_unit_of_the_noise_is_measured_once_and_kept(vit, images):
    method = prepared(Nullspace(SYNTHESIS), vit, images)
    rms = embedding_rms(vit, images)
    torch.testing.assert_close(method.rms, rms)
    method.prepare(vit, 3 * images, lambda value: value)
    torch.testing.assert_close(method.rms, rms)
    restored = Nullspace(SYNTHESIS).double()
    restored.load_state_dict(method.state_dict())
    restored.prepare(vit, 3 * images, lambda value: value)
    torch.testing.assert_close(restored.rms, rms)


def test_the_unit_is_the_same_on_all_ranks(vit, images):
    """Ranks average the mean square, not the root."""
    method = Nullspace(SYNTHESIS).double()
    other = embedding_rms(vit, images[3:]).square()
    method.prepare(vit, images[:3], lambda own: (own + other) / 2)
    torch.testing.assert_close(method.rms, embedding_rms(vit, images))


@pytest.mark.parametrize("method", [Clean(), Nullspace(SYNTHESIS)], ids=["clean", "nullspace"])
@pytest.mark.parametrize("drop_path_rate", [0.0, 1e-9])
def test_one_step_lowers_its_own_loss(method, drop_path_rate, images, labels):
    vit = tiny_vit(drop_path_rate=drop_path_rate).double().train()
    method = prepared(copy.deepcopy(method), vit, images)
    before, _ = method.loss(vit, images, labels, draws("cpu", 0))
    gradients = torch.autograd.grad(before, list(vit.parameters()))
    with torch.no_grad():
        for parameter, gradient in zip(vit.parameters(), gradients, strict=True):
            parameter -= 1e-3 * gradient
    after, _ = method.loss(vit, images, labels, draws("cpu", 0))
    assert after < before
