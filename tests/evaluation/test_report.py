"""report.html: complete, well-formed and self-contained."""

import dataclasses
import re
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest

from nsaug.data.names import wnids
from nsaug.evaluation import AnalysisResult, BenchmarkResult, Measurement
from nsaug.evaluation.reporting import sections
from nsaug.evaluation.reporting.aggregate import aggregate_seeds, tabulate
from nsaug.evaluation.reporting.comparisons import pairwise_differences
from nsaug.evaluation.reporting.notes import ANCHORS, docs_link, find_anchor, find_notes
from nsaug.evaluation.reporting.report import write_report
from tests.conftest import ROOT
from tests.evaluation.conftest import make_model, make_result, make_results

NAMES = [f"class {index} <&>" for index in range(10)]


def render(results, tmp_path, score=None):
    metadata = {"suite": "digits", "command": "a <b>"}
    results = [dataclasses.replace(result, class_names=result.class_names and NAMES) for result in results]
    write_report(results, score or {}, metadata, tmp_path)
    return (tmp_path / "report.html").read_text()


class BalancedParser(HTMLParser):
    """Fails on tags that are closed out of order."""

    VOID = ("meta", "link", "img", "br", "path", "use", "rect", "image")

    def __init__(self):
        super().__init__()
        self.open, self.seen = [], []

    def handle_starttag(self, tag, attrs):
        self.seen.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.seen.append(tag)

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag


def corruptions(model):
    return [make_result(model, 0.7, "gaussian_noise", std, "corrupted") for std in (0.1, 0.2)]


def with_notes(result, *notes):
    return dataclasses.replace(result, output=dataclasses.replace(result.output, notes=notes))


def test_report_has_all_sections(results, tmp_path):
    results += [result for model in {r.model.label: r.model for r in results}.values() for result in corruptions(model)]
    text = render(results, tmp_path, {"pgd": 1})
    for part in (
        "<h2>Attacks</h2>", "<h2>Corruptions</h2>", "Top-1 in % by severity", "Comparison of models",
        "nullspace minus clean",
        "Calibration on clean images", "Sample images", "relative_accuracy", "ece", "aurc", "a &lt;b&gt;",
        "weighted mean of pgd (1)", "pgd, expected robustness",
    ):  # fmt: skip
        assert part in text, part
    assert re.search(r"true: class \d &lt;&amp;&gt;", text)
    assert re.search(r"[✓✗] class \d &lt;&amp;&gt;", text)
    assert "Failed benchmarks" not in text
    assert "Accuracy against" not in text, "no setting varies within a method"


@pytest.mark.parametrize("with_results", [True, False])
def test_report_is_well_formed_and_self_contained(results, tmp_path, with_results):
    model = results[0].model
    analysis = AnalysisResult([Measurement("learned", 1.0, "agreement", 0, 0.5)], ["a", "b"])
    only_analysis = [BenchmarkResult(model, "noise", None, "analyzed", analysis)]
    text = render(results if with_results else only_analysis, tmp_path)
    parser = BalancedParser()
    parser.feed(text)
    assert parser.open == []
    assert {"svg", "table"} <= set(parser.seen)
    assert not {"script", "iframe"} & set(parser.seen)
    sources = re.findall(r"(?:src|xlink:href|link rel=\"icon\" href)=\"([^\"]*)\"", text)
    sources += re.findall(r"url\(([^)]*)\)", text)
    assert sources
    assert all(source.startswith(("data:", "#")) for source in sources)


def test_empty_sections_are_a_sentence(tmp_path):
    analysis = AnalysisResult([Measurement("learned", 1.0, "agreement", 0, 0.5)], ["a", "b"])
    text = render([BenchmarkResult(make_model(), "noise", None, "analyzed", analysis)], tmp_path)
    for sentence in (
        "no accuracies: this suite has analyses only.", "No attack was evaluated at several strengths.",
        "No corruption was evaluated", "No two models were evaluated on the same images.", "Too few clean images",
        "There are no sample images.",
    ):  # fmt: skip
        assert sentence in text
    assert "This suite has no analyses." in render([make_result(make_model(), 0.9)], tmp_path)


def test_report_lists_failures(results, tmp_path):
    failed = BenchmarkResult(results[0].model, "pgd", 0.1, "attacked", None, "RuntimeError: no memory")
    text = render([*results[:1], failed], tmp_path)
    assert "Failed benchmarks" in text
    assert "clean, seed 0, pgd: RuntimeError: no memory" in text


