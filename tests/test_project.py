"""Files for people and services around the code: citation, changelog, issue templates, hooks, Dockerfile."""

import re
import shlex
import tomllib

import pytest
import yaml

from nsaug import __version__
from tests.conftest import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_version_has_one_place():
    assert "version" not in PROJECT
    assert PROJECT["dynamic"] == ["version"]


def test_changelog_starts_with_this_version():
    first = re.search(r"^## (\S+?),? ", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)
    assert first[1] == __version__


def test_citation_names_software_and_paper():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= set(citation)  # the keys that the format requires
    assert str(citation["version"]) == __version__
    assert citation["license"] == PROJECT["license"]
    (paper,) = citation["references"]
    assert {"type", "title", "authors"} <= set(paper)
    assert [author["family-names"] for author in paper["authors"]] == ["Liu", "Singh", "Li", "Wang"]
    assert "2403.10476" in paper["identifiers"][0]["value"]


TEMPLATES = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_issue_templates_are_forms(path):
    form = yaml.safe_load(path.read_text())
    if path.stem == "config":
        assert set(form) <= {"blank_issues_enabled", "contact_links"}
        return
    assert {"name", "description", "body"} <= set(form)  # the keys that GitHub requires
    ids = [field["id"] for field in form["body"]]
    assert len(ids) == len(set(ids))
    assert all(field["type"] in ("textarea", "input", "dropdown", "checkboxes") for field in form["body"])
    assert all(field["attributes"]["label"] for field in form["body"])


def test_hooks_run_make_lint():
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    lint = re.search(r"^lint:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    commands = [line.strip().replace("$(BIN)", ".venv/bin").removesuffix(" .") for line in lint[1].splitlines()]
    assert [hook["entry"].removesuffix(" --force-exclude") for hook in repository["hooks"]] == commands


def test_dockerfile_copies_files_that_exist():
    text = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
    ignored = (ROOT / ".dockerignore").read_text().split()
    sources = [source for line in re.findall(r"^COPY (.*)$", text, flags=re.MULTILINE) for source in line.split()[:-1]]
    assert "pyproject.toml" in sources
    for source in sources:
        assert (ROOT / source).exists(), source
        assert source not in ignored
    (extras,) = re.findall(r"--editable '\.\[(.*)\]'", text)
    assert set(extras.split(",")) <= set(PROJECT["optional-dependencies"])
    command = shlex.split(re.search(r'^CMD \["(.*)"\]$', text, flags=re.MULTILINE)[1].replace('", "', " "))
    assert command[0] == "sh"
    assert (ROOT / command[1]).is_file()
