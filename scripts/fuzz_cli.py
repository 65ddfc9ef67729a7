"""Run train.py and evaluate.py on random bad input, and check that every error is one line.

    python scripts/fuzz_cli.py --seed 0 --count 1000

Draws settings from the configuration itself (every leaf, every argument of a target, every group, unknown keys, special
characters) and damages files of a run (config.json, checkpoints, weights, metrics.csv, the cache, results.npz). Every
input is a command in a process of its own, forked from one that has imported everything, in its own folder. Prints how
many inputs were accepted, or refused in one line; exits 1 if there is any other result, and prints the command of each.
Needs fork, so no Windows; opens no connection to other machines, and writes to a temporary folder only.
"""

import argparse
import csv
import functools
import importlib
import io
import json
import multiprocessing
import os
import pkgutil
import random
import shlex
import shutil
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

TINY = ["model=micro", "model.args={embed_dim: 12, depth: 1, num_heads: 1, class_token: false, global_pool: avg}"]
TRAIN = [
    "data=digits", *TINY, "data.batch_size=16", "trainer=cpu", "trainer.max_epochs=1", "trainer.max_steps=1",
    "+trainer.limit_train_batches=2", "+trainer.limit_val_batches=1", "trainer.enable_progress_bar=false",
    "logger=csv", "logger.num_images=0", "val_attack_batches=1",
]  # fmt: skip
"""A run of a second; a draw may change each of these."""
RESUME = [*TRAIN, "resume=run"]
EVALUATE = ["checkpoint=run", "suite=clean", "suite.max_images=4", "batch_size=4", "accelerator=cpu", "cache=cache"]
COMPARE = ["compare=[one,two]"]
TEMPLATE = [
    ("train", [*TRAIN, "hydra.run.dir=run"]),
    ("evaluate", [*EVALUATE, "hydra.run.dir=one"]),
    ("evaluate", [*EVALUATE, "hydra.run.dir=two"]),
]
"""Commands that make the files of every input's folder."""
LARGE = {"model": {"vit_b", "vit_l"}, "attack": {"autoattack"}}
"""Choices that are valid, but take much memory or time."""
SLOW_SUITES = ("attacks", "cifar10", "corruptions", "demo", "digits", "nullspace", "quick")
"""Suites of benchmarks on any data; only planned, because they would take too long."""
ATTACKS = ("fgsm", "fgsm_rs", "pgd", "pgd_l2", "mifgsm", "deepfool", "cw", "patch_fool")
WORK = {"num_steps", "restarts", "max_epochs", "max_steps", "min_epochs", "min_steps", "binary_search_steps"}
"""Settings that ask for work: a billion is a valid value, and takes years."""
PROCESSES = {"devices", "num_workers", "num_nodes"}
"""Settings that start processes: a valid number of them is slow on a machine of few cores."""
SLOW_KEYS = {"dry_run", "model.compile"}
"""Settings with a valid value that takes minutes."""

