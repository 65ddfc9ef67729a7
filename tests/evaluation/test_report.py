"""report.html: complete, well-formed and self-contained."""

import re
from html.parser import HTMLParser

import pytest

from nsaug.corruptions import GaussianNoise
from nsaug.evaluation import Benchmark, BenchmarkResult, NamedBenchmark, Score
from nsaug.evaluation.reporting.aggregate import tabulate
from nsaug.evaluation.reporting.report import write_report
from tests.evaluation.conftest import ATTACKED, CLEAN, make_model, make_result

NAMES = [f"class {index} <&>" for index in range(10)]


def render(results, tmp_path, score=None):
    metadata = {"suite": "digits", "command": "a <b>"}
    write_report(tabulate(results, score), results, score, NAMES, metadata, tmp_path)
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


@pytest.fixture
def gaussian_noise():
    benchmark = Benchmark(corruption=GaussianNoise(), param="std", strengths=(0.1, 0.2))
    return NamedBenchmark("gaussian_noise", benchmark)


def test_report_has_all_sections(results, gaussian_noise, tmp_path):
    models = [make_model(name, seed) for name in ("clean", "nullspace") for seed in (0, 1)]
    results += [make_result(model, gaussian_noise, [0.7, 0.5]) for model in models]
    text = render(results, tmp_path, Score(weights={"pgd": 1}))
    for part in (
        "<h2>Attacks</h2>", "<h2>Corruptions</h2>", "Corruptions by severity", "Comparison of models",
        "nullspace minus clean",
        "Calibration on clean images", "Sample images", "relative_accuracy", "ece", "91.0 ± 12.7", "a &lt;b&gt;",
        "weighted mean of pgd (1.0)",
    ):  # fmt: skip
        assert part in text, part
    assert re.search(r"class \d &lt;&amp;&gt;", text)
    assert "Failed benchmarks" not in text
    assert "ε in training" not in text, "all runs have the same ε"


def test_report_is_well_formed_and_self_contained(results, tmp_path):
    text = render(results, tmp_path)
    parser = BalancedParser()
    parser.feed(text)
    assert parser.open == []
    assert {"svg", "img", "table"} <= set(parser.seen)
    assert not {"script", "iframe"} & set(parser.seen)
    sources = re.findall(r"(?:src|xlink:href|(?<!:)href)=\"([^\"]*)\"", text) + re.findall(r"url\(([^)]*)\)", text)
    assert sources
    assert all(source.startswith(("data:", "#")) for source in sources)


def test_report_lists_failures(results, tmp_path):
    failed = BenchmarkResult(results[0].model, ATTACKED, None, "RuntimeError: no memory")
    text = render([*results[:1], failed], tmp_path)
    assert "Failed benchmarks" in text
    assert "clean, seed 0, pgd: RuntimeError: no memory" in text


def test_report_plots_eps_if_runs_differ_in_it(tmp_path):
    results = []
    for eps in (0.01, 0.1):
        metadata = {"method": "nullspace", "settings": {"nullspace": {"eps": eps}}}
        results.append(make_result(make_model(f"nullspace nullspace.eps={eps}", **metadata), CLEAN, [0.9]))
    other_seed = make_model(results[1].model.name, seed=1, **metadata)
    results[1] = BenchmarkResult(other_seed, CLEAN, results[1].output)
    text = render(results, tmp_path)
    assert "<h2>ε in training</h2>" in text
    assert text.count("ε in training") == 2, "heading and axis label"


def test_report_of_one_model_has_no_comparison(results, tmp_path):
    text = render(results[:2], tmp_path)
    assert "Comparison of models" not in text
    assert "Sample images" in text
