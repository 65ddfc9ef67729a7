"""results.npz: saved results equal the original ones, damage is one line, evaluations are compared."""

import dataclasses
import io
import json
import zipfile

import numpy as np
import pandas as pd
import pytest

from nsaug.evaluation import AnalysisResult, BenchmarkResult, Measurement
from nsaug.evaluation.reporting.aggregate import tabulate
from nsaug.evaluation.reporting.archive import FILE, compare, load_results, merge_results, save_results
from nsaug.evaluation.reporting.report import write_report
from nsaug.utils.errors import UserError
from tests.evaluation.conftest import make_model, make_result, make_results


def with_weights(results, weights):
    return [dataclasses.replace(result, weights=weights) for result in results]


def save(folder, results, weights=None):
    folder.mkdir()
    save_results(results, weights or {}, folder)
    return folder


def analysis(model):
    measurements = [Measurement("learned", None, "rms", 0, 0.5), Measurement("learned", 1.0, "influence", 0, 0.1)]
    output = AnalysisResult(measurements, ["a", "b"], ["title"], [np.full((8, 8, 3), 7, np.uint8)], notes=("note",))
    return BenchmarkResult(model, "noise", None, "analyzed", output)


def test_round_trip(results, tmp_path):
    extra = dataclasses.replace(results[1].output.scores, extra={"converged": np.arange(50) < 20})
    output = dataclasses.replace(results[1].output, scores=extra, notes=("a; b", "sur\udc80rogate \0"))
    results[1] = dataclasses.replace(results[1], output=output, corruption="fog", is_own_data=False, is_stored=True)
    results += [analysis(results[0].model), BenchmarkResult(results[0].model, "x", 1.0, "attacked", None, "no memory")]
    results = with_weights(results, "ab" * 32)
    loaded, weights = load_results(save(tmp_path / "a", results, {"clean": 1.0, "pgd": 3.0}))
    assert weights == {"clean": 1, "pgd": 3}
    pd.testing.assert_frame_equal(tabulate(loaded, weights), tabulate(results, weights))
    for before, after in zip(results, loaded, strict=True):
        for field in dataclasses.fields(before):
            if field.name not in ("output", "class_names"):
                assert getattr(before, field.name) == getattr(after, field.name)
        assert list(before.class_names) == list(after.class_names)
        assert before.notes == after.notes
        if before.output:
            assert before.output.ids == after.output.ids
    np.testing.assert_array_equal(loaded[-2].analysis.images, results[-2].analysis.images)


