"""Configurations: reading config files and --config.NAME=VALUE, and storing them in workdirs.

`pmjax.schema` declares the keys. The arguments of methods, priors and nets are the fields of their
classes; a complete configuration has all of them.
"""

import contextlib
import dataclasses
import importlib
import inspect
import json
import os
import runpy
import sys
import textwrap
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from ml_collections import ConfigDict

from pmjax import errors, paths, plugins, schema
from pmjax.errors import UserError
from pmjax.schema import METRIC_ARGS

# Fields of nets that nets_args does not set.
_FLAX_FIELDS = {"parent", "name", "latent_dim", "dtype"}


def load(reference: str, overrides: Mapping[str, str] | None = None) -> ConfigDict:
    """Reads a config file and applies overrides.

    Args:
      reference: path of a Python file, optionally followed by ':variant' or ':variant,variant', or
        of the config.json of a workdir.
      overrides: dotted name -> text, as from --config.data.batch_size=128.

    Returns:
      The complete config, locked.

    Raises:
      UserError: for a missing file, an unknown variant or name (with the nearest valid one), or an
        invalid value.
    """
    path, variant = _split(reference)
    values, overrides = _from_file(path, variant), overrides or {}
    config = ConfigDict(values)
    for name, text in overrides.items():
        assign(config, name, schema.Text(text))
    for name, key in schema.PLUGINS.items():
        if config[name] != values[name]:  # the file's arguments belong to its own choice
            given = {n.split(".", 1)[1] for n in overrides if n.startswith(f"{key.args}.")}
            config[key.args] = ConfigDict({n: config[key.args][n] for n in given})
    complete(config)
    if config.method_args.get("batch_norm") and config.data.batch_size < 2:
        raise UserError(
            f"config.data.batch_size={config.data.batch_size} must be at least 2: the latent "
            "BatchNorm encodes a batch of one example to 0. Or set "
            "--config.method_args.batch_norm=false."
        )
    return config


def override(config: ConfigDict, overrides: Mapping[str, str], prefix: str) -> ConfigDict:
    """Applies overrides of keys that start with `prefix` to a complete config; returns a copy."""
    config = ConfigDict(config.to_dict())
    for name, text in overrides.items():
        if not name.startswith(prefix):
            raise UserError(
                f"--config.{name} belongs to training; only keys under --config.{prefix} can be "
                f"given here."
            )
        assign(config, name, schema.Text(text))
    return complete(config)


def metric_args(overrides: Mapping[str, str]) -> dict[str, Any]:
    """Returns {metric: its arguments} of overrides, none of which may belong to a workdir."""
    config = ConfigDict({"eval": {"args": {}}})
    for name, text in overrides.items():
        if not name.startswith(METRIC_ARGS):
            raise UserError(
                f"--config.{name} belongs to a workdir; with --samples, only metrics' arguments "
                f"can be given: --config.{METRIC_ARGS}METRIC.NAME=VALUE."
            )
        assign(config, name, schema.Text(text))
    return config.eval.args.to_dict()


def complete(config: ConfigDict) -> ConfigDict:
    """Checks all values, fills in the defaults of plugins' arguments, and locks the config."""
    config.unlock()
    for name, value in flat(config).items():
        if name in schema.KEYS:
            assign(config, name, value)
    for name, key in schema.PLUGINS.items():
        plugin = plugin_class(name, config[name])
        label = plugins.KINDS[key.plugin].label.capitalize()
        fields = arguments(plugin)
        for argument, value in config[key.args].items():
            if argument not in fields:
                raise errors.no_argument(f"{label} '{config[name]}'", argument, fields)
            where = f"config.{key.args}.{argument}"
            fields[argument] = schema.as_type(where, value, fields[argument])
        if key.plugin != "nets":
            plugin(**fields)  # which checks their values
        config[key.args] = ConfigDict(fields)
    # Metrics are checked where they live. That room is above this module, so it is found by name.
    config.eval.args = ConfigDict(
        importlib.import_module("pmjax.evals.registry").check_settings(config.eval)
    )
    for name, value in flat(config).items():
        schema.require_finite(f"config.{name}", value)
    return config.lock()


def plugin_class(key: str, name: str) -> type:
    """Returns the class whose fields are the arguments of a plugin, such as ('method', 'pm')."""
    kind = schema.KEYS[key].plugin
    return getattr(plugins.load(kind, name), plugins.KINDS[kind].defines)


