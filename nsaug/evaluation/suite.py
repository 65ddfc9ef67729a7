"""A suite: short lists in YAML, expanded to benchmarks at one strength each."""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, ValidationError

from nsaug import attacks
from nsaug.corruptions import TEST_CORRUPTIONS, Corruption
from nsaug.corruptions.corruption import CorruptionName
from nsaug.data import CueConflict, ImageNetReaL
from nsaug.data.testsets import TEST_SETS
from nsaug.data.testsets.stored_corruptions import StoredCorruption
from nsaug.evaluation.analyses import Analysis, NoiseAnalysis, NoiseRadius, NoiseTransfer, NullspacePair
from nsaug.evaluation.benchmarks import (
    Clean,
    ImageBenchmark,
    ShapeBias,
    UnderAttack,
    UnderCorruption,
    UnderEmbeddingAttack,
    UnderNoise,
)
from nsaug.evaluation.units import Entry
from nsaug.nullspace import NullspaceNoise, UniversalConfig
from nsaug.utils.errors import UserError, unknown_name
from nsaug.utils.types import (
    Integer,
    PositiveFloat,
    PositiveInt,
    Text,
    UniqueTuple,
    parse_number,
    validated_dataclass,
    validation_message,
)

ATTACKS: dict[str, type] = {
    "autoattack": attacks.AutoAttack,
    "cw": attacks.CW,
    "deepfool": attacks.DeepFool,
    "embedding_pgd": attacks.EmbeddingPGD,
    "fgsm": attacks.FGSM,
    "fgsm_rs": attacks.FGSMRS,
    "mifgsm": attacks.MIFGSM,
    "patch_fool": attacks.PatchFool,
    "pgd": attacks.PGD,
    "pgd_l2": attacks.PGDL2,
}
ANALYSES: dict[str, type[Analysis]] = {
    "exact": NullspacePair,
    "noise": NoiseAnalysis,
    "radius": NoiseRadius,
    "transfer": NoiseTransfer,
}
SEVERITIES = (1, 2, 3, 4, 5)
Severity = Annotated[Integer, Field(ge=1, le=5)]
Args = dict[str, Any] | None
Instantiate = Callable[[Mapping[str, Any], str], Any]


@validated_dataclass
class SuiteConfig:
    """The keys of a suite. Clean images come first in every suite.

    In a dict, a key is the name of a benchmark, and a list of numbers makes one benchmark of every number.

    Attributes:
        attacks: arguments of attacks by name. `attack` names the attack if the key is another name; `transfer: true`
            attacks the other models; `_target_` names a class of one's own.
        corruptions: names of corruptions generated on the fly, or `all` for the 15 test corruptions; in a dict also
            classes of one's own.
        severities: of `corruptions` and of stored corruptions.
        noise: arguments of `NullspaceNoise` by name.
        datasets: names of published test sets; in a dict with their arguments.
        class_subsets: lists of classes; clean images and predictions are restricted to them.
        analyses: arguments of analyses by name.
        benchmarks: benchmarks and analyses with a `_target_`.
        score: weights of benchmarks in the score by name; `corruptions` means all of them.
        root: folder that contains the published test sets.
        imagenet: root of ImageNet, for test sets that share its images or labels.
        require_data: whether missing data sets are an error; otherwise they are skipped.
        max_images: see `Subset`.
        image_list: see `Subset`.
    """

    attacks: dict[str, Args] = Field(default_factory=dict)
    corruptions: Literal["all"] | list[CorruptionName] | dict[str, Args] | None = None
    severities: UniqueTuple[Severity] = SEVERITIES
    noise: dict[str, Args] = Field(default_factory=dict)
    datasets: list[str] | dict[str, Args] | None = None
    class_subsets: list[Literal["imagenet_a", "imagenet_r"]] = Field(default_factory=list)
    analyses: dict[str, Args] = Field(default_factory=dict)
    benchmarks: dict[str, Args] = Field(default_factory=dict)
    score: dict[str, PositiveFloat] = Field(default_factory=dict)
    root: Text = "data"
    imagenet: Text = "data/imagenet"
    require_data: bool = False
    max_images: PositiveInt | None = None
    image_list: Text | None = None


