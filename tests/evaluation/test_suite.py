"""Suites: short lists become benchmarks, and mistakes one line."""

import pytest
from omegaconf import OmegaConf
from pydantic import ValidationError

from nsaug.attacks import PGD
from nsaug.corruptions import TEST_CORRUPTIONS
from nsaug.evaluation import Clean, SuiteConfig, UnderAttack, UnderCorruption, UnderNoise, expand
from nsaug.evaluation.benchmarks import ShapeBias, UnderEmbeddingAttack
from nsaug.utils.errors import UserError
from tests.conftest import ROOT


def expand_suite(**keys):
    def instantiate(node, path):
        arguments = {name: value for name, value in node.items() if name != "_target_"}
        return {"pgd": PGD, "clean": Clean}[node["_target_"]](**arguments)

    return expand(SuiteConfig(**keys), instantiate)


def names(entries):
    return [(entry.name, entry.strength) for entry in entries]


def test_clean_images_come_first():
    (entry,) = expand_suite()
    assert (entry.name, entry.strength, type(entry.benchmark)) == ("clean", None, Clean)


def test_a_list_of_numbers_makes_one_benchmark_each():
    entries = expand_suite(attacks={"pgd": {"num_steps": 50, "eps": ["1/255", "2/255"]}})[1:]
    assert names(entries) == [("pgd", 1 / 255), ("pgd", 2 / 255)]
    assert [entry.benchmark.attack for entry in entries] == [PGD(num_steps=50, eps=eps / 255) for eps in (1, 2)]


def test_attacks():
    entries = expand_suite(
        attacks={
            "fgsm": None,
            "pgd_margin": {"attack": "pgd", "loss": "margin", "eps": 0.1},
            "patch_fool": {"num_patches": [1, 2]},
            "black_box": {"attack": "mifgsm", "transfer": True},
            "autoattack": {"attacks": ["apgd-ce", "square"], "eps": [0.1]},
            "embedding_pgd": {"eps": [0.5]},
            "mine": {"_target_": "pgd", "eps": [0.2]},
        }
    )[1:]
    assert names(entries) == [
        ("fgsm", 4 / 255), ("pgd_margin", 0.1), ("patch_fool", 1), ("patch_fool", 2), ("black_box", 4 / 255),
        ("autoattack", 0.1), ("embedding_pgd", 0.5), ("mine", 0.2),
    ]  # fmt: skip
    assert {type(entry.benchmark) for entry in entries} == {UnderAttack, UnderEmbeddingAttack}
    assert [entry.benchmark.transfer for entry in entries].index(True) == 4
    assert entries[-1].benchmark.attack == PGD(eps=0.2)


def test_quick_attacks_with_radii_at_which_undefended_vits_differ():
    """At 1/255, PGD-10 leaves ViT-Ti 0 % of imagenette, at 0.25/255 30 %."""
    suite = OmegaConf.load(ROOT / "conf" / "suite" / "quick.yaml")
    entries = [entry for entry in expand_suite(attacks=OmegaConf.to_container(suite.attacks)) if entry.name != "clean"]
    assert {entry.name for entry in entries} == {"fgsm", "pgd"}
    assert [255 * entry.strength for entry in entries] == pytest.approx(2 * [0.25, 0.5, 1])


def test_corruptions():
    entries = expand_suite(corruptions="all", severities=[2, 5])[1:]
    assert names(entries) == [(name, severity) for name in TEST_CORRUPTIONS for severity in (2, 5)]
    assert all(isinstance(entry.benchmark, UnderCorruption) for entry in entries)
    some = expand_suite(corruptions=["fog", "spatter"], severities=[3])[1:]
    assert [entry.benchmark.corruption_name for entry in some] == ["fog", "spatter"]
    (single,) = expand_suite(corruptions={"fog": {"severity": 4}})[1:]
    assert (single.strength, single.benchmark.corruption.severity) == (4, 4)


def test_noise():
    entries = expand_suite(noise={"nullspace_noise": {"eps": 0.1, "init_scale": [0.5, 1]}})[1:]
    assert names(entries) == [("nullspace_noise", 0.5), ("nullspace_noise", 1)]
    assert all(isinstance(entry.benchmark, UnderNoise) for entry in entries)


