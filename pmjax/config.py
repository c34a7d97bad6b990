"""Reading configs: a Python file with `get_config`, then --config.name=value for single values.

Arguments of methods, priors and nets are the fields of their classes: here they are completed
with their defaults, so that a run's config.json says everything.
"""

import ast
import dataclasses
import importlib.util
import json
import math
import sys
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from pmjax import errors, plugins
from pmjax.errors import UserError
from pmjax.evals import meanings
from pmjax.training import profiler
from pmjax.training.optimizers import make_optimizer

# What config key names a file of which package, which class there, and where its arguments are.
_PLUGINS = (
    ("method", "methods", "Method", "method_args"),
    ("prior", "priors", "Prior", "prior_args"),
    ("nets", "nets", "Encoder", "nets_args"),
)
# Fields of nets that are not the user's to set by nets_args.
_FLAX_FIELDS = {"parent", "name", "latent_dim", "dtype", "axis"}
# Keys that workdirs of earlier versions lack, with what those versions did.
LATER = {
    "data.verify": True,
    "eval.best": "",
    "eval.during": ("reconstruction", "latent"),
    "eval.efficientnet_precision": "float32",
    "eval.efficientnet_resolution": 0,
    "eval.every": 0,
    "eval.fid_protocols": ("10k_test",),
    "eval.inception_precision": "float32",
    "eval.inception_variant": "pytorch_fid",
    "eval.inception_weights": "",
    "eval.stage2_best": "",
    "eval.stage2_during": ("fd_efficientnet_lite0",),
    "eval.stage2_every": 0,
    "method_args.dispersion": 1.0,
    "optimizer.accumulate": 1,
    "precision": "float32",
    "profile": "",
    "skip_nonfinite": 0,
    "stage2.devices": 1,
    "stage2.optimizer.accumulate": 1,
}
METRIC_ARGS = "eval.args."  # with a metric's name and its argument's behind it
# The other way round: arguments that there are no more, and what is now done for which config.
GONE = {
    "prior_args.critic_gain": lambda config: 1.0,
    "prior_args.residual": lambda config: config["prior_args"].get("base_prior") == "gmm",
}
# All keys but those in LATER and plugins' and metrics' arguments.
KEYS = """
    batch_norm.affine batch_norm.momentum checkpoint.every checkpoint.keep data.batch_size
    data.cache_dir data.device_budget_gb data.manual_dir data.name data.path data.size
    data.skip_broken devices ema_decay eval.baselines eval.metrics eval.num_samples latent_dim
    log_every method nets optimizer.b1 optimizer.b2 optimizer.clip optimizer.learning_rate
    optimizer.schedule optimizer.warmup parallel prior schedule seed stage2.batch_size
    stage2.optimizer.b1 stage2.optimizer.b2 stage2.optimizer.clip stage2.optimizer.learning_rate
    stage2.optimizer.schedule stage2.optimizer.warmup stage2.steps stage2.steps_per_dispatch steps
    steps_per_dispatch
""".split()

# Least and largest values. Of floats, NaN and infinity are refused everywhere.
RANGES = {
    "seed": (0, 2**32 - 1),
    "latent_dim": (1, 2**20),
    "data.size": (0, 2**14),
    "batch_norm.momentum": (0, 1),
    "ema_decay": (0, 1),
    "checkpoint.keep": (1, math.inf),
    **dict.fromkeys(("optimizer.b1", "optimizer.b2"), (0, 0.999999999)),
    **dict.fromkeys(("stage2.optimizer.b1", "stage2.optimizer.b2"), (0, 0.999999999)),
    **dict.fromkeys(
        ("data.batch_size", "eval.num_samples", "stage2.batch_size", "stage2.steps"),
        (1, 2**31 - 1),
    ),
    **dict.fromkeys(
        ("steps", "steps_per_dispatch", "stage2.steps_per_dispatch", "log_every"), (1, 2**31 - 1)
    ),
    **dict.fromkeys(("checkpoint.every", "stage2.devices"), (1, 2**31 - 1)),
    **dict.fromkeys(("eval.every", "eval.stage2_every", "devices"), (0, 2**31 - 1)),
    "skip_nonfinite": (0, 2**31 - 1),
    "eval.efficientnet_resolution": (0, 2**14),
    **dict.fromkeys(("optimizer.warmup", "stage2.optimizer.warmup"), (0, 2**31 - 1)),
    **dict.fromkeys(("optimizer.accumulate", "stage2.optimizer.accumulate"), (1, 2**31 - 1)),
    **dict.fromkeys(("optimizer.learning_rate", "stage2.optimizer.learning_rate"), (0, 1e6)),
    **dict.fromkeys(("optimizer.clip", "stage2.optimizer.clip"), (0, math.inf)),
    "data.device_budget_gb": (0, math.inf),
}


