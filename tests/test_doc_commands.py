"""Every command in README.md, CONTRIBUTING.md and docs/ is composed, or checked in another way; some run, too.

The settings of train.py and evaluate.py are checked by the commands themselves, which then stop before they read data.
Commands that need nothing but the embedded digits run with a few steps and images. A program that is not known here
fails.
"""

import importlib.metadata
import importlib.util
import re
import shlex
import shutil
import sys
import tomllib

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep

from nsaug.cli import dashboard, evaluate, export, push, train
from nsaug.cli.plain import _parse
from tests import doc_blocks
from tests.commands import FAST, run
from tests.conftest import ROOT
from tests.doc_blocks import PAGES, page_commands, read_blocks

RUN = "outputs/train/2026-01-31_12-00-00"
SWEEP = "outputs/train/sweep"
PLACEHOLDERS = {  # in this order
    r"outputs/train/(\.\.\.|2026-01-31_12-00-00)/\*": f"{SWEEP}/*",
    r"outputs/train/(\.\.\.|BEFORE|AFTER)|\bBEFORE\b|\bAFTER\b": RUN,
    r"^checkpoint=\.\.\.$": f"checkpoint={RUN}",
    r"^checkpoint=\[a,b\]$": f"checkpoint={SWEEP}/*",
}
ELSEWHERE = {  # pages whose commands run in a test of their own
    "docs/extending.md": "tests/cli/test_extending.py",
}
NEEDS = {  # what a command needs that is not here: it is composed only
    "images": r"data\.root=|suite\.root=|root: /my|data=(?!digits)|suite\.datasets=|cifar10",
    "weights of a hub or a file": r"^model=(vit_|deit_)|timm:|\.pth\b",
    "several devices or machines": r"^torchrun|^srun|trainer=ddp|multi_node|devices=|launcher=",
    "an account of W&B": r"logger\.project=|tracking\.",
    "many runs": r"sweeper=",
    "minutes": r"^suite=nullspace$",
    "earlier evaluations": r"^compare=",
}
SHORT = {
    train: [*FAST, "trainer.max_steps=2"],
    evaluate: ["accelerator=cpu", "tracking.wandb=off", "batch_size=64", "suite.max_images=4"],
}
SETTINGS = {
    "nsaug-push": push.PushSettings,
    "nsaug-export": export.ExportSettings,
    "nsaug-dashboard": dashboard.DashboardSettings,
}
EXTERNAL = ("git", "docker", "pre-commit", ".")
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
TARGETS = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)


def find_script(command):
    """The command of nsaug that a line starts, and its settings; None for another program."""
    for position, word in enumerate(command):
        for script in (train, evaluate):
            if word in (f"{script.__name__.split('.')[-1]}.py", f"nsaug-{script.__name__.split('.')[-1]}"):
                return script, command[position + 1 :]
    return None, []


def fill_in(arguments):
    """The arguments without placeholders."""
    filled = []
    for argument in arguments:
        for pattern, value in PLACEHOLDERS.items():
            argument = re.sub(pattern, value, argument)
        filled.append(argument)
    return [argument for argument in filled if argument != "..."]


def single_runs(arguments):
    """Settings of single runs that together have every value of a sweep."""
    if "-m" not in arguments:
        return [arguments]
    options = [argument for argument in arguments if argument.startswith("--")]
    assert not options, "options with a value are not known here"
    columns = []
    for override in OverridesParser.create().parse_overrides([word for word in arguments if word != "-m"]):
        if not override.is_sweep_override():
            columns.append([str(override.input_line)])
        elif isinstance(override.value(), IntervalSweep):
            columns.append([f"{override.get_key_element()}={override.value().start}"])
        else:
            columns.append([f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()])
    length = max(map(len, columns))
    return [[column[number % len(column)] for column in columns] for number in range(length)]


def add_defaults(arguments, defaults):
    """Add the defaults that the arguments do not set."""
    keys = {argument.partition("=")[0] for argument in arguments}
    return [*(setting for setting in defaults if setting.partition("=")[0] not in keys), *arguments]


def write_files(page, folder):
    """Write the files that blocks of a page hold."""
    for block in read_blocks(page):
        if block.path:
            (folder / block.path).parent.mkdir(parents=True, exist_ok=True)
            (folder / block.path).write_text(block.text)


@pytest.fixture
def page_folder(page, tmp_cwd, tmp_path):
    """A working directory with the files of a page; modules in it are forgotten at the end."""
    write_files(page, tmp_path)
    yield tmp_path
    for name in [name for name in sys.modules if name.partition(".")[0] == "mypackage"]:
        del sys.modules[name]