def expand(config: SuiteConfig, instantiate: Instantiate) -> list[Entry]:
    """Build the benchmarks and analyses of a suite.

    Args:
        config: the suite.
        instantiate: builds the object of a node with a `_target_`, given its path for error messages.

    Raises:
        UserError: an argument is unknown, of a wrong type or out of range, or a name is not known.
    """
    entries = [Entry("clean", Clean())]
    entries += [Entry(f"clean_{name}", Clean(classes=name)) for name in config.class_subsets]
    entries += _datasets(config)
    entries += _corruptions(config, instantiate)
    entries += _attacks(config, instantiate)
    for name, args in config.noise.items():
        for strength, single in _strengths(args, "init_scale"):
            noise = _build(NullspaceNoise, single, f"suite.noise.{name}")
            benchmark = _build(UnderNoise, {"noise": noise}, f"suite.noise.{name}")
            entries.append(Entry(name, benchmark, noise.init_scale if strength is None else strength))
    entries += [Entry(name, _analysis(name, args, instantiate)) for name, args in config.analyses.items()]
    entries += [Entry(name, _custom(name, args, instantiate)) for name, args in config.benchmarks.items()]
    _check(entries, config)
    return entries


def _attacks(config: SuiteConfig, instantiate: Instantiate) -> Iterator[Entry]:
    for name, args in config.attacks.items():
        path, args = f"suite.attacks.{name}", dict(args or {})
        transfer = args.pop("transfer", False)
        kind = args.pop("attack", name)
        for strength, single in _strengths(args, "eps"):
            attack = (
                instantiate(single, path)
                if "_target_" in single
                else _build(_look_up(kind, ATTACKS, path), single, path)
            )
            strength = getattr(attack, "eps", None) if strength is None else strength
            benchmark = UnderEmbeddingAttack if isinstance(attack, attacks.EmbeddingPGD) else UnderAttack
            yield Entry(name, _build(benchmark, {"attack": attack, "transfer": transfer}, path), strength)


def _corruptions(config: SuiteConfig, instantiate: Instantiate) -> Iterator[Entry]:
    corruptions = TEST_CORRUPTIONS if config.corruptions == "all" else config.corruptions or ()
    for name in corruptions:
        path = f"suite.corruptions.{name}"
        args = dict(corruptions[name] or {}) if isinstance(corruptions, dict) else {}
        if "_target_" in args:
            for strength, single in _strengths(args, "severity"):
                yield Entry(name, UnderCorruption(corruption=instantiate(single, path)), strength)
            continue
        _look_up(name, get_args(CorruptionName), path)
        for severity, single in _strengths({"severity": list(config.severities)} | args, "severity"):
            corruption = _build(Corruption, {"name": name} | single, path)
            yield Entry(name, UnderCorruption(corruption=corruption), severity)


def _datasets(config: SuiteConfig) -> Iterator[Entry]:
    names = config.datasets if isinstance(config.datasets, dict) else dict.fromkeys(config.datasets or ())
    for name, given in names.items():
        path, args = f"suite.datasets.{name}", dict(given or {})
        cls = _look_up(args.pop("dataset", name), TEST_SETS, path)
        args.setdefault("root", config.imagenet if cls is ImageNetReaL else f"{config.root}/{cls.folder}")
        if "labels" in inspect.signature(cls).parameters:  # DAmageNet's files have the names of ImageNet's
            args.setdefault("labels", config.imagenet)
        if not issubclass(cls, StoredCorruption):
            benchmark = ShapeBias if cls is CueConflict else Clean
            yield Entry(name, benchmark(data=_build(cls, args, path)))
            continue
        corruptions = args.pop("corruptions", list(cls.corruptions))
        severities = args.pop("severities", list(config.severities))
        for corruption in corruptions:
            for severity in severities:
                data = _build(cls, args | {"corruption": corruption, "severity": severity}, path)
                yield Entry(f"{name}_{corruption}", Clean(data=data), severity)


