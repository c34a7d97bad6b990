"""Arguments of metrics, as a config or a command gives them, checked before they are used."""

import inspect
import types
from collections.abc import Mapping, Sequence
from typing import Any, get_args

import numpy as np
from ml_collections import ConfigDict

from pmjax import plugins
from pmjax.errors import UserError, unknown
from pmjax.evals import meanings
from pmjax.schema import METRIC_ARGS

WORDS = Sequence[str]


def checked(metric: str, given: Mapping[str, Any], *, where: str = "") -> dict[str, Any]:
    """Returns a metric's arguments as the types that its `evaluate` names.

    Args:
        metric: a file of `pmjax/evals/metrics`.
        given: its arguments; of words, a text with commas is a list.
        where: what comes before an argument's name in messages.

    Raises:
        UserError: for an unknown metric or argument, with the nearest one, and for a value of
            another type or no protocol.
    """
    function = plugins.load("metrics", metric).evaluate
    valid = dict(list(inspect.signature(function).parameters.items())[1:])
    for name in given:
        if name not in valid:
            raise unknown(f"argument of metric '{metric}'", name, valid)
    found = {
        name: _as(f"{where}{name}", value, valid[name].annotation) for name, value in given.items()
    }
    if (protocols := found.get("protocols")) is not None:
        from pmjax.evals.protocols import parse  # which imports this package

        for protocol in protocols or ("",):
            parse(protocol)
    return found


def checked_args(given: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Returns {metric: its arguments} of a config's group eval.args, as `checked` does for each."""
    found = {}
    for metric, args in given.items():
        if not isinstance(args, Mapping):
            raise UserError(
                f"config.{METRIC_ARGS}{metric} is a group: --config.{METRIC_ARGS}{metric}.NAME="
                f"VALUE is an argument of metric '{metric}'."
            )
        found[metric] = checked(metric, args, where=f"config.{METRIC_ARGS}{metric}.")
    return found


def check_settings(settings: ConfigDict) -> dict[str, dict[str, Any]]:
    """Checks the names in a config's group eval, and returns the arguments of its metrics.

    Raises:
      UserError: for unknown metrics and arguments, and for an eval.best that cannot be.
    """
    for name in (*settings.metrics, *settings.during, *settings.stage2_during):
        plugins.load("metrics", name)
    for prefix in ("", "stage2_"):
        if settings[f"{prefix}best"]:
            check_best(settings, prefix)
    return checked_args(settings.args.to_dict())


def check_best(settings: ConfigDict, prefix: str) -> None:
    """Raises `UserError` unless evaluations during training compute the value of PREFIXbest."""
    keys, best = f"config.eval.{prefix}", settings[f"{prefix}best"]
    meanings.direction(best)
    metric = meanings.metric_of(best)
    if metric not in settings[f"{prefix}during"]:
        raise UserError(
            f"{keys}best={best!r} is a value of the metric '{metric}': name it in {keys}during."
        )
    if not settings[f"{prefix}every"]:
        raise UserError(
            f"{keys}best needs evaluations during training: set {keys}every to a number of steps."
        )


def option(metric: str, argument: str = "") -> str:
    """Returns the flag of a metric's argument; without one, what comes before any one's name."""
    return f"--config.eval.args.{metric}.{argument}"


def takes(metric: str, argument: str) -> bool:
    """Tells whether a metric has an argument of that name."""
    function = plugins.load("metrics", metric).evaluate
    return argument in inspect.signature(function).parameters


def _as(name: str, value: Any, hint: Any) -> Any:
    hints = get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if WORDS in hints and isinstance(value, str | list | tuple):
        words = value.split(",") if isinstance(value, str) else value
        if all(isinstance(word, str) for word in words):
            return tuple(word.strip() for word in words if word.strip())
    if float in hints and type(value) is int:
        return float(value)
    if type(value) in hints:
        return value
    told = {WORDS: "words", types.NoneType: "None"}
    types_ = " or ".join(told.get(hint) or hint.__name__ for hint in hints)
    raise UserError(f"{name}={value!r} is of type {type(value).__name__}; it must be {types_}.")


def validate(
    metrics: Sequence[str],
    args: Mapping[str, Mapping[str, Any]],
    extractors: Mapping[str, Mapping[str, Any]],
) -> None:
    """Raises `UserError` for arguments, and weights of features, that metrics will not find good.

    Args:
        metrics: files of `pmjax/evals/metrics`.
        args: {metric: its arguments}.
        extractors: {feature extractor: its arguments}.
    """
    from pmjax.evals.features import base
    from pmjax.evals.registry import extractor_of  # which import this module

    used = {}
    for metric in metrics:
        given = checked(metric, args.get(metric, {}))
        used.setdefault(extractor_of(metric, given), metric)
    used.pop(None, None)
    for name, metric in used.items():
        if name not in (valid := plugins.names("extractors")):
            raise unknown(f"extractor ({option(metric, 'extractor')})", name, valid)
        none = np.zeros((0, 32, 32, 3), np.uint8)
        base.load(name).stream(none, **extractors.get(name, {}))  # checks, and computes later


def extractor_of(metric: str, args: Mapping[str, Any]) -> str | None:
    """Returns the feature extractor that a metric uses with these arguments, if it uses one."""
    module = plugins.load("metrics", metric)
    argument = inspect.signature(module.evaluate).parameters.get("extractor")
    default = argument.default if argument else getattr(module, "EXTRACTOR", None)
    return args.get("extractor", default)


def needs_own_prior(metric: str) -> bool:
    """Tells whether a metric needs the run's own prior, and not any."""
    return getattr(plugins.load("metrics", metric), "OWN_PRIOR", False)