@pytest.fixture(scope="module")
def short_run(tmp_path_factory):
    """The output folder of one training step."""
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.chdir(folder)
        run(train, monkeypatch, *FAST, "trainer.max_steps=1", "hydra.run.dir=run")
    return folder / "run"


def check_other_program(command):
    """Check a command that neither trains nor evaluates; raises AssertionError if nothing is known about it."""
    program, *arguments = command
    if program in SETTINGS:
        _parse(SETTINGS[program], fill_in(arguments), "")
    elif program == "make":
        assert {argument for argument in arguments if "=" not in argument} <= {*TARGETS}
    elif program == "pip":
        assert arguments[0] == "install"
        extras = re.findall(r"\[(.*)\]", " ".join(arguments))
        assert {name for names in extras for name in names.split(",")} <= {*EXTRAS}
    elif program == "python" and arguments[0] == "-m":
        assert importlib.util.find_spec(arguments[1]) is not None
        paths = [argument for argument in arguments[2:] if argument.startswith("tests/")]
        assert all((ROOT / path).exists() for path in paths)
    elif program == "python":
        source = (ROOT / arguments[0]).read_text()
        for option in (argument for argument in arguments if argument.startswith("--")):
            assert f'"{option}"' in source, f"{arguments[0]} has no {option}"
    elif program not in EXTERNAL:
        assert importlib.metadata.entry_points(group="console_scripts", name=program), f"{program} is not known"
        assert all((ROOT / argument).is_file() for argument in arguments if argument.endswith(".yaml"))


@pytest.mark.parametrize("page", [page for page in PAGES if page_commands(page)])
def test_commands_compose(page, page_folder, short_run, monkeypatch, capsys):
    shutil.copytree(short_run, RUN)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")  # as torchrun and srun do
    checked = []
    monkeypatch.setattr(train, "train", lambda cfg, *_: checked.append(cfg) or {})
    monkeypatch.setattr(evaluate, "evaluate", lambda cfg, *_: checked.append(cfg))
    monkeypatch.setattr(evaluate, "compare_evaluations", checked.append)
    for command in page_commands(page):
        script, arguments = find_script(command)
        if script is None:
            check_other_program(command)
            continue
        for settings in single_runs(fill_in(arguments)):
            checked.clear()
            try:
                run(script, monkeypatch, *settings)
            except SystemExit:
                pytest.fail(f"{' '.join(settings)}: {capsys.readouterr().err}")
            assert len(checked) == 1, settings


def is_here(command):
    """Whether a command can run: it needs nothing but digits, and this process."""
    return not any(re.search(pattern, word) for pattern in NEEDS.values() for word in command)


RUNNABLE = {
    page: [command for command in page_commands(page) if find_script(command)[0] and is_here(command)]
    for page in PAGES
    if page not in ELSEWHERE
}


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page, commands in RUNNABLE.items() if commands])
def test_commands_run(page, page_folder, short_run, monkeypatch, capsys):
    for folder in (RUN, f"{SWEEP}/0_seed-0", f"{SWEEP}/1_seed-1"):
        shutil.copytree(short_run, folder)
    for command in RUNNABLE[page]:
        script, arguments = find_script(command)
        try:
            run(script, monkeypatch, *add_defaults(fill_in(arguments), SHORT[script]))
        except SystemExit:
            pytest.fail(f"{' '.join(command)}: {capsys.readouterr().err}")
    printed = capsys.readouterr().out
    shown = [line for block in read_blocks(page) if block.language == "console" for line in block.text.splitlines()]
    for line in shown:  # values differ, and paths
        assert line.startswith("$ ") or line.partition(":")[0] in printed


def test_some_commands_run_and_some_cannot():
    runnable = [" ".join(command) for commands in RUNNABLE.values() for command in commands]
    assert "python train.py" in runnable
    assert not any("/datasets" in command or "vit_s" in command for command in runnable)
    assert len(runnable) > 20
    for path in ELSEWHERE.values():
        assert (ROOT / path).is_file()


@pytest.mark.parametrize(
    ("text", "message"),
    [("```\npython train.py\n```\n", "the language is one of"), ("\n    python train.py\n", "write ```sh")],
)
def test_blocks_without_a_known_language_fail(monkeypatch, tmp_path, text, message):
    monkeypatch.setattr(doc_blocks, "ROOT", tmp_path)
    (tmp_path / "page.md").write_text(text)
    with pytest.raises(AssertionError, match=message):
        read_blocks("page.md")


@pytest.mark.parametrize(
    "command",
    ["nsaug-trian", "make dcos", "pip install 'nsaug[atacks]'", "python -m nsuag", "python studies/study.py --x"],
)
def test_unknown_programs_and_options_fail(command):
    with pytest.raises(AssertionError):
        check_other_program(shlex.split(command))
