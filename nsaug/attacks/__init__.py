"""Attacks, one file each: images in [0, 1], sizes in pixel units, gradients by `torch.autograd.grad` alone.

An attack is called as `attack(model, images, labels, generator)` and returns the attacked images. It judges the model
in the mode it is in, and leaves gradients, modes and the global generator as they were.
"""

from nsaug.attacks.autoattack import AutoAttack
from nsaug.attacks.fgsm import FGSM
from nsaug.attacks.fgsm_rs import FGSMRS
from nsaug.attacks.mifgsm import MIFGSM
from nsaug.attacks.min_norm import CW, DeepFool
from nsaug.attacks.patch_fool import PatchFool
from nsaug.attacks.pgd import PGD
from nsaug.attacks.pgd_l2 import PGDL2

__all__ = ["CW", "FGSM", "FGSMRS", "MIFGSM", "PGD", "PGDL2", "AutoAttack", "DeepFool", "PatchFool"]
