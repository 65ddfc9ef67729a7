"""Adversarial attacks, one file per attack. Images lie in [0, 1] and radii are in pixel units; see `Attack`."""

from nsaug.attacks.autoattack import AutoAttack
from nsaug.attacks.base import Attack
from nsaug.attacks.cw import CW
from nsaug.attacks.deepfool import DeepFool
from nsaug.attacks.embedding_pgd import EmbeddingPGD
from nsaug.attacks.fgsm import FGSM
from nsaug.attacks.fgsm_rs import FGSMRS
from nsaug.attacks.mifgsm import MIFGSM
from nsaug.attacks.patch_fool import PatchFool
from nsaug.attacks.pgd import PGD, PGDBase
from nsaug.attacks.pgd_l2 import PGDL2

__all__ = [
    "CW",
    "FGSM",
    "FGSMRS",
    "MIFGSM",
    "PGD",
    "PGDL2",
    "Attack",
    "AutoAttack",
    "DeepFool",
    "EmbeddingPGD",
    "PGDBase",
    "PatchFool",
]