def arguments(cls: type) -> dict[str, Any]:
    """Returns {name: default} of the fields of a plugin's class that a config can set."""
    return {
        f.name: f.default
        for f in dataclasses.fields(cls)
        if f.name not in _FLAX_FIELDS and f.default is not dataclasses.MISSING
    }


def assign(config: ConfigDict, name: str, value: Any) -> None:
    """Sets the value of a dotted name.

    Raises:
      UserError: for an unknown name, with the nearest valid one, or an invalid value. Arguments of
        plugins and metrics are free here; `complete` checks them.
    """
    *parents, last = name.split(".")
    part, seen = config, "config"
    of_metric = name.startswith(METRIC_ARGS)
    if of_metric and len(parents) != 3:
        raise UserError(
            f"--config.{name} is not an argument of a metric. Write --config.{METRIC_ARGS}METRIC."
            f"NAME=VALUE, such as --config.{METRIC_ARGS}kid.subset_size=500."
        )
    for parent in parents:
        if of_metric and parent not in part:
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
    value = value if free else schema.KEYS[name].check(name, value)
    if last in part:  # ConfigDict would not change a value's type
        del part[last]
    part[last] = value


def flat(config: ConfigDict | Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns {dotted name: value}, tuples as lists."""
    result: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, ConfigDict | dict):
            result |= flat(value, f"{prefix}{name}.")
        else:
            result[f"{prefix}{name}"] = list(value) if isinstance(value, tuple) else value
    return result


def save(config: ConfigDict, path: Path) -> None:
    """Writes a config as JSON."""
    path.write_text(json.dumps(config.to_dict(), indent=2, sort_keys=True) + "\n")


def read(path: Path) -> ConfigDict:
    """Reads what `save` of this or an earlier version wrote.

    Raises:
      UserError: for a damaged file, and for missing and unknown keys, all of which it names.
    """
    try:
        values = json.loads(path.read_text())
        if not isinstance(values, dict):
            raise ValueError("it has no keys")
        values, problem = _of_this_version(values)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}).") from error
    if problem:
        raise UserError(
            f"{path} was written by another version of pmjax, or edited: it {problem}. Use the "
            f"version that wrote it, or train again in another --workdir."
        )
    try:
        return complete(ConfigDict(_with_earlier_arguments(values)))
    except (UserError, TypeError, ValueError, AttributeError) as error:  # values of other types
        raise UserError(f"{path}: {error}") from error


def _of_this_version(
    values: dict[str, Any], *, partial: bool = False
) -> tuple[dict[str, Any], str]:
    """Returns a config with the keys that its version lacked, and what is wrong with its keys.

    A `partial` config may lack other keys, too; all that it lacks have today's defaults then.
    """
    groups = [key.args for key in schema.PLUGINS.values()]
    for group in groups:
        if not isinstance(values.setdefault(group, {}), dict):
            raise ValueError(f"'{group}' is not a group of keys")
    for name, means_default in schema.REMOVED.items():
        group, argument = name.split(".")
        if argument in values[group] and means_default(values, values[group][argument]):
            del values[group][argument]
    if isinstance(values.setdefault("eval", {}), dict):
        values["eval"].setdefault("args", {})
    found = {name for name in flat(values) if name.partition(".")[0] not in groups}
    unknown = {name for name in found - {*schema.KEYS} if not name.startswith(METRIC_ARGS)}
    problems = [f"has unknown keys ({', '.join(sorted(unknown))})"] if unknown else []
    missing = sorted({*schema.KEYS} - {*schema.ADDED} - found)
    if missing and not partial:
        problems.append(f"lacks keys ({', '.join(missing)})")
    for name in {*schema.KEYS} - found:
        if not problems:
            value = schema.KEYS[name].default if missing else schema.ADDED[name]
            schema.put(values, name, value)
    return values, " and it ".join(problems)


def _with_earlier_arguments(values: dict[str, Any]) -> dict[str, Any]:
    """Returns a stored config with the arguments of plugins that its version lacked."""
    for name, key in schema.PLUGINS.items():
        for argument in arguments(plugin_class(name, values[name])):
            if (full := f"{key.args}.{argument}") in schema.ADDED:
                values[key.args].setdefault(argument, schema.ADDED[full])
    return values


def directories() -> list[Path]:
    """Returns the directories of pmjax's own config files: here, and beside the package."""
    folders = [parent / "configs" for parent in (Path(), Path(__file__).parents[1])]
    return [folder for folder in folders if (folder / "default.py").is_file()]


def _split(reference: str) -> tuple[Path, str]:
    """Splits FILE[:variant]; the path of the file may contain colons, too."""
    file = reference
    while not os.path.isfile(paths.local(file)) and ":" in file:
        file = file.rpartition(":")[0]
    if not os.path.isfile(paths.local(file)):
        folder, slash, name = reference.rpartition("/")
        file = folder + slash + name.partition(":")[0]
    return paths.local(file), reference[len(file) + 1 :]


def _from_file(path: Path, variant: str) -> dict[str, Any]:
    """Returns the values of a config file; a `UserError` names the file and the line, if known."""
    _require_file(path)
    if path.suffix == ".json":
        if variant:
            raise UserError(f"{path} has no variants, such as '{variant}'.")
        return read(path).to_dict()
    with _importable(path.parent):
        try:
            values = _run(path, variant)
        except (Exception, SystemExit) as error:
            raise UserError(_located(path, error)) from error
    try:
        values, problem = _of_this_version(values, partial=True)
        if problem:
            raise UserError(f"the config it returns {problem}.")
        for name, value in flat(values).items():
            if name in schema.KEYS:
                schema.KEYS[name].check(name, value)
    except (UserError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise UserError(f"{path}: {error}") from error
    return values


def _require_file(path: Path) -> None:
    if os.path.isfile(path):
        return
    if os.path.isdir(path):
        names = ", ".join(sorted(f.name for f in path.iterdir() if _is_config(f)))
        hint = f"Give one of its files: {names}." if names else "It has no config file."
        raise UserError(f"{path} is a directory. {hint}")
    near = [str(p) for p in sorted(path.parent.glob("*.py")) if p.stem != "default"]
    if near:
        raise errors.unknown("config file", str(path), near)
    raise UserError(
        f"There is no config file {path}, nor any other in {path.parent.resolve()}. Run the "
        f"command in the directory that contains configs, or give the file's full path."
    )


def _is_config(file: Path) -> bool:
    return file.suffix == ".py" or file.name == "config.json"


@contextlib.contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """Lets a config file import its neighbors and `default`, none of which remains imported."""
    folder, path = folder.absolute(), [*sys.path]
    other, known = sys.modules.pop("default", None), {*sys.modules}
    sys.path[:] = [str(folder), *path, *map(str, directories())]
    try:
        yield
    finally:
        sys.path[:] = path
        new = {*sys.modules} - known
        beside = {name for name in new if _lies_in(folder, sys.modules[name])}
        for name in new:
            if name == "default" or name.partition(".")[0] in beside:
                del sys.modules[name]
        if other:
            sys.modules["default"] = other


def _lies_in(folder: Path, module: ModuleType) -> bool:
    """Returns whether a module or package is directly in a directory."""
    places = getattr(module, "__path__", None) or [getattr(module, "__file__", None)]
    return any(place and Path(place).parent == folder for place in places)


def _run(path: Path, variant: str) -> dict[str, Any]:
    """Returns what get_config of a Python file returns, as a dictionary."""
    get_config = runpy.run_path(str(path.absolute()), run_name="own_config").get("get_config")
    if not callable(get_config):
        raise UserError("it defines no function get_config(variant).")
    has_variants = bool(inspect.signature(get_config).parameters)
    if variant and not has_variants:
        raise UserError(f"its get_config has no argument for a variant, such as '{variant}'.")
    config = get_config(variant) if has_variants else get_config()
    if not isinstance(config, Mapping | ConfigDict):
        raise UserError(
            f"its get_config returns {config!r:.40}, not a ConfigDict: return "
            f"default.get_config(variant, {{NAME: VALUE, …}})."
        )
    return ConfigDict(config).to_dict()


def _located(path: Path, error: BaseException) -> str:
    """Describes an error of a config file: the file's line, and where else it was raised."""
    if isinstance(error, SyntaxError):  # of the file, or of one that it imports
        return f"{error.filename or path} cannot be read, line {error.lineno or 1}: {error.msg}."
    frames, file = traceback.extract_tb(error.__traceback__), str(path.absolute())
    lines = [frame.lineno for frame in frames if frame.filename == file]
    where = f"{path}, line {lines[-1]}" if lines else str(path)
    if isinstance(error, UserError):
        return f"{where}: {error}"
    text = textwrap.shorten(str(error), 500, placeholder=" …")  # ConfigDict's contain all keys
    if isinstance(error, ValueError) or not lines:
        return f"{where}: {text}"
    last = frames[-1]
    deeper = f" ({last.filename}, line {last.lineno})" if last.filename != file else ""
    return f"{where}: {type(error).__name__}{f': {text}' if text else ''}{deeper}"