def _analysis(name: str, args: Args, instantiate: Instantiate) -> Analysis:
    path, args = f"suite.analyses.{name}", dict(args or {})
    if "_target_" in args:
        return instantiate(args, path)
    if isinstance(synthesis := args.get("synthesis"), dict):
        args["synthesis"] = _build(UniversalConfig, synthesis, f"{path}.synthesis")
    return _build(_look_up(args.pop("analysis", name), ANALYSES, path), args, path)


def _custom(name: str, args: Args, instantiate: Instantiate) -> ImageBenchmark | Analysis:
    if not args or "_target_" not in args:
        raise UserError(f"suite.benchmarks.{name} has no _target_: name a class, such as mypkg.MyBenchmark")
    benchmark = instantiate(args, f"suite.benchmarks.{name}")
    if not isinstance(benchmark, ImageBenchmark | Analysis):
        raise UserError(f"suite.benchmarks.{name}: {args['_target_']} is no ImageBenchmark and no Analysis")
    return benchmark


def _check(entries: Sequence[Entry], config: SuiteConfig) -> None:
    """Raise UserError if a name is used twice, or a required analysis or a scored benchmark is missing."""
    keys = [(entry.name, entry.strength) for entry in entries]
    if repeated := [name for name, strength in keys if keys.count((name, strength)) > 1]:
        raise UserError(f"suite: two benchmarks are called {repeated[0]}, at the same strength: rename one of them")
    analyses = [entry.name for entry in entries if isinstance(entry.benchmark, Analysis)]
    for entry in entries:
        if isinstance(entry.benchmark, Analysis) and entry.benchmark.requires not in (None, *analyses):
            raise UserError(
                f"suite.analyses.{entry.name}.source={entry.benchmark.requires}: no such analysis in the suite;"
                f" it has: {', '.join(analyses)}"
            )
    names = {entry.name for entry in entries} | {"corruptions"}
    for name in config.score:
        if name not in names:
            raise UserError(
                f"suite.score.{name}: the suite has no such benchmark, but {', '.join(sorted(names))}; leave it out"
                f" with '~suite.score.{name}'"
            )


def _strengths(args: Args, default: str) -> Iterator[tuple[float | None, dict[str, Any]]]:
    """The strength and the arguments of every benchmark: one for every number of the argument that is a list.

    Args:
        args: arguments of an attack, corruption or noise.
        default: the argument that is the strength if none is a list.
    """
    args = dict(args or {})
    swept = [key for key, value in args.items() if _is_sweep(value)] or [key for key in args if key == default]
    if not swept:
        yield None, args
        return
    values = args[swept[0]]
    for value in values if isinstance(values, list | tuple) else [values]:
        yield _to_number(value), args | {swept[0]: value}


def _is_sweep(value: Any) -> bool:
    return isinstance(value, list | tuple) and bool(value) and all(_to_number(item) is not None for item in value)


def _to_number(value: Any) -> float | None:
    """A number, or text such as 4/255, as a float; None for anything else."""
    try:
        number = parse_number(value)
    except ValueError:
        return None
    return float(number) if isinstance(number, int | float) else None


def _look_up(name: Any, known: Any, path: str) -> Any:
    if not isinstance(name, str) or name not in known:
        raise UserError(unknown_name(path, str(name), known))
    return known[name] if isinstance(known, Mapping) else name


def _build(cls: Callable[..., Any], args: Mapping[str, Any], path: str) -> Any:
    """Build an object; what is wrong with its arguments becomes one line that names the setting."""
    try:
        return cls(**args)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except ValidationError as error:
        raise UserError(validation_message(error, path, list(inspect.signature(cls).parameters))) from error
