"""Finds metrics by name, checks their arguments, and looks up what their values mean."""

import importlib
import inspect
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np
from ml_collections import ConfigDict

from pmjax import plugins
from pmjax.errors import UserError, no_argument, unknown
from pmjax.evals.base import OF_DATA, PARTS, Metric, Table, option
from pmjax.schema import METRIC_ARGS, TYPES, Text

Args = Mapping[str, Mapping[str, Any]]  # {metric or extractor: {argument: value}}
WORDS = Sequence[str]


class Alias(NamedTuple):
    """What another name of a metric stands for: file, feature extractor, arguments."""

    file: str
    extractor: str = ""
    args: Mapping[str, Any] = {}


# The published names of metrics on Inception features, and spellings of earlier versions. METRIC on
# the features of EXTRACTOR is METRIC_EXTRACTOR, such as kd_efficientnet_lite0.
ALIASES = {
    "fid": Alias("fd", "inception_2015", {"protocols": ("10k_test",)}),
    "fid_infinity": Alias("fd_infinity", "inception_2015"),
    "inception_score": Alias("is", "inception_2015"),
    "kid": Alias("kd", "inception_2015"),
    "prdc": Alias("prdc", "inception_2015"),
    "memorisation": Alias("memorization"),
}


class Named(NamedTuple):
    """A metric under one of its names."""

    name: str
    file: str
    module: types.ModuleType
    extractor: str  # '' for none
    defaults: Mapping[str, Any]

    @property
    def declaration(self) -> Metric:
        """What the file declares."""
        return self.module.METRIC

    @property
    def takes_extractor(self) -> bool:
        """Whether its name leaves the extractor to an argument."""
        return self.declaration.on_features and self.name == self.file

    def parameters(self) -> dict[str, Any]:
        """Returns {argument of `evaluate`: type}."""
        return _keyword_arguments(self.module.evaluate)

    def complete(self, args: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the arguments of `evaluate` with its defaults."""
        parameters = inspect.signature(self.module.evaluate).parameters
        return {n: parameters[n].default for n in self.parameters()} | self.split(args)[0]

    def split(self, args: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Returns the arguments of `evaluate`, and those of the extractor."""
        own = self.parameters()
        given = {**self.defaults, **args}
        return (
            {name: value for name, value in given.items() if name in own},
            {name: value for name, value in given.items() if name not in (*own, "extractor")},
        )


def names() -> list[str]:
    """Returns all names of metrics, METRIC_EXTRACTOR for each of both included."""
    files, extractors = plugins.names("metrics"), plugins.names("extractors")
    on_features = [file for file in files if _module(file).METRIC.on_features]
    return sorted({*files, *ALIASES} | {f"{f}_{e}" for f in on_features for e in extractors})


def find(name: str) -> Named:
    """Returns the metric that a name stands for; `UserError` if there is none."""
    found = _find(name)
    if found is None:
        raise unknown("metric", name, names())
    return found


def _find(name: str) -> Named | None:
    files = plugins.names("metrics")
    if name in ALIASES:
        alias = ALIASES[name]
    elif name in files:
        alias = Alias(name)
    else:
        pairs = [(name.removesuffix(f"_{e}"), e) for e in plugins.names("extractors")]
        known = [Alias(f, e) for f, e in pairs if f in files and _module(f).METRIC.on_features]
        if not known:
            return None
        alias = known[0]
    module = _module(alias.file)
    extractor = alias.extractor or module.METRIC.extractor
    return Named(name, alias.file, module, extractor, alias.args)


def _module(file: str) -> types.ModuleType:
    """Imports a file of `plugins.names`; `plugins.load` would look for it again."""
    return importlib.import_module(f"{plugins.KINDS['metrics'].room}.{file}")


def canonical(metrics: Sequence[str], args: Args) -> tuple[tuple[str, ...], dict[str, dict]]:
    """Returns metrics and their arguments under the names that keys of values begin with.

    'fd' with the argument extractor=X is 'fd_X', as keys of values name the extractor.
    """
    merged: dict[str, dict] = {}
    for name, given in args.items():
        own = merged.setdefault(_canonical(name, given), {})
        own |= given
        if find(name).takes_extractor:
            own.pop("extractor", None)
    found = [_canonical(name, args.get(name, {})) for name in metrics]
    return tuple(dict.fromkeys(found)), merged


def _canonical(name: str, args: Mapping[str, Any]) -> str:
    metric = find(name)
    if not metric.takes_extractor or (name in ALIASES and "extractor" not in args):
        return name
    return f"{metric.file}_{args.get('extractor', metric.extractor)}"


def checked(name: str, given: Mapping[str, Any], *, where: str = "") -> dict[str, Any]:
    """Returns a metric's arguments as the types that its `evaluate` names.

    Where a list of words is expected, a text is split at commas. `where` precedes an argument's
    name in messages.

    Raises:
        UserError: for an unknown metric or argument, with the nearest one, and for a value of
            another type or one that is never valid.
    """
    metric = find(name)
    valid = metric.parameters()
    if "extractor" in given:
        hint = valid.get("extractor", str)
        given = {**given, "extractor": _as_type(f"{where}extractor", given["extractor"], hint)}
    extractor = extractor_of(name, given)
    extractors = plugins.names("extractors")
    if "extractor" in given and extractor not in (None, *extractors):
        raise unknown(f"extractor ({option(name, 'extractor')})", str(extractor), extractors)
    if metric.declaration.on_features and extractor:
        valid |= _keyword_arguments(plugins.load("extractors", extractor).identity)
    if metric.takes_extractor:
        valid["extractor"] = str
    for argument in given:
        if argument not in valid:
            raise no_argument(f"Metric '{name}'", argument, valid)
    found = {
        argument: _as_type(f"{where}{argument}", value, valid[argument])
        for argument, value in given.items()
    }
    for argument, least in metric.declaration.limits.items():
        value = found.get(argument, least + 1)
        if value < least or (value == least and isinstance(value, float)):
            must = f"above {least:g}" if isinstance(value, float) else f"at least {least}"
            raise UserError(f"{option(name, argument)}={value} must be {must}.")
    if metric.declaration.check:
        metric.declaration.check(metric.complete(found))
    return found


def _keyword_arguments(function: types.FunctionType) -> dict[str, Any]:
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p.annotation for p in parameters if p.kind is p.KEYWORD_ONLY}


