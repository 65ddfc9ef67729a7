import pytest

from nsaug.evaluation import find_models
from nsaug.models.weights import save_config, save_weights
from nsaug.utils.errors import UserError
from tests.conftest import tiny_vit


@pytest.fixture
def runs(tmp_path):
    vit = tiny_vit()
    for name, eps, seed in (
        ("nullspace", 0.01, 0),
        ("nullspace", 0.01, 1),
        ("nullspace", 0.1, 0),
        ("clean", 0.03, 0),
    ):
        nullspace = {"eps": eps, "steps": 3}
        settings = {"method": {"synthesis": nullspace}, "nullspace": nullspace, "trainer": {"max_steps": -1}}
        record = {"name": name, "method": name, "seed": seed, "settings": settings}
        save_config(tmp_path / f"{name}-{eps}-{seed}", vit, record)
        save_weights(tmp_path / f"{name}-{eps}-{seed}", vit.model)
    return tmp_path


def test_a_glob_finds_runs_and_leaves_other_files(runs):
    (runs / "multirun.yaml").write_text("")
    (runs / "folder").mkdir()
    found = find_models(f"{runs}/*", None)
    assert [subject.columns["seed"] for subject in found] == [0, 0, 1, 0]


def test_runs_that_differ_by_more_than_the_seed_are_told_apart(runs):
    names = [subject.name for subject in find_models(f"{runs}/*", None)]
    assert names == [
        "clean",
        "nullspace nullspace.eps=0.01",
        "nullspace nullspace.eps=0.01",
        "nullspace nullspace.eps=0.1",
    ]
    alone = find_models([f"{runs}/nullspace-0.01-0", f"{runs}/nullspace-0.01-1"], None)
    assert [subject.name for subject in alone] == ["nullspace", "nullspace"]


def test_a_path_named_twice_is_judged_once(runs):
    assert (
        len(find_models([f"{runs}/clean*", f"{runs}/clean-0.03-0", f"{runs}/clean-0.03-0/model.safetensors"], None))
        == 1
    )


def test_what_is_alike_even_in_its_seed_is_told_apart_by_its_path(runs):
    """Two files of one name are no two seeds of one model."""
    for folder in ("a", "b"):
        (runs / folder).mkdir()
        (runs / folder / "best.safetensors").write_bytes((runs / "clean-0.03-0" / "model.safetensors").read_bytes())
    found = find_models([f"{runs}/a/best.safetensors", f"{runs}/b/best.safetensors"], None)
    assert [subject.name for subject in found] == [f"best {runs}/{folder}/best.safetensors" for folder in "ab"]


def test_a_run_is_found_once_whatever_is_in_its_folder(runs):
    (runs / "clean-0.03-0" / "last.ckpt").write_bytes(b"")
    (subject,) = find_models(f"{runs}/clean-0.03-0/*", None)
    assert subject.checkpoint.endswith("model.safetensors")


def test_a_run_that_did_not_end_is_named(runs, caplog):
    (runs / "clean-0.03-0" / "model.safetensors").unlink()
    assert len(find_models(f"{runs}/*", None)) == 3
    assert f"{runs}/clean-0.03-0 is left out: its run did not end" in caplog.text


def test_several_timm_models_beside_a_checkpoint(runs):
    found = find_models([f"{runs}/clean-0.03-0", "timm:vit_tiny_patch16_224", "timm:deit_tiny_patch16_224"], None)
    assert [subject.name for subject in found] == ["clean", "vit_tiny_patch16_224", "deit_tiny_patch16_224"]
    assert found[1].model() == {"name": "vit_tiny_patch16_224", "pretrained": True}


def test_a_plain_timm_model():
    (subject,) = find_models(None, "vit_small_patch16_224")
    assert subject.columns == {
        "checkpoint": None,
        "name": "vit_small_patch16_224",
        "method": None,
        "seed": None,
    }


def test_what_is_not_there(runs):
    with pytest.raises(UserError, match="nothing to judge: type checkpoint=PATH"):
        find_models(None, None)
    with pytest.raises(UserError, match="does not exist"):
        find_models(f"{runs}/nothing", None)
    with pytest.raises(UserError, match="matches no run's folder"):
        find_models(f"{runs}/nothing*", None)


def test_weights_without_a_config_say_so(runs):
    (runs / "clean-0.03-0" / "config.json").unlink()
    (subject,) = find_models(f"{runs}/clean-0.03-0", None)
    with pytest.raises(UserError, match=r"has no config.json beside it: add model=\.\.\."):
        subject.model()