VALUES = {
    "null": ["null"],
    "empty": ["", "''", "[]", "{}"],
    "negative": ["-1", "-0.5", "-7"],
    "zero": ["0", "0.0", "-0.0"],
    "huge": ["1000000000", "9223372036854775807", "9223372036854775808", f"1{'0' * 30}", "1e308", "1e400"],
    "tiny": ["1e-300", "5e-324"],
    "nan": ["nan", "inf", "-inf"],
    "number": ["1", "2", "0.5", "1e-3", "3/4", "1/0"],
    "text": ["abc", "true", "false", "'1'", "file", "file/below", "nothing/here", "os.getcwd", "nsaug"],
    "list": ["[1,2]", "[a,b]", "[[1]]", "[null]", "[0.5,0.5,0.5,0.5]", "[{a: 1}]", "[true]"],
    "dict": ["{a: 1}", "{_target_: os.getcwd}", "{_target_: nothing}", "{1: 2}"],
    "sweep": ["1,2", "choice(1,2)", "range(3)", "glob(*)", "interval(0,1)"],
    "special": [
        "${seed}", "${nothing}", "${oc.env:NOTHING_OF_THIS_NAME}", "${oc.env:", "${unknown:1}", "???", "[1", "{a",
        "a=b",
        "'a=b'", "a b", "'a\nb'", "'a\\nb'", "é→", "\udcff", "\x1b[31m", "'[/b]'", "$\\frac{", "%s", "'{0}'", "~", "*",
        "'", '"', "a:b", "\\", "x" * 300, "x" * 100_000, "'../..'", "a#b", "-", "--", "@a", "a,", ",", "a[0]",
    ],
}  # fmt: skip
"""Values by kind. A value is typed as it stands, so that some are wrong in Hydra's grammar already."""
WORDS = [
    "auto", "cpu", "gpu", "cuda", "none", "all", "ddp", "ddp_spawn", "fsdp", "bf16-mixed", "16-mixed", "64-true",
    "16-true", "bf16-true", "last", "best", "head", "last_1", "last_9", "margin", "ce", "test", "val", "blocks.0",
    "blocks.3", "norm", "patch_embed", "bicubic", "nearest", "avg", "token", "map", "simple", "advanced", "pytorch",
    "warn", "per_batch", "padded", "resized", "rand-m9-mstd0.5-inc1", "augmix-m3-w3", "original", "influence", "rms",
    "pair", "elem", "Linf", "L2", "norm", "value", "offline", "off", "new_run", "0/1", "run", "run/last.ckpt",
    "run/model.safetensors", "one", "weights.safetensors", "imagenet_v2", "vit_tiny_patch16_224",
    "vit_tiny_patch16_224.augreg_in21k", "deit3_small_patch16_224", "resnet18", "mixer_b16_224", "00:00:00:01",
    "min-max", "digits", "v4",
]  # fmt: skip
"""Values of some setting, mostly at the wrong place."""
KEYS = [
    "{key}x", "{key}.{key}", "{key}.", ".{key}", "a.b.c", "a..b", "", " ", "{key} ", "{key}[0]", "{key}@x", "x@{key}",
    "é", "a/b", "{key}/b", "_target_", "hydra", "hydra.{key}", "hydra.job.x", "trainer.callbacks", "trainer.plugins",
    "trainer.logger", "trainer.strategy", "trainer.profiler", "model.args.depth", "model.args.patch_size",
    "model.args.norm_layer", "model.args.checkpoint_path", "suite.attacks.mine", "suite.benchmarks.mine",
    "suite.analyses.mine", "suite.noise.mine", "suite.datasets", "0", "a\nb", "-", "a:b", "$",
]  # fmt: skip
"""Keys that do not exist, or that the configuration does not list."""
PREFIXES = ["", "+", "++", "~"]
OPTIONS = [
    "--foo",
    "-x",
    "--config-name=nothing",
    "--config-dir=nothing",
    "-m",
    "--cfg",
    "--package",
    "seed",
    "=",
    "--",
]


@dataclass(frozen=True)
class Command:
    """An input: arguments of a script, and the files to damage before it is started.

    Attributes:
        script: train or evaluate.
        arguments: as typed.
        damage: (pattern of the file, kind of damage), or None.
        seed: of the damage.
    """

    script: str
    arguments: list[str]
    damage: tuple[str, str] | None = None
    seed: str = ""

    def __str__(self) -> str:
        return shlex.join(["python", str(ROOT / f"{self.script}.py"), *self.arguments])


@dataclass(frozen=True)
class Outcome:
    """What a command did.

    Attributes:
        kind: a key of KINDS.
        output: its standard error.
        seconds: how long it took.
        megabytes: its peak memory.
    """

    kind: str
    output: str
    seconds: float
    megabytes: int