def load(reference: str, overrides: dict[str, str] | None = None) -> ConfigDict:
    """Reads a config file and applies overrides.

    Args:
      reference: path of a Python file, with ':variant' or ':variant,variant' behind it or not.
      overrides: dotted name -> text, as from --config.data.batch_size=128.

    Returns:
      The complete config, locked.

    Raises:
      UserError: a missing file, an unknown variant or name (with the nearest valid one), a value
        of the wrong type.
    """
    path, _, variant = reference.partition(":")
    module = _import(Path(path))
    try:
        config = module.get_config(variant)
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise UserError(f"{path}: {error}") from error
    defaults = ConfigDict(config.to_dict())
    for name, text in (overrides or {}).items():
        _override(config, name, text)
    for key, _, _, args in _PLUGINS:
        if config[key] != defaults[key]:  # the file's arguments were meant for its own choice
            given = {n.split(".", 1)[1] for n in overrides if n.startswith(args + ".")}
            config[args] = ConfigDict({n: config[args][n] for n in given})
    return complete(config)


def override(config: ConfigDict, overrides: dict[str, str], prefix: str) -> ConfigDict:
    """Applies overrides of keys that start with `prefix` to a complete config; returns a copy."""
    config = ConfigDict(config.to_dict()).lock()
    for name, text in overrides.items():
        if not name.startswith(prefix):
            raise UserError(
                f"--config.{name} belongs to training; here only keys under "
                f"--config.{prefix} can be given."
            )
        _override(config, name, text)
    return complete(config)


def metric_args(overrides: dict[str, str]) -> dict[str, dict[str, Any]]:
    """Returns {metric: its arguments} of overrides, none of which may belong to a workdir."""
    config = ConfigDict({"eval": {"args": {}}})
    for name, text in overrides.items():
        if not name.startswith(METRIC_ARGS):
            raise UserError(
                f"--config.{name} belongs to a workdir; with --samples, only metrics' arguments "
                f"can be given: --config.{METRIC_ARGS}METRIC.NAME=VALUE."
            )
        _override(config, name, text)
    return _checked_metric_args(config.eval.args)


def complete(config: ConfigDict) -> ConfigDict:
    """Checks the names and values that depend on each other, and fills in arguments' defaults."""
    for key, package, cls, args in _PLUGINS:
        plugin = getattr(plugins.load(package, config[key]), cls)
        fields = _fields(plugin)
        for name, value in config[args].items():
            if name not in fields:
                raise errors.unknown(f"argument of {key} '{config[key]}'", name, fields)
            fields[name] = _checked(f"config.{args}.{name}", value, fields[name])
        if package != "nets":
            plugin(**fields)  # checks values that have to be one of several
        with config.unlocked():
            config[args] = ConfigDict(fields)
    plugins.load("datasets", config.data.name)
    for name in (*config.eval.metrics, *config.eval.during, *config.eval.stage2_during):
        plugins.load("metrics", name)
    with config.unlocked():
        config.eval.args = ConfigDict(_checked_metric_args(config.eval.args))
    for name in config.eval.baselines:
        plugins.load("priors", name)
    _one_of("config.parallel", config.parallel, ("jit", "pmap"))
    _one_of("config.precision", config.precision, ("float32", "bfloat16"))
    _one_of("config.schedule", config.schedule, ("two_stage", "joint"))
    profiler.parse(config.profile)
    _check_ranges(config)
    for optimizer in (config.optimizer, config.stage2.optimizer):
        make_optimizer(steps=1, **optimizer)
    for prefix in ("", "stage2_"):
        if config.eval[f"{prefix}best"]:
            _check_best(config.eval, prefix)
    return config.lock()


