import torch
from torch.nn import functional as F

from nsaug.attacks.objectives import margin


def test_margin_is_positive_where_misclassified(vit, images):
    logits = vit.eval()(images).detach()
    predicted = logits.argmax(1)
    assert (margin(logits, predicted) < 0).all()
    assert (margin(logits, (predicted + 1) % 10) > 0).all()


def test_margin_of_the_prediction_is_the_gap_of_the_top_two(vit, images):
    logits = vit.eval()(images).detach()
    predicted, top = logits.argmax(1), logits.topk(2).values
    for targets in (predicted, F.one_hot(predicted, 10).double()):
        torch.testing.assert_close(margin(logits, targets), top[:, 1] - top[:, 0])
