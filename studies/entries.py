"""What the studies compare: every method with a sweep of its strength, and variants of nullspace noise."""

from collections.abc import Mapping
from dataclasses import dataclass

DATA = ("digits", "cifar10", "imagenette")

PIXEL_RADII = {  # in gray levels of 255
    "digits": ("4", "8", "16", "32"),
    "cifar10": ("0.5", "1", "2", "4"),
    "imagenette": ("0.25", "0.5", "1", "2"),
}
EMBEDDING_RADII = {  # in rms(u)
    "digits": ("0.02", "0.05", "0.1", "0.2"),
    "cifar10": ("0.01", "0.02", "0.05", "0.1"),
    "imagenette": ("0.005", "0.01", "0.02", "0.05"),
}
SMART_RADII = {  # in rms(u), of an L-inf ball, which few elements of the noise touch
    "digits": ("0.03", "0.1", "0.2", "0.3"),
    "cifar10": ("0.01", "0.03", "0.1", "0.3"),
    "imagenette": ("0.003", "0.01", "0.03", "0.1"),
}
LEARNING_RATES = {  # besides that of conf/experiment, which all methods have
    "digits": ("1e-3", "3e-3", "2e-2"),
    "cifar10": ("3e-5", "3e-4", "1e-3"),
    "imagenette": ("3e-5", "2e-4", "4e-4"),
}
IMAGE_STARTS = {"digits": "4", "cifar10": "0.5", "imagenette": "0.25"}
"""Half-width of the random start of noise on the image, in gray levels of 255."""
EPS = ("0.03", "0.3", "0.8", "1.5")


@dataclass(frozen=True)
class Sweep:
    """A method and its strengths.

    Attributes:
        settings: of train.py; {} stands for the strength, {start} for that of IMAGE_STARTS.
        strengths: one run each; a mapping has those of every data set.
    """

    settings: str
    strengths: tuple[str, ...] | Mapping[str, tuple[str, ...]] = ("",)

    def entries(self, method: str, data: str) -> dict[str, str]:
        """Settings by the name of the entry, METHOD_STRENGTH; a method without strengths has one entry."""
        strengths = self.strengths[data] if isinstance(self.strengths, Mapping) else self.strengths
        return {
            f"{method}_{strength}" if strength else method: self.settings.format(strength, start=IMAGE_STARTS[data])
            for strength in strengths
        }


METHODS = {
    "clean": Sweep("method=clean optim.lr={}", LEARNING_RATES),
    "nullspace": Sweep("method=nullspace nullspace.eps={}", EPS),
    "pgd_3_steps": Sweep("method=pgd method.attack.num_steps=3 attack.eps={}/255", PIXEL_RADII),
    "random_noise_influence": Sweep("method=random_noise method.noise.match=influence nullspace.eps={}", EPS),
    "embedding_pgd": Sweep("method=embedding_pgd method.attack.eps={}", EMBEDDING_RADII),
    "random_noise_init": Sweep(
        "method=random_noise method.noise.match=init nullspace.init_scale={}", ("0.25", "0.5", "1", "2")
    ),
    "fgsm_rs": Sweep("method=fgsm_rs attack.eps={}/255", PIXEL_RADII),
    "trades_3_steps": Sweep("method=trades method.attack.num_steps=3 attack.eps={}/255", PIXEL_RADII),
    "smart": Sweep("method=smart method.num_steps=3 method.eps={}", SMART_RADII),
    "freelb": Sweep("method=freelb method.attack.eps={}", EMBEDDING_RADII),
    "augmix": Sweep("method=augmix method.weight={}", ("1", "4", "12", "36")),
    "gaussian_noise": Sweep("method=gaussian_noise method.std={}", ("0.1", "0.2", "0.4", "0.8")),
    "nullspace_per_batch": Sweep("method=nullspace nullspace=per_batch nullspace.eps={}", EPS),
    "nullspace_paper": Sweep(
        "method=nullspace nullspace=universal nullspace.data_fraction=1 nullspace.lr=0.02 nullspace.init_scale={}",
        ("0.25", "0.5", "1", "3"),  # ε matters less: learning seldom reaches it from 3, in the units of the embeddings
    ),
    "random_noise_norm": Sweep("method=random_noise nullspace.eps={}", EPS),
    "r3f": Sweep("method=r3f method.scale={}", ("0.25", "0.5", "1", "2")),
    "r_drop": Sweep("method=r_drop model.drop_path_rate=0.1 method.weight={}", ("0.3", "1", "3", "10")),
    "clean_same_compute": Sweep("method=clean_same_compute"),
    "clean_two_views": Sweep("method=clean_two_views"),
}
"""Entries of stage tune; stage test takes the best strength of each method."""

