"""Properties of noise, against closed forms and against forwards made by hand."""

import itertools
import math

import pytest
import torch
from torch.nn import functional as F

from nsaug.models.factory import build_vit
from nsaug.nullspace import embedding_rms, influence
from nsaug.nullspace.analysis import (
    Outputs,
    compute_outputs,
    noise_effects,
    nullspace_radius,
    permute_elements,
    permute_tokens,
    permute_within_tokens,
    random_like,
    unreachable_energy,
)
from nsaug.nullspace.noise import root_mean_square
from nsaug.utils.rng import make_generator
from tests.conftest import linear_vit, tiny_vit


@pytest.fixture
def tokens():
    return torch.randn(3, 16, 24, generator=torch.Generator().manual_seed(6), dtype=torch.float64)


def sorted_rows(rows):
    return [sorted(row.tolist()) for row in rows]


def test_permute_elements(tokens):
    other = permute_elements(tokens, make_generator("cpu", 0))
    assert sorted_rows(other.flatten(1)) == sorted_rows(tokens.flatten(1))
    assert sorted_rows(other.flatten(0, 1)) != sorted_rows(tokens.flatten(0, 1)), "not within tokens alone"
    assert (other == tokens).double().mean() < 0.05


def test_permute_within_tokens(tokens):
    other = permute_within_tokens(tokens, make_generator("cpu", 0))
    assert sorted_rows(other.flatten(0, 1)) == sorted_rows(tokens.flatten(0, 1))
    assert (other == tokens).double().mean() < 0.2
    places = (other[0, :2, :, None] == tokens[0, :2, None, :]).int().argmax(-1)
    assert not torch.equal(places[0], places[1]), "every token in its own order"


def test_permute_tokens(tokens):
    other = permute_tokens(tokens, make_generator("cpu", 0))
    for mine, theirs in zip(other, tokens, strict=True):
        place = (mine[:, None] == theirs[None]).all(-1).int()
        assert (place.sum(0) == 1).all()
        assert (place.sum(1) == 1).all()
        assert place.diagonal().sum() < 8


def test_random_like_keeps_every_norm(tokens):
    tokens = tokens * torch.tensor([0.1, 1.0, 7.0]).view(3, 1, 1)
    other = random_like(tokens, make_generator("cpu", 0))
    torch.testing.assert_close(root_mean_square(other), root_mean_square(tokens))
    directions = F.normalize(torch.stack([other, tokens]).flatten(2), dim=-1)
    assert (directions[0] * directions[1]).sum(-1).abs().max() < 0.2
    assert (other.abs().flatten(1).amax(1) <= 1.05 * 3**0.5 * root_mean_square(other)).all(), "uniform"


@pytest.mark.parametrize(
    "name", ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "deit_tiny_distilled_patch16_224"]
)
def test_features_are_the_input_of_the_classifier(name):
    torch.manual_seed(0)
    vit = build_vit(name, num_classes=5, img_size=56 if "swin" in name else 32, args={}).train()
    images = torch.rand(2, 3, *vit.data_config["input_size"][1:])
    outputs = compute_outputs(vit, images)
    assert vit.training
    vit.eval()
    with torch.no_grad():
        torch.testing.assert_close(outputs.logits, vit(images))
        features = vit.model.forward_head(vit.model.forward_features(vit.normalize(images)), pre_logits=True)
    if "distilled" in name:
        features = vit.model.forward_features(vit.normalize(images))[:, 0]
    torch.testing.assert_close(outputs.features, features.flatten(1))


def test_noise_effects():
    clean = Outputs(torch.tensor([[0.75, 0.25], [0.4, 0.6]]).log(), torch.tensor([[3.0, 4.0], [1.0, 0.0]]))
    noisy = Outputs(torch.tensor([[0.6, 0.4], [0.7, 0.3]]).log(), torch.tensor([[3.0, 3.0], [1.0, 2.0]]))
    change = noise_effects(noisy, clean)
    torch.testing.assert_close(change["influence"], torch.tensor([2 * 0.15**2, 2 * 0.3**2]))
    assert change["agreement"].tolist() == [1.0, 0.0]
    torch.testing.assert_close(change["confidence_change"], torch.tensor([-0.15, -0.3]))
    torch.testing.assert_close(change["feature_change"], torch.tensor([0.2, 2.0]))


def test_unreachable_energy_is_what_no_image_causes(images):
    vit = tiny_vit().double()  # 12 values of a patch in 24 dimensions
    reachable = vit.activations(images) - vit.activations(torch.zeros_like(images))
    torch.testing.assert_close(unreachable_energy(vit, reachable.detach()), torch.zeros(6, dtype=torch.float64))
    weight = vit.model.patch_embed.proj.weight.flatten(1).detach()
    unreachable = torch.linalg.svd(weight).U[:, 12:].T[None].expand(2, -1, -1)
    torch.testing.assert_close(unreachable_energy(vit, unreachable), torch.ones(2, dtype=torch.float64))
    half = F.normalize(reachable[:1].detach().flatten(1), dim=1).view(1, 16, 24)
    other = F.normalize(torch.randn(1, 16, 12, dtype=torch.float64) @ unreachable[0], dim=(1, 2))
    torch.testing.assert_close(
        unreachable_energy(vit, half + other / other.norm()), torch.tensor([0.5], dtype=torch.float64)
    )
    random = torch.randn(1, 16_000, 24, dtype=torch.float64, generator=make_generator("cpu", 1))
    torch.testing.assert_close(
        unreachable_energy(vit, random), torch.tensor([0.5], dtype=torch.float64), atol=0.02, rtol=0
    )
    swin = build_vit("swin_tiny_patch4_window7_224", num_classes=3, img_size=56)
    assert unreachable_energy(swin, torch.zeros(1, 196, 96)) is None, "its convolution is followed by a norm"


def test_radius_of_a_linear_model(images):
    """Held-out mean influence at a scale has a closed form there: the radius of random noise is where it meets ε."""
    vit = linear_vit().eval()
    held_out = images[3:]
    (radius,) = nullspace_radius(
        vit, images[:3], held_out, [0.05], make_generator("cpu", 0), init_scales=(1.0, 30.0), num_updates=60
    )
    rms = embedding_rms(vit, held_out)
    direction = rms * (2 * torch.rand((1, 4, 5), generator=make_generator("cpu", 0), dtype=torch.float64) - 1)

    def mean_influence(size):
        with torch.no_grad():
            noise = direction * size / root_mean_square(direction)
            return float(influence(vit(held_out, noise), vit(held_out)).mean())

    assert 0.04 < mean_influence(radius.random) < 0.05
    assert mean_influence(1.1 * radius.random) > 0.05
    # The head has a nullspace (20 values, 2 logits): learned noise lies in it, and can be larger by far.
    assert radius.learned > 5 * radius.random


def test_radius_of_a_transformer_grows_with_eps(vit, images):
    bounds = [0.01, 0.03, 0.1]
    radii = nullspace_radius(
        vit.eval(), images[:3], images[3:], bounds, make_generator("cpu", 0), init_scales=(0.5, 2.0), num_updates=40
    )
    assert [radius.eps for radius in radii] == bounds
    for smaller, larger in itertools.pairwise(radii):
        assert smaller.learned < larger.learned
        assert smaller.random < larger.random
    assert all(radius.learned > radius.random > 0 for radius in radii)
    again = nullspace_radius(
        vit, images[:3], images[3:], bounds, make_generator("cpu", 0), init_scales=(0.5, 2.0), num_updates=40
    )
    assert again == radii
    assert math.isfinite(radii[-1].learned)