KINDS = {
    "accepted": "exit code 0",
    "one line": "exit code 1 and one line",
    "several lines": "exit code 1 and several lines",
    "traceback": "a traceback",
    "internal error": "one line that reports a bug of nsaug",
    "hang": "longer than the time limit",
    "wrong exit code": "another exit code, none in spite of an error, or 1 without a line",
}
GOOD = ("accepted", "one line")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="of the draws")
    parser.add_argument("--count", type=int, default=1000, help="number of inputs")
    parser.add_argument("--only", type=int, help="number of a single input, to repeat it")
    parser.add_argument("--processes", type=int, default=2, help="inputs that run at once")
    parser.add_argument("--limit", type=int, default=60, help="seconds after which an input counts as a hang")
    parser.add_argument("--list", action="store_true", help="print every input and its outcome")
    args = parser.parse_args()
    start = time.monotonic()
    numbers = range(args.count) if args.only is None else [args.only]
    folder = Path(tempfile.mkdtemp(prefix="nsaug_fuzz_"))
    isolate(folder)
    import_everything()
    commands = {number: draw(random.Random(f"{args.seed}/{number}")) for number in numbers}
    make_template(folder / "template")
    counts: Counter[str] = Counter()
    slowest, largest = 0.0, 0
    work = functools.partial(run, folder=folder, limit=args.limit)
    fork = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(args.processes, mp_context=fork) as pool:
        for future in as_completed([pool.submit(work, item) for item in commands.items()]):
            number, outcome = future.result()
            counts[outcome.kind] += 1
            slowest, largest = max(slowest, outcome.seconds), max(largest, outcome.megabytes)
            if args.list or outcome.kind not in GOOD:
                print(describe(number, commands[number], outcome, folder), flush=True)
    for kind, meaning in KINDS.items():
        print(f"{counts[kind]:6} {kind:16} {meaning}")
    print(f"{time.monotonic() - start:.0f} s; the slowest input took {slowest:.1f} s, the largest {largest} MB")
    num_bad = sum(count for kind, count in counts.items() if kind not in GOOD)
    if num_bad:
        print(f"the folders of these inputs are in {folder}")
    else:
        shutil.rmtree(folder)
    sys.exit(num_bad > 0)


def describe(number: int, command: Command, outcome: Outcome, folder: Path) -> str:
    """A line with the outcome, one with the command, then the output of a bad one."""
    damaged = f" ({' '.join(command.damage)})" if command.damage else ""
    lines = outcome.output.strip().splitlines()
    place = "" if outcome.kind in GOOD else f"cd {folder / str(number)}; "
    shown = lines[:1] if outcome.kind in GOOD else lines[-12:]
    text = str(command).replace(str(ROOT), ".") if outcome.kind in GOOD else str(command)
    head = f"#{number} {outcome.kind}, {outcome.seconds:.1f} s, {outcome.megabytes} MB{damaged}"
    return "\n    ".join([head, f"{place}{shorten(text)}", *map(shorten, shown)]).encode("utf-8", "replace").decode()


def shorten(text: str) -> str:
    return text if len(text) < 1500 else f"{text[:700]} ... {text[-700:]}"