def _as_type(name: str, value: Any, hint: Any) -> Any:
    hints = get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if isinstance(value, Text):
        value = value.read([tuple if each == WORDS else each for each in hints])
    if WORDS in hints and isinstance(value, str | list | tuple):
        words = value.split(",") if isinstance(value, str) else value
        if all(isinstance(word, str) for word in words):
            return tuple(word.strip() for word in words if word.strip())
    if float in hints and type(value) is int:
        return float(value)
    if type(value) in hints:
        return value
    labels = TYPES | {WORDS: TYPES[tuple], types.NoneType: "None"}
    shown = " or ".join(labels[hint] for hint in hints if hint is not Path)
    raise UserError(f"{name}={value!r} must be {shown}.")


def checked_args(given: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Returns {metric: its arguments} of a config's group eval.args, as `checked` does for each."""
    for name, args in given.items():
        if not isinstance(args, Mapping):
            raise UserError(
                f"config.{METRIC_ARGS}{name} is a group: {option(name, 'NAME')}=VALUE is an "
                f"argument of metric '{name}'."
            )
    return {n: checked(n, args, where=f"config.{METRIC_ARGS}{n}.") for n, args in given.items()}


def check_settings(settings: ConfigDict) -> dict[str, dict[str, Any]]:
    """Checks the names in a config's group eval, and returns the arguments of its metrics.

    Raises:
        UserError: for unknown metrics and arguments, and for a value that cannot select the best.
    """
    for name in (*settings.metrics, *settings.during, *settings.stage2_during):
        find(name)
    args = checked_args(settings.args.to_dict())
    for prefix in ("", "stage2_"):
        if settings[f"{prefix}best"]:
            check_best(settings, prefix, args)
    return args


def check_best(settings: ConfigDict, prefix: str, args: Args) -> None:
    """Raises `UserError` unless evaluations during training compute the value of PREFIXbest."""
    keys, best = f"config.eval.{prefix}", settings[f"{prefix}best"]
    direction(best)
    metric = metric_of(best)
    during, _ = canonical(settings[f"{prefix}during"], args)
    begin = _canonical(metric, args.get(metric, {})) if _find(metric) else metric
    if begin != metric:
        raise UserError(f"{keys}best={best!r}: values of '{metric}' begin with '{begin}/'.")
    if metric not in map(metric_of, during):
        raise UserError(
            f"{keys}best={best!r} is a value of the metric '{metric}': name it in {keys}during."
        )
    if not settings[f"{prefix}every"]:
        raise UserError(
            f"{keys}best needs evaluations during training: set {keys}every to a number of steps."
        )


def validate(metrics: Sequence[str], args: Args, extractors: Args) -> None:
    """Raises `UserError` for arguments and weights that metrics will reject, before they run."""
    none = np.zeros((0, 32, 32, 3), np.uint8)
    seen: list[tuple[str, dict]] = []
    for name in metrics:
        given = checked(name, args.get(name, {}))
        extractor, metric = extractor_of(name, given), find(name)
        if extractor:
            own = metric.split(given)[1] if metric.declaration.on_features else {}
            used = {**extractors.get(extractor, {}), **own}
            if (extractor, used) not in seen:  # `stream` checks its arguments, and computes later
                plugins.load("extractors", extractor).stream(none, **used)
                seen.append((extractor, used))


def least(name: str, args: Mapping[str, Any]) -> tuple[dict[str, int], dict[str, Any]]:
    """Returns {part of `base.PARTS`: the fewest examples}, and the arguments that it depends on."""
    metric = find(name)
    declared, used = metric.declaration.least, dict[str, Any]()
    if callable(declared):
        given = metric.complete(args)
        used = {argument: given[argument] for argument in inspect.signature(declared).parameters}
        declared = declared(**used)
    parts = declared if isinstance(declared, Mapping) else dict.fromkeys(PARTS, declared)
    return dict(parts), used


def takes(name: str, argument: str) -> bool:
    """Returns whether a metric has an argument of that name."""
    return argument in find(name).parameters()


def extractor_of(name: str, args: Mapping[str, Any]) -> str | None:
    """Returns the feature extractor that a metric uses with these arguments, if it uses one."""
    return args.get("extractor", find(name).extractor) or None


def metric_of(value: str) -> str:
    """Returns the metric that computes a value such as 'recon/mse'; a metric's name is its own."""
    first, _, _ = value.partition("/")
    found = _find(first)
    if found:
        return first if found.declaration.on_features else found.file
    return next((file for file, table in _all_tables() if _begins(value, table.prefix)), first)


def table_of(group: str) -> tuple[Table | None, str]:
    """Returns the table of the values 'GROUP/NAME', and what stands for {} in its title."""
    first = group.partition("/")[0]
    found = _find(first)
    tables = found.declaration.tables if found else [table for _, table in _all_tables()]
    groups = [group, found.file + group[len(first) :]] if found else [group]
    for each in groups:  # a table of the name itself, such as FID's, comes first
        fitting = [table for table in tables if _begins(each, table.prefix)]
        if fitting:
            table = max(fitting, key=lambda table: len(table.prefix))
            details = [part for part in each[len(table.prefix) :].split("/") if part]
            if found and found.declaration.on_features and first not in ALIASES:
                details.insert(0, found.extractor)
            return table, ", ".join(details or [found.extractor if found else ""])
    return None, group


def _all_tables() -> list[tuple[str, Table]]:
    files = plugins.names("metrics")
    return [(file, table) for file in files for table in _module(file).METRIC.tables]


def _begins(group: str, prefix: str) -> bool:
    return group == prefix or group.startswith(f"{prefix}/")


def direction(value: str) -> int:
    """Returns 1 if a higher value, such as of 'recon/psnr', is better for a model; -1 if a lower.

    Raises:
        UserError: if neither is, or no model changes the value.
    """
    group, _, name = value.rpartition("/")
    table, _ = table_of(group)
    if table and "/flag/" not in value and name != "spread":
        common = None if name in OF_DATA else table.better
        better = table.values[name].better if name in table.values else common
        if better:
            return 1 if better == "higher" else -1
    raise UserError(
        f"Neither a higher nor a lower '{value}' makes a model better (config.eval.best): use a "
        "value such as recon/psnr, recon/mse or fd_efficientnet_lite0/recon_train."
    )


def metric_for_dimension(dim: int | None) -> str | None:
    """Returns the Fréchet distance on features of this many dimensions, by its usual name."""
    for extractor in plugins.names("extractors"):
        if plugins.load("extractors", extractor).DIM == dim:
            usual = [name for name, alias in ALIASES.items() if alias[:2] == ("fd", extractor)]
            return usual[0] if usual else f"fd_{extractor}"
    return None
