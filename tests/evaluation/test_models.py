import json

import pytest

from nsaug.evaluation import find_models
from nsaug.models.weights import save_config, save_weights
from nsaug.utils.errors import UserError
from tests.conftest import tiny_vit


@pytest.fixture
def runs(tmp_path):
    vit = tiny_vit()
    for name, eps, seed in (("nullspace", 0.01, 0), ("nullspace", 0.01, 1), ("nullspace", 0.1, 0), ("clean", 0.03, 0)):
        nullspace = {"eps": eps, "steps": 3}
        settings = {"method": {"noise": nullspace}, "nullspace": nullspace, "trainer": {"max_steps": -1}}
        metadata = {"name": name, "method": name, "seed": seed, "settings": settings}
        save_config(tmp_path / f"{name}-{eps}-{seed}", vit, metadata)
        save_weights(tmp_path / f"{name}-{eps}-{seed}", vit.state_dict())
    return tmp_path


def test_glob_ignores_other_files(runs):
    (runs / "multirun.yaml").write_text("")
    (runs / "folder").mkdir()
    models, _ = find_models(f"{runs}/*", None)
    assert [model.columns["seed"] for model in models] == [0, 0, 1, 0]


def test_differing_settings_are_part_of_the_name(runs):
    names = [model.name for model in find_models(f"{runs}/*", None)[0]]
    assert names == [
        "clean",
        "nullspace nullspace.eps=0.01",
        "nullspace nullspace.eps=0.01",
        "nullspace nullspace.eps=0.1",
    ]
    two_seeds, _ = find_models([f"{runs}/nullspace-0.01-0", f"{runs}/nullspace-0.01-1"], None)
    assert [model.name for model in two_seeds] == ["nullspace", "nullspace"]


def test_duplicate_paths_are_evaluated_once(runs):
    run = f"{runs}/clean-0.03-0"
    assert len(find_models([f"{runs}/clean*", run, f"{run}/model.safetensors"], None)[0]) == 1


def test_files_with_the_same_name_are_not_seeds_of_one_model(runs):
    for folder in ("a", "b"):
        (runs / folder).mkdir()
        (runs / folder / "best.safetensors").write_bytes((runs / "clean-0.03-0" / "model.safetensors").read_bytes())
    models, _ = find_models([f"{runs}/a/best.safetensors", f"{runs}/b/best.safetensors"], None)
    assert [model.name for model in models] == [f"best {runs}/{folder}/best.safetensors" for folder in "ab"]


def test_glob_inside_a_run_folder_finds_its_weights_once(runs):
    (runs / "clean-0.03-0" / "last.ckpt").write_bytes(b"")
    (model,), _ = find_models(f"{runs}/clean-0.03-0/*", None)
    assert model.checkpoint.endswith("model.safetensors")


def test_unfinished_run_is_skipped_with_a_warning(runs, caplog):
    (runs / "clean-0.03-0" / "model.safetensors").unlink()
    assert len(find_models(f"{runs}/*", None)[0]) == 3
    assert f"skipping {runs}/clean-0.03-0: its run did not finish" in caplog.text


def test_timm_models_beside_a_checkpoint(runs):
    models, _ = find_models([f"{runs}/clean-0.03-0", "timm:vit_tiny_patch16_224", "timm:deit_tiny_patch16_224"], None)
    assert [model.name for model in models] == ["clean", "vit_tiny_patch16_224", "deit_tiny_patch16_224"]
    assert models[1].build_args() == {"name": "vit_tiny_patch16_224", "pretrained": True}


def test_timm_model_alone():
    (model,), _ = find_models(None, "vit_small_patch16_224")
    assert model.columns == {"checkpoint": None, "name": "vit_small_patch16_224", "method": None, "seed": None}


def test_errors(runs):
    with pytest.raises(UserError, match="no model to evaluate: type checkpoint=PATH"):
        find_models(None, None)
    with pytest.raises(UserError, match="does not exist"):
        find_models(f"{runs}/nothing", None)
    with pytest.raises(UserError, match="matches no run folder"):
        find_models(f"{runs}/nothing*", None)


def test_weights_without_a_config_need_a_model(runs):
    (runs / "clean-0.03-0" / "config.json").unlink()
    (model,), _ = find_models(f"{runs}/clean-0.03-0", None)
    with pytest.raises(UserError, match=r"has no config.json of nsaug or timm beside it: add model=\.\.\."):
        model.build_args()


@pytest.mark.parametrize(
    ("config", "names"),
    [
        ({"architecture": "vit_tiny_patch16_224", "label_names": ["cat", "dog"]}, ["cat", "dog"]),
        ({"architecture": "vit_tiny_patch16_224", "label_names": {"1": "dog", "0": "cat"}}, ["cat", "dog"]),
        ({"architecture": "vit_tiny_patch16_224", "label_names": {"0": "cat", "7": "dog"}}, None),
        ({"architecture": "vit_tiny_patch16_224"}, None),
        ({"model_type": "vit", "id2label": {"0": "cat", "1": "dog"}}, ["cat", "dog"]),
        ({"model_type": "vit", "id2label": {"0": "LABEL_0", "1": "LABEL_1"}}, None),
        ({"id2label": {"0": "cat", "1": "dog"}}, None),
    ],
)
def test_class_names_of_other_libraries(tmp_path, config, names):
    (tmp_path / "model.safetensors").write_bytes(b"")
    (tmp_path / "config.json").write_text(json.dumps(config))
    (model,), _ = find_models(str(tmp_path), None)
    assert model.class_names == names


def test_folders_of_transformers(tmp_path):
    """Weights may be pickled, or in several files."""
    for name in ("pytorch_model.bin", "model.safetensors.index.json"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).write_bytes(b"")
        assert [model.name for model in find_models(f"{tmp_path}/{name}", None)[0]] == [name]
    assert len(find_models(f"{tmp_path}/*", None)[0]) == 2