def test_head_names_settings_and_weights(tmp_path):
    results = []
    for eps in (0.01, 0.1):
        settings = {
            "nullspace": {"eps": eps},
            "model": {"name": "vit_s", "pretrained": True},
            "trainer": {"max_epochs": 7},
        }
        for seed in range(2):
            model = make_model(f"nullspace {eps}", seed, method="nullspace", settings=settings)
            model = dataclasses.replace(model, checkpoint=f"{eps}/{seed}")
            results.append(dataclasses.replace(make_result(model, 0.9), weights=f"{seed}abcdef0123"))
    runs = sections.runs_table(results)
    assert runs["columns"] == ["method", "ε", "base weights", "epochs", "seeds", "weights (SHA-256)"]
    assert runs["lines"][0] == ("nullspace 0.01", ["nullspace", "0.01", "vit_s", "7", "0, 1", "0abcdef0, 1abcdef0"])
    text = render(results, tmp_path)
    assert "Accuracy against ε" in text
    assert "0abcdef0, 1abcdef0" in text


def best_names(results):
    groups = aggregate_seeds(tabulate(results, {}))
    table = sections.main_table(groups, pairwise_differences(results, {}))
    return {
        heading: [name for name, (_, best) in zip(table["names"], cells, strict=True) if best]
        for heading, cells in table["lines"]
    }


def test_only_a_significant_best_value_is_bold():
    first, second, third = (make_model(name) for name in "abc")
    results = [*make_results(first, 0.9, 0.5, 0.1), *make_results(second, 0.88, 0.9, 0.1)]
    results += make_results(third, 0.9, 0.2, 0.9)
    best = best_names(results)
    assert best["clean"] == [], "a difference of 1 image of 50, and a tie"
    assert best["pgd 4/255"] == ["b"]
    assert best["pgd 8/255"] == ["c"]


def test_bold_values_differ_over_seeds_if_there_are_several():
    results = []
    for seed, accuracies in enumerate(((0.9, 0.5), (0.5, 0.45), (0.9, 0.1))):
        for name, accuracy in zip("ab", accuracies, strict=True):
            results.append(make_result(make_model(name, seed), accuracy, seed=seed))
    assert best_names(results)["clean"] == [], "the interval over seeds contains 0, that over images does not"
    for seed in range(3):
        results[2 * seed + 1] = make_result(make_model("b", seed), [0.6, 0.2, 0.61][seed], seed=seed)
    assert best_names(results)["clean"] == ["a"]


def test_lower_errors_are_better():
    from tests.evaluation.test_corruption_error import all_corruptions

    good = all_corruptions()
    bad = [dataclasses.replace(result, model=make_model("bad")) for result in all_corruptions(accuracy=dict.fromkeys(
        {result.corruption for result in good}, np.full(5, 0.1)
    ))]  # fmt: skip
    assert best_names([*bad, *good])["mCE"] == ["clean"]


def test_wordnet_ids_are_readable(tmp_path):
    result = dataclasses.replace(make_result(make_model(), 0.9), class_names=wnids())
    write_report([result], {}, {"suite": "imagenet"}, tmp_path)
    text = (tmp_path / "report.html").read_text()
    assert not re.search(r"n\d{8}", text)
    assert any(f"true: {name}" in text for name in ("tench", "goldfish", "great white shark", "hammerhead", "cock"))


NOTES = [
    "PGD may overestimate this model's robustness: the loss has no gradient at 3 of 16 images: try loss=margin",
    "3 of 50 images cannot be read (a.png)",
    "generated on the fly",
    "order of the classes assumed: 0, 1, 2",
    "1,000 of 50,000 images, drawn with seed 0",
    "5,000 images of the 5,000 in ids.txt",
    "predictions restricted to 200 classes",
    "49,999 of 50,000 images are there",
    "resized from 224 to 384 px",
    "validation images",
    "expected robustness over the radii 0, 1/255, 4/255",
]


@pytest.mark.parametrize("text", NOTES)
def test_notes_link_to_a_paragraph_of_the_docs(text):
    page = (ROOT / "docs" / "evaluation.md").read_text()
    headings = {heading.lower().replace(" ", "-") for heading in re.findall(r"^### (.*)$", page, flags=re.MULTILINE)}
    assert find_anchor(text) in headings


def test_every_kind_of_note_is_tested():
    assert {find_anchor(text) for text in NOTES} == set(ANCHORS.values())
    assert find_anchor("anything else") is None


def test_notes_name_benchmarks_and_models():
    first, second = make_results(make_model("a"), 0.9, 0.5, 0.1), make_results(make_model("b"), 0.9, 0.5, 0.1)
    results = [with_notes(result, "drawn with seed 0") for result in (*first, *second)]
    results[1] = with_notes(results[1], "drawn with seed 0", "own; note")
    scopes = {note.text: note.scope for note in find_notes(tabulate(results, {}))}
    assert scopes["drawn with seed 0"] == "all"
    assert scopes["own, note"] == "pgd of a"


def test_docs_link(tmp_path):
    assert docs_link("subsets", ROOT / "outputs" / "a") == "../../docs/evaluation.md#subsets"
    assert docs_link("subsets", tmp_path) is None, "the docs are not beside the report"


def test_comparison_table_has_every_row(results):
    comparisons = pairwise_differences(results, {})
    assert len(sections.comparison_rows(comparisons)) == len(comparisons) == 4
    assert sections.comparison_rows(pd.DataFrame(columns=comparisons.columns)) == []