def isolate(folder: Path) -> None:
    """Keep all inputs within a folder, and away from other machines and from accounts."""
    os.environ |= {name: str(folder) for name in ("HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "TMPDIR", "HF_HOME")}
    os.environ |= {"HF_HUB_OFFLINE": "1", "WANDB_SILENT": "true", "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    os.environ |= {"NSAUG_DATA": "data", "MPLCONFIGDIR": str(folder)}
    for name in ("WANDB_API_KEY", "HYDRA_FULL_ERROR"):
        os.environ.pop(name, None)
    connect = socket.socket.connect

    def connect_to_this_machine(self: socket.socket, address: Any) -> None:
        if self.family != socket.AF_UNIX and address[0] not in ("127.0.0.1", "localhost", "::1"):
            raise OSError("the fuzzer opens no connection to other machines")
        connect(self, address)

    socket.socket.connect = connect_to_this_machine  # type: ignore[assignment, method-assign]


def import_everything() -> None:
    """Import all of nsaug, so that the process of an input starts at once."""
    import nsaug

    for module in pkgutil.walk_packages(nsaug.__path__, "nsaug."):
        importlib.import_module(module.name)


def scripts() -> dict[str, ModuleType]:
    return {name: importlib.import_module(f"nsaug.cli.{name}") for name in ("train", "evaluate")}


# --- drawing ---------------------------------------------------------------------------------------------------------


def draw(rng: random.Random) -> Command:
    """Draw an input."""
    kind = rng.choices(["leaf", "group", "key", "damage"], [50, 15, 12, 23])[0]
    if kind == "damage":
        return draw_damage(rng)
    script, arguments = draw_base(rng)
    keys, hidden = leaves(script, tuple(arguments)), hidden_keys(script, tuple(arguments))
    if kind == "leaf":
        for _ in range(rng.choice([1, 1, 1, 2])):
            key = rng.choice(list(keys) if rng.random() < 0.95 else hydra_leaves(script))
            plus = rng.choice(["", "", "+", "++"]) if key in hidden else ""
            near = key in keys and rng.random() < 0.5
            arguments = [*arguments, f"{plus}{key}={draw_near(rng, key, keys[key]) if near else draw_value(rng, key)}"]
    elif kind == "group":
        group = rng.choice(sorted(groups()))
        wrong = [
            "null",
            "1",
            "nothing",
            "",
            "[]",
            "[a,b]",
            "a,b",
            "{a: 1}",
            "'a/b'",
            "../train",
            "true",
            "é",
            "${seed}",
        ]
        arguments = change_settings(arguments, f"{group}={rng.choice(wrong)}")
    elif rng.random() < 0.2:
        arguments = [*arguments, rng.choice(OPTIONS)]
        rng.shuffle(arguments)
    else:
        key = rng.choice(KEYS).replace("{key}", rng.choice([*keys, *groups()]))
        prefix = rng.choice(PREFIXES)
        value = "" if prefix == "~" and rng.random() < 0.7 else f"={draw_value(rng, key)}"
        arguments = [*arguments, f"{prefix}{key}{value}"]
    return Command(script, arguments)


def draw_base(rng: random.Random) -> tuple[str, list[str]]:
    """A valid command, with another choice of one group than the default."""
    group = rng.choice(
        ["none", "none", "attack", "method", "nullspace", "model", "data", "logger", "trainer", "experiment"]
    )
    if rng.random() < 0.6:
        choice = rng.choice(groups().get(group, ["none"]))
        base = [argument for argument in TRAIN if group != "model" or not argument.startswith("model.args=")]
        return "train", base if choice == "none" else change_settings(base, f"{group}={choice}")
    kind = rng.choice(["clean", "attack", "suite", "model"])
    if kind == "attack":
        attack = rng.choice(ATTACKS)
        options = "{}" if attack in ("fgsm", "fgsm_rs") else "{num_steps: 2}"
        return "evaluate", [*EVALUATE, f"+suite.attacks.{attack}={options}"]
    if kind == "suite":
        return "evaluate", change_settings(EVALUATE, f"suite={rng.choice(SLOW_SUITES)}", "dry_run=true")
    if kind == "model":
        return "evaluate", change_settings(EVALUATE, "checkpoint=weights.safetensors", *TINY, "data=digits")
    return "evaluate", EVALUATE


def change_settings(arguments: list[str], *changes: str) -> list[str]:
    """Arguments with some settings changed or added; Hydra refuses to choose from one group twice."""
    names = {change.partition("=")[0] for change in changes}
    return [*(argument for argument in arguments if argument.partition("=")[0] not in names), *changes]


def draw_near(rng: random.Random, key: str, value: Any) -> str:
    """A value that is often valid: of the type of the present one."""
    if isinstance(value, bool):
        return rng.choice(["true", "false"])
    if isinstance(value, int | float) and rng.random() < 0.9:
        scaled = [value * factor for factor in (-1, 0.1, 10, 1e-6)]
        name = key.rpartition(".")[2]
        if name in PROCESSES:
            return rng.choice(["0", "1", "-1", "0.5", "100000"])
        return str(rng.choice([0, 1, 2, 3, 7, 0.5, 1.0, value + 1, *scaled, 1 if name in WORK else 10**6]))
    if isinstance(value, list) and value and rng.random() < 0.9:
        items = rng.choice([value[:1], value[1:], value[::-1], [*value, *value], [value[0]] * len(value)])
        return json.dumps(items).replace('"', "")
    return rng.choice([*WORDS, "1", "2", "0.5", "true", "false"])


def draw_value(rng: random.Random, key: str) -> str:
    kind = rng.choice([*VALUES, "number", "number", "number", "zero", "negative"])
    value = rng.choice(VALUES[kind])
    return "2" if value == "1000000000" and key.rpartition(".")[2] in WORK else value


@functools.cache
def groups() -> dict[str, list[str]]:
    """Choices of every group of the configuration, without `LARGE`."""
    folder = ROOT / "conf"
    names = {path.parent.relative_to(folder).as_posix() for path in folder.glob("*/**/*.yaml")}
    return {
        name: sorted({path.stem for path in (folder / name).glob("*.yaml")} - LARGE.get(name, set()))
        for name in sorted(names)
    }


@functools.cache
def compose(script: str, arguments: tuple[str, ...]) -> Any:
    """The configuration of a command, with Hydra's own settings."""
    import hydra
    from hydra.core.global_hydra import GlobalHydra

    from nsaug.cli.command_line import config_dir
    from nsaug.cli.compose import VERSION_BASE, open_nodes

    with open_nodes(), hydra.initialize_config_dir(str(config_dir()), version_base=VERSION_BASE):
        try:
            return hydra.compose(script, list(arguments), return_hydra_config=True)
        finally:
            GlobalHydra.instance().clear()


@functools.cache
def hidden_keys(script: str, arguments: tuple[str, ...]) -> frozenset[str]:
    """Arguments of the targets that the configuration does not list."""
    from hydra.utils import get_object
    from omegaconf import DictConfig

    from nsaug.cli.app import parameters

    keys = set()
    cfg = compose(script, arguments)
    for group, node in cfg.items_ex(resolve=False):
        if isinstance(node, DictConfig) and not node._is_none() and node.get("_target_"):
            keys |= {f"{group}.{name}" for name in parameters(get_object(node["_target_"])) if name not in node}
    return frozenset(keys)


@functools.cache
def leaves(script: str, arguments: tuple[str, ...]) -> dict[str, Any]:
    """All values, nodes, and arguments of targets, by key; without Hydra's own."""
    from omegaconf import OmegaConf

    cfg = compose(script, arguments)
    own = OmegaConf.to_container(OmegaConf.masked_copy(cfg, [key for key in cfg if key != "hydra"]), resolve=False)
    items = dict.fromkeys(sorted(hidden_keys(script, arguments))) | dict(items_of(own, ""))
    return {key: value for key, value in items.items() if key not in SLOW_KEYS}


@functools.cache
def hydra_leaves(script: str) -> list[str]:
    """Keys of Hydra's own settings."""
    from omegaconf import OmegaConf

    own = OmegaConf.to_container(compose(script, ()).hydra, resolve=False)
    return [key for key, _ in items_of({"hydra": own}, "")]


def items_of(values: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    """Dotted keys and values of nested dicts, those of nodes included."""
    for name, value in values.items():
        yield f"{prefix}{name}", value
        if isinstance(value, dict):
            yield from items_of(value, f"{prefix}{name}.")


# --- damaged files ---------------------------------------------------------------------------------------------------

DAMAGED: list[tuple[str, str, list[str]]] = [
    ("run/config.json", "train", [*TRAIN, "checkpoint=run"]),
    ("run/config.json", "train", RESUME),
    ("run/config.json", "train", ["resume=run"]),
    ("run/config.json", "evaluate", EVALUATE),
    ("run/model.safetensors", "train", [*TRAIN, "checkpoint=run"]),
    ("run/model.safetensors", "evaluate", EVALUATE),
    ("weights.safetensors", "evaluate", [*EVALUATE[1:], "checkpoint=weights.safetensors", *TINY, "data=digits"]),
    ("run/last.ckpt", "train", RESUME),
    ("run/last.ckpt", "train", [*TRAIN, "checkpoint=run/last.ckpt"]),
    ("run/last.ckpt", "evaluate", ["checkpoint=run/last.ckpt", *EVALUATE[1:]]),
    ("run/metrics.csv", "train", RESUME),
    ("cache/*/*/*.npz", "evaluate", EVALUATE),
    ("one/results.npz", "evaluate", COMPARE),
]
"""File, script, and a command that reads the file."""
FILE_DAMAGE = ("truncated", "bits flipped", "empty", "folder", "pipe", "missing", "other bytes", "zeros")
CONTENT_DAMAGE = ("drop", "retype", "add")


def draw_damage(rng: random.Random) -> Command:
    pattern, script, arguments = rng.choice(DAMAGED)
    kind = rng.choice([*FILE_DAMAGE, *CONTENT_DAMAGE * 3])
    return Command(script, arguments, (pattern, kind), str(rng.random()))


def damage(folder: Path, command: Command) -> None:
    """Damage a file as the command says."""
    assert command.damage is not None
    pattern, kind = command.damage
    path, rng = min(folder.glob(pattern)), random.Random(command.seed)
    content = path.read_bytes()
    path.unlink()
    position = rng.randrange(len(content))
    if kind == "truncated":
        path.write_bytes(content[:position])
    elif kind == "bits flipped":
        flipped = bytearray(content)
        for _ in range(rng.choice([1, 8, 64])):
            flipped[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        path.write_bytes(flipped)
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "other bytes":
        path.write_bytes(rng.randbytes(rng.choice([1, 10, 1000])))
    elif kind == "zeros":
        path.write_bytes(content[:position] + bytes(len(content) - position))
    elif kind != "missing":
        change_content(path, content, kind, rng)


def change_content(path: Path, content: bytes, kind: str, rng: random.Random) -> None:
    """Drop, retype or add an entry, and write the file in its own format."""
    import numpy as np
    import torch
    from safetensors.torch import load, save

    if path.suffix == ".json":
        path.write_text(json.dumps(change(json.loads(content), kind, rng)))
    elif path.suffix == ".ckpt":
        torch.save(change(torch.load(io.BytesIO(content), weights_only=True), kind, rng), path)
    elif path.suffix == ".safetensors":
        tensors = change(load(content), kind, rng)
        usable = {key: torch.as_tensor(value) for key, value in tensors.items() if is_tensor_like(value)}
        path.write_bytes(save({key: value.clone().contiguous() for key, value in usable.items()}))
    elif path.suffix == ".npz":
        with np.load(io.BytesIO(content)) as file:
            arrays = dict(file)
        text = next((name for name in ("meta", "content") if name in arrays), "")
        if rng.random() < 0.6 and text:
            plain = str(arrays[text]) if text == "meta" else arrays[text].tobytes().decode()
            changed = json.dumps(change(json.loads(plain), kind, rng))
            arrays[text] = np.array(changed) if text == "meta" else np.frombuffer(changed.encode(), np.uint8)
        else:
            arrays = change(arrays, kind, rng)
        with open(path, "wb") as file:
            np.savez(file, **{name: np.asarray(array) for name, array in arrays.items()})  # type: ignore[arg-type]
    else:
        rows = list(csv.reader(io.StringIO(content.decode())))
        rows = change(rows, kind, rng)
        with open(path, "w", newline="") as text_file:
            csv.writer(text_file).writerows(row if isinstance(row, list) else [row] for row in rows)


def is_tensor_like(value: Any) -> bool:
    import torch

    return isinstance(value, torch.Tensor | int | float)


def change(value: Any, kind: str, rng: random.Random) -> Any:
    """A copy of nested containers with one entry dropped, retyped or added, at a random depth."""
    if not isinstance(value, dict | list) or not value:
        return retype(value, rng)
    items = dict(value) if isinstance(value, dict) else dict(enumerate(value))
    key = rng.choice(list(items))
    if isinstance(items[key], dict | list) and items[key] and rng.random() < 0.8:
        items[key] = change(items[key], kind, rng)
    elif kind == "drop":
        del items[key]
    elif kind == "retype":
        items[key] = retype(items[key], rng)
    else:
        items["added" if isinstance(value, dict) else len(items)] = retype(items[key], rng)
    return items if isinstance(value, dict) else list(items.values())


def retype(value: Any, rng: random.Random) -> Any:
    """A value of another type; for arrays and tensors, also of another shape or kind of number."""
    plain = [None, True, -1, 0, 2**40, 1.5, float("nan"), "", "text", "a\nb\x1b[31m", [], [1], ["a"], {}, {"a": 1}]
    if hasattr(value, "dtype"):  # of numpy or torch
        flat = value.reshape(-1)
        kinds = [flat, flat[:0], flat[:1], value[None], value != 0, value[..., None], flat[:1].repeat(7)]
        return rng.choice([*kinds, rng.choice(plain)])
    return rng.choice(plain)


# --- running ---------------------------------------------------------------------------------------------------------


def make_template(folder: Path) -> None:
    """Train and evaluate, for the files of every input's folder."""
    folder.mkdir()
    (folder / "file").write_text("text")
    for script, arguments in TEMPLATE:
        outcome = classify(functools.partial(start, script, arguments), folder, limit=600)
        if outcome.kind != "accepted":
            sys.exit(f"{shlex.join([script, *arguments])} fails: {outcome.output}")
    shutil.copy(folder / "run" / "model.safetensors", folder / "weights.safetensors")  # no config.json beside it


def run(item: tuple[int, Command], folder: Path, limit: int) -> tuple[int, Outcome]:
    """Run an input in its own folder; keep the folder, as it was before, if the outcome is bad."""
    number, command = item
    own = folder / str(number)

    def prepare() -> None:
        shutil.copytree(folder / "template", own)
        if command.damage:
            damage(own, command)

    prepare()
    outcome = classify(functools.partial(start, command.script, command.arguments), own, limit)
    shutil.rmtree(own)
    if outcome.kind not in GOOD:
        prepare()
    return number, outcome


def start(script: str, arguments: list[str]) -> None:
    sys.argv = [str(ROOT / f"{script}.py"), *arguments]
    scripts()[script].main()


def classify(function: Callable[[], None], folder: Path, limit: int) -> Outcome:
    """Run a function as a command in a process and a working directory of its own, and classify what it does.

    Args:
        function: may write to standard output and error, and raise SystemExit.
        folder: the working directory.
        limit: seconds after which an alarm signal ends the process.
    """
    logs = [folder.with_name(f"{folder.name}.{name}") for name in ("out", "err")]
    begin = time.monotonic()
    pid = os.fork()
    if pid == 0:
        run_in_child(function, folder, logs, limit)
    _, status, usage = os.wait4(pid, 0)
    seconds = time.monotonic() - begin
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)  # processes that it started
    # A child that died at once has none.
    printed, output = (log.read_text(errors="replace") if log.exists() else "" for log in logs)
    for log in logs:
        log.unlink(missing_ok=True)
    return Outcome(kind_of(status, output, printed), output, seconds, usage.ru_maxrss // 1024)


def run_in_child(function: Callable[[], None], folder: Path, logs: list[Path], limit: int) -> None:
    """Run a function as the interpreter runs a script, then exit."""
    code = 1
    try:
        os.setsid()
        os.chdir(folder)
        for number, stream in enumerate(("stdout", "stderr"), start=1):
            os.dup2(os.open(logs[number - 1], os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
            setattr(sys, stream, os.fdopen(number, "w", errors="backslashreplace", buffering=1, closefd=False))
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(limit)
        function()
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
        if isinstance(stop.code, str):
            print(stop.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def kind_of(status: int, output: str, printed: str) -> str:
    """The kind of an outcome.

    Args:
        status: of `os.wait`.
        output: standard error.
        printed: standard output.
    """
    lines = [line for line in output.splitlines() if line.strip()]
    if os.WIFSIGNALED(status):
        return "hang" if os.WTERMSIG(status) == signal.SIGALRM else "wrong exit code"
    if "Traceback (most recent call last)" in output + printed:
        return "traceback"
    code = os.WEXITSTATUS(status)
    if code == 0:
        return "wrong exit code" if any(line.startswith("error: ") for line in lines) else "accepted"
    if code != 1 or not lines:
        return "wrong exit code"
    if "internal error" in output:
        return "internal error"
    return "one line" if len(lines) == 1 else "several lines"


if __name__ == "__main__":
    main()