NOISE = "method=nullspace nullspace=custom nullspace._target_=variants.VariantNoise"
DIRECTED = "method=nullspace nullspace=custom nullspace._target_=variants.DirectedNoise"
CONSISTENCY = "method=custom method._target_=variants.NoiseConsistency method.noise=${{nullspace}}"
UNCERTAINTY = "method=custom method._target_=variants.UncertaintyUnderNoise method.noise=${{nullspace}}"

VARIANTS = {
    "nullspace": METHODS["nullspace"],
    "init_scale": Sweep("method=nullspace nullspace.eps=0.3 nullspace.init_scale={}", ("0.02", "0.25", "0.5")),
    "num_steps": Sweep("method=nullspace nullspace.eps=0.3 nullspace.num_steps={}", ("1", "2", "6")),
    "image": Sweep(
        f"{NOISE} nullspace.space=image nullspace.init_scale={{start}} nullspace.eps={{}}",
        ("0.03", "0.3", "0.8", "1.5"),
    ),
    "descended": Sweep(f"{DIRECTED} nullspace.direction=descended nullspace.eps={{}}", ("0.1", "0.3", "0.8")),
    "random": Sweep(f"{DIRECTED} nullspace.direction=random nullspace.eps={{}}", ("0.1", "0.3", "0.8")),
    "ascended": Sweep(f"{DIRECTED} nullspace.direction=ascended nullspace.eps={{}}", ("0.1", "0.3", "0.8")),
    "ascended_ce": Sweep(f"{DIRECTED} nullspace.direction=ascended_ce nullspace.eps={{}}", ("0.1", "0.3", "0.8")),
    "linf": Sweep(f"{NOISE} nullspace.geometry=linf nullspace.eps={{}}", ("0.3", "0.8")),
    "kl": Sweep(f"{CONSISTENCY} nullspace.eps=0.3 method.weight={{}}", ("1", "3", "6")),
    "ramp": Sweep(f"{NOISE} nullspace.eps=0.3 nullspace.ramp_steps={{}}", ("50", "100")),
    "uncertainty": Sweep(f"{UNCERTAINTY} nullspace.init_scale=2 method.weight={{}}", ("0.1", "0.5")),
    "init_scale_up_to": Sweep(f"{NOISE} nullspace.eps=0.3 nullspace.init_scale_max={{}}", ("0.5", "2")),
    "eps_up_to": Sweep(f"{NOISE} nullspace.eps=0.01 nullspace.eps_max={{}}", ("0.3", "1.5")),
    "reachable": Sweep(f"{NOISE} nullspace.reachable=true nullspace.eps={{}}", ("0.3", "0.8")),
}
"""Entries of stage variants: settings of nullspace noise, and what studies/variants.py defines."""


def stage_entries(stage: str, data: str) -> dict[str, str]:
    """Settings of train.py for every entry of stage tune or variants, by name; `clean` is the baseline of both."""
    sweeps = METHODS if stage == "tune" else VARIANTS
    entries = {"clean": "method=clean"}
    for method, sweep in sweeps.items():
        entries |= sweep.entries(method, data)
    return entries