def test_datasets():
    entries = expand_suite(
        root="/data", imagenet="/imagenet", severities=[1, 2],
        datasets={"imagenet_v2_top": {"dataset": "imagenet_v2", "variant": "top-images"}, "real": None,
                  "damagenet": None, "cue_conflict": {"root": "/cue"}, "imagenet_c": {"corruptions": ["fog"]}},
    )[1:]  # fmt: skip
    by_name = {entry.name: entry.benchmark for entry in entries}
    assert names(entries)[-2:] == [("imagenet_c_fog", 1), ("imagenet_c_fog", 2)]
    roots = {name: str(benchmark.data.root) for name, benchmark in by_name.items()}
    assert roots["imagenet_v2_top"] == "/data/imagenetv2"
    assert roots["real"] == "/imagenet"
    assert (roots["damagenet"], str(by_name["damagenet"].data.labels)) == ("/data/DAmageNet", "/imagenet")
    assert roots["cue_conflict"] == "/cue"
    assert isinstance(by_name["cue_conflict"], ShapeBias)
    assert by_name["imagenet_c_fog"].corruption_name == "fog"
    for name, count in (("imagenet_c", 15), ("cifar10_c", 15), ("imagenet_3dcc", 12), ("imagenet_c_bar", 10)):
        assert len(expand_suite(datasets=[name])) == 1 + 5 * count, name


def test_class_subsets_analyses_and_benchmarks():
    entries = expand_suite(
        class_subsets=["imagenet_a"], benchmarks={"mine": {"_target_": "clean"}},
        analyses={"noise": {"synthesis": {"eps": 0.03}}, "transfer": {"source": "noise"}, "exact": None},
    )  # fmt: skip
    assert names(entries) == [
        ("clean", None), ("clean_imagenet_a", None), ("noise", None), ("transfer", None), ("exact", None),
        ("mine", None),
    ]  # fmt: skip
    assert entries[1].benchmark.classes == "imagenet_a"


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"attacks": {"pgd": {"num_stepz": 3}}},
         "suite.attacks.pgd.num_stepz: no such setting; did you mean suite.attacks.pgd.num_steps?"),
        ({"attacks": {"pgd": {"num_steps": -3}}},
         "suite.attacks.pgd.num_steps=-3: should be greater than or equal to 0"),
        ({"attacks": {"pgd": {"eps": [0.1, 7]}}}, "suite.attacks.pgd.eps=7: should be less than or equal to 1"),
        ({"attacks": {"pdg": None}}, "suite.attacks.pdg.pdg: no such setting; did you mean suite.attacks.pdg.pgd?"),
        ({"attacks": {"embedding_pgd": {"transfer": True}}},
         "suite.attacks.embedding_pgd: noise on embeddings does not"),
        ({"corruptions": {"fogg": None}}, "suite.corruptions.fogg"),
        ({"corruptions": {"fog": {"severity": 6}}},
         "suite.corruptions.fog.severity=6: should be less than or equal to 5"),
        ({"noise": {"n": {"scope": "per_batch"}}}, "suite.noise.n: benchmarks use one noise per image"),
        ({"datasets": ["imagenet_x"]}, "suite.datasets.imagenet_x"),
        ({"datasets": {"imagenet_c": {"corruptions": ["rain"]}}},
         "suite.datasets.imagenet_c: ImageNet-C has no corruption 'rain'"),
        ({"analyses": {"transfer": {"source": "noise"}}}, "suite.analyses.transfer.source=noise: no such analysis"),
        ({"analyses": {"noise": {"synthesis": {"epsilon": 1}}}}, "suite.analyses.noise.synthesis.epsilon: no such"),
        ({"analyses": {"noise": {}}}, "suite.analyses.noise.synthesis lacks a value"),
        ({"benchmarks": {"mine": {"eps": 1}}}, "suite.benchmarks.mine has no _target_"),
        ({"benchmarks": {"mine": {"_target_": "pgd"}}}, "suite.benchmarks.mine: pgd is no ImageBenchmark"),
        ({"benchmarks": {"clean": {"_target_": "clean"}}}, "suite: two benchmarks are called clean"),
        ({"attacks": {"pgd": {"eps": [0.1, 0.1]}}}, "suite: two benchmarks are called pgd"),
        ({"score": {"pgd": 1}},
         "suite.score.pgd: the suite has no such benchmark, but clean, corruptions; leave it out"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(keys, message):
    with pytest.raises(UserError) as error:
        expand_suite(**keys)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "keys",
    [
        {"severities": []}, {"severities": [0]}, {"corruptions": "some"}, {"corruptions": ["rain"]},
        {"attacks": ["pgd"]},
        {"class_subsets": ["imagenet_x"]}, {"max_images": 0}, {"score": {"clean": -1}}, {"eps": [1]},
    ],
)  # fmt: skip
def test_wrong_keys_are_refused(keys):
    with pytest.raises(ValidationError):
        SuiteConfig(**keys)