def _check_best(settings: ConfigDict, prefix: str) -> None:
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


def _checked_metric_args(given: ConfigDict) -> dict[str, dict[str, Any]]:
    from pmjax.evals import registry  # which imports JAX

    found = {}
    for metric, args in given.items():
        if not isinstance(args, ConfigDict):
            raise UserError(
                f"config.{METRIC_ARGS}{metric} is a group: --config.{METRIC_ARGS}{metric}.NAME="
                f"VALUE is an argument of metric '{metric}'."
            )
        where = f"config.{METRIC_ARGS}{metric}."
        found[metric] = registry.checked(metric, args.to_dict(), where=where)
    return found


def get(config: ConfigDict, name: str) -> Any:
    """Returns the value of a dotted name."""
    for part in name.split("."):
        config = config[part]
    return config


def flat(config: ConfigDict | dict, prefix: str = "") -> dict[str, Any]:
    """Returns {dotted name: value}, tuples as lists."""
    result = {}
    for name, value in config.items():
        if isinstance(value, ConfigDict | dict):
            result |= flat(value, f"{prefix}{name}.")
        else:
            result[prefix + name] = list(value) if isinstance(value, tuple) else value
    return result


def save(config: ConfigDict, path: Path) -> None:
    """Writes a config as JSON."""
    path.write_text(json.dumps(config.to_dict(), indent=2, sort_keys=True) + "\n")


def read(path: Path) -> ConfigDict:
    """Reads what `save` wrote, of this version or of an earlier one.

    Raises:
      UserError: if the file is damaged, lacks keys or has unknown ones (all of which it names).
    """
    try:
        values = _with_tuples(json.loads(path.read_text()))
        if not isinstance(values, dict):
            raise ValueError("it holds no keys")
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}).") from error
    groups = {args for *_, args in _PLUGINS}
    for args in groups:
        if not isinstance(values.setdefault(args, {}), dict):
            raise UserError(f"{path} cannot be read ('{args}' is no group of keys).")
    for name, done in GONE.items():
        args, key = name.split(".")
        if key in values[args] and values[args][key] == done(values):
            del values[args][key]
    if isinstance(values.get("eval"), dict):
        values["eval"].setdefault("args", {})
    found = {
        name
        for name in flat(values)
        if name.partition(".")[0] not in groups and not name.startswith(METRIC_ARGS)
    }
    strange, missing = sorted(found - {*KEYS, *LATER}), sorted(set(KEYS) - found)
    if strange or missing:
        told = [f"it has unknown keys ({', '.join(strange)})"] if strange else []
        told += [f"it lacks keys ({', '.join(missing)})"] if missing else []
        raise UserError(
            f"{path} is of another version of pmjax, or was changed: {' and '.join(told)}. Take "
            f"the version that wrote it, or train again in another --workdir."
        )
    for name, value in LATER.items():
        if name.partition(".")[0] in groups:
            continue  # `complete` knows which plugins have the argument
        *parents, last = name.split(".")
        part = values
        for parent in parents:
            part = part[parent]
        part.setdefault(last, value)
    try:
        return complete(ConfigDict(values))
    except (UserError, TypeError, ValueError, AttributeError) as error:  # values of other types
        raise UserError(f"{path}: {error}") from error


