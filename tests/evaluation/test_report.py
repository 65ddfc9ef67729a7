"""The page: everything in it, nothing fetched."""

import re
from html.parser import HTMLParser

import pytest

from nsaug.corruptions import GaussianNoise
from nsaug.evaluation import Benchmark, BenchmarkResult, NamedBenchmark, Score
from nsaug.evaluation.reporting.aggregate import tabulate
from nsaug.evaluation.reporting.report import write_report
from tests.evaluation.conftest import ATTACKED, CLEAN, outcome, subject

NAMES = [f"class {index} <&>" for index in range(10)]


def page(outcomes, tmp_path, score=None):
    told = {"suite": "digits", "command": "a <b>"}
    write_report(tabulate(outcomes, score), outcomes, score, NAMES, told, tmp_path)
    return (tmp_path / "report.html").read_text()


class Balanced(HTMLParser):
    """Raises on a tag that is closed out of order."""

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
def noisy():
    return NamedBenchmark("gaussian_noise", Benchmark(corruption=GaussianNoise(), vary="std", values=(0.1, 0.2)))


def test_it_shows_all_there_is(outcomes, noisy, tmp_path):
    outcomes += [outcome(subject(name, seed), noisy, [0.7, 0.5]) for name in ("clean", "nullspace") for seed in (0, 1)]
    text = page(outcomes, tmp_path, Score(weights={"pgd": 1}))
    for part in (
        "Under attack", "Corrupted", "Corruption by severity", "Model against model",
        "nullspace minus clean",
        "Calibration on clean images", "Sample images", "retention", "ece", "91.0 ± 12.7", "a &lt;b&gt;",
        "weighted mean of pgd (1.0)",
    ):  # fmt: skip
        assert part in text, part
    assert re.search(r"class \d &lt;&amp;&gt;", text)
    assert "What failed" not in text
    assert "The ε of training" not in text, "all runs had one ε"


def test_it_is_well_formed_and_fetches_nothing(outcomes, tmp_path):
    text = page(outcomes, tmp_path)
    parser = Balanced()
    parser.feed(text)
    assert parser.open == []
    assert {"svg", "img", "table"} <= set(parser.seen)
    assert not {"script", "iframe"} & set(parser.seen)
    sources = re.findall(r"(?:src|xlink:href|(?<!:)href)=\"([^\"]*)\"", text) + re.findall(r"url\(([^)]*)\)", text)
    assert sources
    assert all(source.startswith(("data:", "#")) for source in sources)


def test_failures_are_told(outcomes, tmp_path):
    failed = BenchmarkResult(outcomes[0].subject, ATTACKED, None, "RuntimeError: no memory")
    text = page([*outcomes[:1], failed], tmp_path)
    assert "What failed" in text
    assert "clean, seed 0, pgd: RuntimeError: no memory" in text


def test_runs_of_several_eps_make_a_curve(tmp_path):
    found = []
    for eps in (0.01, 0.1):
        record = {"method": "nullspace", "settings": {"nullspace": {"eps": eps}}}
        of = subject(f"nullspace nullspace.eps={eps}", **record)
        found.append(outcome(of, CLEAN, [0.9]))
    found[1] = BenchmarkResult(subject(found[1].subject.name, seed=1, **record), CLEAN, found[1].result)
    text = page(found, tmp_path)
    assert "The ε of training" in text
    assert "ε in training" in text


def test_one_model_alone_has_nothing_to_be_compared_with(outcomes, tmp_path):
    text = page(outcomes[:2], tmp_path)
    assert "Model against model" not in text
    assert "Sample images" in text