def test_report_of_saved_results_equals_the_original_one(results, tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    write_report(results, {"pgd": 1}, {"suite": "digits"}, tmp_path / "a")
    loaded, weights = load_results(tmp_path / "a")
    write_report(loaded, weights, {"suite": "digits"}, tmp_path / "b")
    for name in ("results.csv", "groups.csv", "comparisons.csv", "results.md", "report.html"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_sample_images_of_the_report_are_kept_reduced(tmp_path):
    samples = np.full((3, 224, 224, 3), 9, np.uint8)
    results = [make_result(make_model(), 0.9, "pgd", eps, "attacked") for eps in (0.1, 0.2)]
    results = [dataclasses.replace(r, output=dataclasses.replace(r.output, sample_images=samples)) for r in results]
    loaded, _ = load_results(save(tmp_path / "a", results))
    assert [result.output.sample_images.shape for result in loaded] == [(0, 1, 1, 3), (3, 112, 112, 3)]


def rewrite(path, change):
    """Change the members of a results file, given as a dict of bytes."""
    with zipfile.ZipFile(path) as file:
        members = {name: file.read(name) for name in file.namelist()}
    change(members)
    with zipfile.ZipFile(path, "w") as file:
        for name, data in members.items():
            file.writestr(name, data)


def to_npy(array, **kwargs):
    buffer = io.BytesIO()
    np.save(buffer, array, **kwargs)
    return buffer.getvalue()


def change_content(change):
    def apply(members):
        content = json.loads(np.load(io.BytesIO(members["content.npy"])).tobytes())
        change(content)
        members["content.npy"] = to_npy(np.frombuffer(json.dumps(content).encode(), np.uint8))

    return apply


class Executed:
    def __reduce__(self):
        return (pytest.fail, ("a pickle was executed",))


DAMAGE = {
    "no content": lambda members: members.pop("content.npy"),
    "content of another type": lambda members: members.update({"content.npy": to_npy(np.zeros(3, "M8[s]"))}),
    "invalid JSON": lambda members: members.update({"content.npy": to_npy(np.frombuffer(b"{", np.uint8))}),
    "deep JSON": lambda members: members.update({"content.npy": to_npy(np.frombuffer(b"[" * 10**5, np.uint8))}),
    "a list": lambda members: members.update({"content.npy": to_npy(np.frombuffer(b"[]", np.uint8))}),
    "pickle": lambda members: members.update({"0/label.npy": to_npy(np.array([Executed()]), allow_pickle=True)}),
    "other length": lambda members: members.update({"0/label.npy": to_npy(np.zeros(3, int))}),
    "other kind": lambda members: members.update({"0/nll.npy": to_npy(np.array(["x"] * 50))}),
    "other shape": lambda members: members.update({"0/sample_images.npy": to_npy(np.zeros((3, 8), np.uint8))}),
    "missing array": lambda members: members.pop("1/top1.npy"),
    "wrong index": change_content(lambda content: content["results"][0].update(model=99)),
    "negative index": change_content(lambda content: content["results"][0].update(class_names=-1)),
    "wrong settings": change_content(lambda content: content["models"][0]["metadata"].update(settings=[1])),
    "wrong seed": change_content(lambda content: content["models"][0]["metadata"].update(seed="zero")),
    "wrong name": change_content(lambda content: content["results"][0].update(name=["a"])),
    "unknown key": change_content(lambda content: content["results"][0].update(code="evil")),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_one_line(results, tmp_path, damage):
    folder = save(tmp_path / "a", results)
    rewrite(folder / FILE, DAMAGE[damage])
    with pytest.raises(UserError, match=r"results\.npz is damaged \(\w+\): evaluate these models again$"):
        load_results(folder)


def test_truncated_file_is_one_line(results, tmp_path):
    path = save(tmp_path / "a", results) / FILE
    for size in (0, 100, path.stat().st_size // 2):
        path.write_bytes(path.read_bytes()[:size])
        with pytest.raises(UserError, match="is damaged"):
            load_results(path.parent)


def test_other_version_and_missing_files(results, tmp_path):
    folder = save(tmp_path / "a", results)
    rewrite(folder / FILE, change_content(lambda content: content.update(format=7)))
    with pytest.raises(UserError, match="has format 7, this version of nsaug reads 1"):
        load_results(folder)
    with pytest.raises(UserError, match="nowhere does not exist: name an output folder"):
        load_results(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"has no results\.npz"):
        load_results(tmp_path)


def settings(eps):
    return {"method": "nullspace", "settings": {"nullspace": {"eps": eps}}}


def test_evaluations_are_compared(tmp_path):
    """Runs of one name get the settings that differ, and a model in both evaluations counts once."""
    start = with_weights(make_results(make_model("start", None), 0.7, 0.5, 0.1), "aa")
    folders = []
    for number, eps in enumerate((0.01, 0.1)):
        model = dataclasses.replace(make_model("nullspace", **settings(eps)), checkpoint=f"runs/{eps}")
        runs = with_weights(make_results(model, 0.8, 0.5, 0.1), f"b{number}")
        folders.append(save(tmp_path / str(number), [*start, *runs], {"clean": 1.0}))
    results, weights = compare(folders)
    assert weights == {"clean": 1}
    names = list(dict.fromkeys(result.model.name for result in results))
    assert names == ["start", "nullspace nullspace.eps=0.01", "nullspace nullspace.eps=0.1"]
    assert len(results) == 3 * 3


def test_a_model_on_other_images_stays_apart():
    model = make_model()
    evaluations = [with_weights([make_result(model, 0.9, n=n)], "aa") for n in (50, 40)]
    names = [result.model.name for result in merge_results(evaluations)]
    assert len(set(names)) == 2


def test_scores_of_other_strengths_are_not_compared(tmp_path, caplog):
    clean, weak, _ = make_results(make_model("a"), 0.9, 0.5, 0.1)
    other = with_weights(make_results(make_model("b"), 0.9, 0.5, 0.1), "bb")
    folders = [
        save(tmp_path / "a", with_weights([clean, weak], "aa"), {"pgd": 1.0}),
        save(tmp_path / "b", other, {"pgd": 1.0}),
    ]
    assert compare(folders).weights == {}
    assert "different scores" in caplog.text


def test_evaluations_without_a_common_benchmark(tmp_path):
    folders = [
        save(tmp_path / "a", [make_result(make_model("a"), 0.9)]),
        save(tmp_path / "b", [make_result(make_model("b"), 0.9, "pgd", 0.1, "attacked")]),
    ]
    with pytest.raises(UserError, match="has no benchmark in common with the others"):
        compare(folders)
    with pytest.raises(UserError, match="name two or more output folders"):
        compare(folders[:1])
