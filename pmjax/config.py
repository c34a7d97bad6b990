"""Reading configs: a Python file with `get_config`, then --config.name=value for single values.

Arguments of methods, priors and nets are the fields of their classes: here they are completed
with their defaults, so that a run's config.json says everything.
"""

import ast
import dataclasses
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from pmjax import errors, plugins, profile
from pmjax.errors import UserError
from pmjax.optimizers import make_optimizer

# What config key names a file of which package, which class there, and where its arguments are.
_PLUGINS = (
    ("method", "methods", "Method", "method_args"),
    ("prior", "priors", "Prior", "prior_args"),
    ("nets", "nets", "Encoder", "nets_args"),
)
# Fields of nets that are not the user's to set by nets_args.
_FLAX_FIELDS = {"parent", "name", "latent_dim", "dtype", "axis"}


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


def complete(config: ConfigDict) -> ConfigDict:
    """Checks the names and values that depend on each other, and fills in arguments' defaults."""
    for key, package, cls, args in _PLUGINS:
        plugin = getattr(plugins.load(package, config[key], provides=cls), cls)
        fields = _fields(plugin)
        for name, value in config[args].items():
            if name not in fields:
                raise errors.unknown(f"argument of {key} '{config[key]}'", name, fields)
            fields[name] = _checked(f"config.{args}.{name}", value, fields[name])
        if package != "nets":
            plugin(**fields)  # checks values that have to be one of several
        with config.unlocked():
            config[args] = ConfigDict(fields)
    plugins.load("datasets", config.data.name, provides="source")
    for name in config.eval.metrics:
        plugins.load("evals", name, provides="evaluate")
    for name in config.eval.baselines:
        plugins.load("priors", name, provides="Prior")
    _one_of("config.parallel", config.parallel, ("jit", "pmap"))
    _one_of("config.precision", config.precision, ("float32", "bfloat16"))
    _one_of("config.schedule", config.schedule, ("two_stage", "joint"))
    profile.parse(config.profile)
    for optimizer in (config.optimizer, config.stage2.optimizer):
        make_optimizer(steps=1, **optimizer)
    for name in ("steps", "data.batch_size", "stage2.steps", "stage2.batch_size", "log_every"):
        value = get(config, name)
        if value < 1:
            raise UserError(f"config.{name}={value} must be at least 1.")
    return config.lock()


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
    """Reads what `save` wrote; a damaged file is a `UserError`."""
    try:
        values = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}).") from error
    return ConfigDict(_with_tuples(values)).lock()


def _with_tuples(value: Any) -> Any:
    """JSON has no tuples; configs have no lists, because those could be changed in place."""
    if isinstance(value, dict):
        return {name: _with_tuples(v) for name, v in value.items()}
    return tuple(value) if isinstance(value, list) else value


def _import(path: Path):
    if not path.is_file():
        near = [str(p) for p in sorted(path.parent.glob("*.py")) if p.stem != "default"]
        raise errors.unknown("config file", str(path), near)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.parent))  # configs import `default` from beside them
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.pop(0)
        sys.modules.pop("default", None)
    return module


def _override(config: ConfigDict, name: str, text: str) -> None:
    *parents, last = name.split(".")
    part, seen = config, "config"
    for parent in parents:
        if parent not in part:
            raise errors.unknown("config key", f"{seen}.{parent}", (f"{seen}.{k}" for k in part))
        if not isinstance(part[parent], ConfigDict):
            raise UserError(f"{seen}.{parent} is a value; it has no key '{last}'.")
        part, seen = part[parent], f"{seen}.{parent}"
    free = bool(parents) and parents[-1].endswith("_args")
    if last not in part and not free:
        raise errors.unknown("config key", f"{seen}.{last}", (f"{seen}.{key}" for key in part))
    if isinstance(part.get(last), ConfigDict):
        raise UserError(
            f"--config.{name} is a group; give one of its keys: "
            f"{', '.join(f'--config.{name}.{key}' for key in part[last])}."
        )
    with part.unlocked():
        part[last] = _parse(text) if free else _checked(f"config.{name}", _parse(text), part[last])


def _parse(text: str) -> Any:
    """Reads a Python literal, or true/false, or takes the text as it is."""
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _checked(name: str, value: Any, like: Any) -> Any:
    """Returns `value` as the type of `like`, or raises `UserError`."""
    if isinstance(like, float) and type(value) is int:
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


def _one_of(name: str, value: str, valid: tuple[str, ...]) -> None:
    if value not in valid:
        raise errors.unknown(name, value, valid)