def _with_tuples(value: Any) -> Any:
    """JSON has no tuples; configs have no lists, because those could be changed in place."""
    if isinstance(value, dict):
        return {name: _with_tuples(v) for name, v in value.items()}
    return tuple(value) if isinstance(value, list) else value


def _import(path: Path):
    if not path.is_file():
        near = [str(p) for p in sorted(path.parent.glob("*.py")) if p.stem != "default"]
        if near:
            raise errors.unknown("config file", str(path), near)
        raise UserError(
            f"There is no config file {path}, nor any other in {path.parent.resolve()}. Run the "
            f"command where the directory configs is, or give the file's whole path."
        )
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.parent))  # configs import `default` from beside them
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        raise UserError(f"{path} cannot be read, line {error.lineno}: {error.msg}.") from error
    finally:
        sys.path.pop(0)
        sys.modules.pop("default", None)
    return module


def _override(config: ConfigDict, name: str, text: str) -> None:
    *parents, last = name.split(".")
    part, seen = config, "config"
    of_metric = name.startswith(METRIC_ARGS)
    if of_metric and len(parents) != 3:
        raise UserError(
            f"--config.{name} is no argument of a metric: --config.{METRIC_ARGS}METRIC.NAME=VALUE "
            "is one, such as kid.subset_size=500."
        )
    for parent in parents:
        if of_metric and parent not in part:
            with part.unlocked():
                part[parent] = ConfigDict()
        if parent not in part:
            raise errors.unknown("config key", f"{seen}.{parent}", (f"{seen}.{k}" for k in part))
        if not isinstance(part[parent], ConfigDict):
            raise UserError(f"{seen}.{parent} is a value; it has no key '{last}'.")
        part, seen = part[parent], f"{seen}.{parent}"
    free = of_metric or (bool(parents) and parents[-1].endswith("_args"))
    if last not in part and not free:
        raise errors.unknown("config key", f"{seen}.{last}", (f"{seen}.{key}" for key in part))
    if isinstance(part.get(last), ConfigDict):
        raise UserError(
            f"--config.{name} is a group; give one of its keys: "
            f"{', '.join(f'--config.{name}.{key}' for key in part[last] or ('METRIC.NAME',))}."
        )
    with part.unlocked():
        if free and last in part:  # another type is refused later, by the file that takes it
            del part[last]
        part[last] = _parse(text) if free else _checked(f"config.{name}", _parse(text), part[last])


def _parse(text: str) -> Any:
    """Reads a Python literal, or true/false, or takes the text as it is."""
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):  # it is no literal
        return text


def _checked(name: str, value: Any, like: Any) -> Any:
    """Returns `value` as the type of `like`, or raises `UserError`."""
    if isinstance(like, float) and type(value) is int and abs(value) < 2**53:
        return float(value)
    if isinstance(like, str) and not isinstance(value, list | tuple | dict):
        return str(value)
    if isinstance(like, tuple):
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        if isinstance(value, list | tuple):
            return tuple(value)
    if type(value) is type(like):
        return value
    raise UserError(
        f"{name}={value!r} is of type {type(value).__name__}; "
        f"it must be of type {type(like).__name__}, such as {like!r}."
    )


def _fields(cls: type) -> dict[str, Any]:
    """Returns the fields of a dataclass that have defaults, with them."""
    return {
        f.name: f.default
        for f in dataclasses.fields(cls)
        if f.name not in _FLAX_FIELDS and f.default is not dataclasses.MISSING
    }


def _check_ranges(config: ConfigDict) -> None:
    for name, value in flat(config).items():
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"config.{name}={value} must be a finite number.")
        least, largest = RANGES.get(name, (-math.inf, math.inf))
        if name in RANGES and value < least:
            raise UserError(f"config.{name}={value} must be at least {least}.")
        if name in RANGES and value > largest:
            raise UserError(f"config.{name}={value} must be at most {largest}.")


def _one_of(name: str, value: str, valid: tuple[str, ...]) -> None:
    if value not in valid:
        raise errors.unknown(name, value, valid)
