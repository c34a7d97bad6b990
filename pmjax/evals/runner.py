"""Evaluates the model of a workdir, or two sets of images, with metrics by name."""

import datetime
import functools
import logging
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from pmjax import builders, config, schema
from pmjax.errors import UserError
from pmjax.evals import image_sets, labels, registry, tables
from pmjax.evals.base import option
from pmjax.evals.context import OMIT_HINT, Context, Missing, Unfit, fresh_points
from pmjax.evals.features.base import Features
from pmjax.evals.registry import Args
from pmjax.model import Model
from pmjax.reporting import history, html
from pmjax.schema import METRIC_ARGS
from pmjax.storage import metrics_file
from pmjax.storage import workdir as workdirs
from pmjax.storage.lock import lock
from pmjax.storage.metrics_file import METRICS

log = logging.getLogger(__name__)
# Once in a process: before training, in evaluations of both stages and at the end.
warn_once = functools.cache(log.warning)
Found = dict[str, dict[str, float]]  # {metric: its values}
# Packages whose versions can change a number.
_PACKAGES = ("pmjax", "jax", "flax", "optax", "numpy", "scipy", "scikit-learn", "POT", "pillow")


def run(
    metrics: Sequence[str],
    ctx: Context,
    args: Args | None = None,
    *,
    quiet: bool = False,
    done: Callable[[str, dict[str, float]], None] = lambda name, values: None,
    failed: dict[str, UserError] | None = None,
) -> dict[str, float]:
    """Returns the values of several metrics, computed in order, and logs a line for each.

    `args` are {metric: its arguments}, also of metrics that are not computed. `quiet` lines are for
    debugging only. `done` receives the name and the values of each metric when it is computed.
    `failed`, if given, receives the error of each metric that cannot be computed.

    Raises:
        UserError: for unknown names and arguments (before anything is computed), data that do not
            fit a metric, and values that are not finite.
    """
    known = {name: registry.checked(name, given) for name, given in (args or {}).items()}
    metrics, known = registry.canonical(metrics, known)
    values: dict[str, float] = {}
    for name in metrics:
        start = time.perf_counter()
        try:
            new = _compute(name, ctx, known.get(name, {}))
        except UserError as error:
            if failed is None:
                raise
            failed[name] = error
            warn_once(f"Left out: {error}")
            continue
        shown = ", ".join(f"{key} {value}" for key, value in tables.shown(new, 4).items())
        level = logging.DEBUG if quiet else logging.INFO
        log.log(level, "eval %s (%.1f s): %s", name, time.perf_counter() - start, shown)
        done(name, new)
        values |= new
    return values


def _compute(name: str, ctx: Context, args: Mapping[str, Any]) -> dict[str, float]:
    found = registry.find(name)
    try:
        require_fit(name, ctx, args)
        if found.declaration.on_features:
            own, of_extractor = found.split(args)
            features = Features(ctx, found.extractor, metric=name, **of_extractor)
            values = found.module.evaluate(ctx, features, **own)
        else:  # keys of an earlier spelling begin with it
            values = {
                re.sub(f"^{found.file}/", f"{name}/", key): value
                for key, value in found.module.evaluate(ctx, **args).items()
            }
    except Missing as error:
        raise UserError(f"Metric '{name}' needs {error}. {OMIT_HINT}") from None
    for key, value in values.items():
        if not np.isfinite(value):
            raise UserError(
                f"Metric '{name}' gave {key} = {value}: the model or the data are degenerate."
            )
    return {key: float(value) for key, value in values.items()}


def require_fit(name: str, ctx: Context, args: Mapping[str, Any]) -> None:
    """Raises `Unfit` for a metric that needs more examples or other data; `ctx` needs no model."""
    declared = registry.find(name).declaration
    if declared.on_features:
        ctx.require_images(name)
    least, used = registry.least(name, args)
    sizes = ctx.sizes
    if few := [part for part, num in least.items() if sizes.get(part, num) < num]:
        lacks = "; ".join(f"{least[p]} {ctx.called(p)}, not {sizes[p]}" for p in few)
        flags = [f"{option(name, n)}={value}" for n, value in used.items() if value]
        why = f" (with {' and '.join(flags)})" if flags else ""
        raise Unfit(f"Metric '{name}' needs at least {lacks}{why}. {OMIT_HINT}")
    if declared.needs_classes:
        labels.classes(ctx, name)


def evaluate(
    workdir: Path,
    model: Model,
    *,
    overrides: Mapping[str, str] | None = None,
    extractors: Args | None = None,
    protocols: Sequence[str] = (),
) -> dict[str, float]:
    """Computes the metrics of a workdir's config; writes them to metrics.json and the report.

    Args:
        workdir: of a run, with a config.
        model: the workdir's.
        overrides: {dotted name: text} for the config's `eval` part.
        extractors: {feature extractor: arguments}, which replace the config's.
        protocols: of all metrics that have protocols, which replace the config's.

    Returns:
        The values. metrics.json also stores how to compute them again.

    Raises:
        UserError: for invalid arguments and missing weights before anything is computed; for
            metrics that fail, after the others are reported. A metric that the data do not fit
            fails only if `overrides` names the metrics.
    """
    settings = config.read(workdir / workdirs.CONFIG)
    settings = config.override(settings, overrides or {}, "eval.")
    metrics, args = settings.eval.metrics, metric_args(settings)
    if protocols:
        takers = [name for name in metrics if registry.takes(name, "protocols")]
        args |= {name: args.get(name, {}) | {"protocols": tuple(protocols)} for name in takers}
    _reject_unused(metrics, args, extractors or {}, overrides or {}, protocols)
    registry.validate(metrics, args, _extractors(settings, extractors))
    metrics, args = registry.canonical(metrics, args)
    train, test = (builders.dataset(settings, split) for split in ("train", "test"))
    ctx = context(
        settings,
        model=model,
        train=train,
        test=test,
        priors=tuple(dict.fromkeys([settings.prior, *settings.eval.baselines])),
        extractors=extractors,
        load_embeddings=model.embeddings,
    )
    known: dict[str, float] = {}
    failed: dict[str, UserError] = {}

    def store(found: Found) -> None:
        files = workdir / workdirs.AUTOENCODER, workdirs.prior_path(workdir, settings.prior)
        provenance = _provenance(ctx, found, args) | {
            "config": workdirs.digest(settings),
            "data": {"train": train.fingerprint, "test": test.fingerprint},
            "model": {path.stem: metrics_file.digest(path) for path in files},
        }
        if failed:
            provenance["left_out"] = {name: str(error) for name, error in failed.items()}
        known.update(_record(workdir / METRICS, found, provenance, history.evaluations(workdir)))

    # A run's first evaluation is stored as a whole; later ones store what they complete.
    partly = (workdir / METRICS).is_file()
    values = _run(metrics, ctx, args, store, partly=partly, failed=failed)
    from pmjax.evals import figures  # loads matplotlib

    try:
        drawn = figures.draw(ctx, workdir)
    except UserError as error:
        drawn, failed["figures"] = [], error
    page = html.write_report(
        workdir,
        title=f"pmjax: {settings.data.name}, {settings.method} with prior {settings.prior}",
        config=settings.to_dict(),
        missing=[str(error) for error in failed.values()],
        tables=tables.tables(known),
        figures=drawn,
    )
    log.info("Report: %s", page)
    for problem in failed.values():
        if not isinstance(problem, Unfit) or "eval.metrics" in (overrides or {}):
            raise problem
    return values


def compare(
    samples: Path,
    reference: Path,
    *,
    floor: Path | str | None = None,
    metrics: Sequence[str] = (),
    overrides: Mapping[str, str] | None = None,
    extractors: Args | None = None,
    seed: int = 0,
    out: Path,
) -> dict[str, float]:
    """Compares two sets of images, made by any tool, and adds the values to a file.

    Args:
        samples: a folder of image files of one size, or an .npy or .npz file of an array.
        reference: likewise real images; or an .npz file of their statistics, for FID, perhaps
            beside an array of images, for other metrics.
        floor: other real images: what perfect samples would reach; or 'split', for a random part of
            the reference, whose remainder is then the reference.
        metrics: by name, which need images only. By default 'fd_efficientnet_lite0', or the metric
            of the reference's statistics.
        overrides: {'eval.args.METRIC.NAME': text}, arguments of metrics.
        extractors: {feature extractor: arguments}, if they are not the defaults.
        seed: of every random choice.
        out: a file like a workdir's metrics.json.

    Raises:
        UserError: for images that cannot be read or compared, and metrics that need a model.
    """
    image_sets.validate(reference, floor)
    metrics = metrics or (image_sets.metric_for(reference),)
    args = registry.checked_args(config.metric_args(overrides or {}))
    _reject_unused(metrics, args, extractors or {}, overrides or {}, ())
    registry.validate(metrics, args, extractors or {})
    metrics, args = registry.canonical(metrics, args)
    metrics_file.require_writable(out)
    sets, about = image_sets.compared(samples, reference, floor, seed=seed)
    whole = floor != image_sets.SPLIT and image_sets.dimensions(reference)
    if whole:
        about["reference"]["statistics"] = True
    ctx = Context.from_images(
        sets["samples"].data,
        sets["reference"],
        more=sets.get("floor"),
        statistics=reference if whole else None,
        seed=seed,
        extractors=extractors or {},
    )

    def store(found: Found) -> None:
        with lock(out, "results"):
            _record(out, found, _provenance(ctx, found, args) | {"sets": about})

    values = _run(metrics, ctx, args, store, partly=True)
    log.info("Added to %s.", out)
    return values


def validate(settings: ConfigDict) -> None:
    """Raises `UserError` for evaluations of a config, during training or after it, that must fail.

    Errors that depend on the data or on the model come later.
    """
    metrics = [*settings.eval.metrics]
    for prefix in ("", "stage2_"):
        metrics += settings.eval[f"{prefix}during"] if settings.eval[f"{prefix}every"] else ()
    registry.validate(metrics, metric_args(settings), _extractors(settings))


def fitting(settings: ConfigDict, key: str, ctx: Context) -> tuple[str, ...]:
    """Returns the metrics of config.eval.KEY that a context's data fit, with a warning for others.

    Raises:
        UserError: for others that are not default metrics, or that select the best model.
    """
    default = schema.KEYS[f"eval.{key}"].default
    best = settings.eval[key.replace("during", "best")] if key != "metrics" else ""
    args = registry.checked_args(metric_args(settings))
    metrics, args = registry.canonical(settings.eval[key], args)
    fit = []
    for name in metrics:
        try:
            require_fit(name, ctx, args.get(name, {}))
            fit.append(name)
        except Unfit as error:
            if name not in default or (best and registry.metric_of(best) == name):
                here = str(error).replace(OMIT_HINT, f"Leave it out of --config.eval.{key}.")
                raise UserError(here) from None
            warn_once(f"Left out: {error}")
    return tuple(fit)


def context(settings: ConfigDict, *, extractors: Args | None = None, **parts: Any) -> Context:
    """Returns the evaluation context of a config; `parts` are others of `Context`'s arguments."""
    return Context(
        seed=settings.seed,
        num_samples=settings.eval.num_samples,
        fresh=fresh_points(settings.data.name),
        extractors=_extractors(settings, extractors),
        **parts,
    )


def metric_args(settings: ConfigDict) -> dict[str, dict[str, Any]]:
    """Returns {metric: its arguments} of a config."""
    args = settings.eval.args.to_dict()
    return args | {"fid": {"protocols": settings.eval.fid_protocols} | args.get("fid", {})}


def _extractors(settings: ConfigDict, given: Args | None = None) -> dict[str, dict[str, Any]]:
    """Returns {feature extractor: arguments} of a config, without defaults, updated by `given`."""
    keys = {
        ("inception_2015", "inception"): ("weights", "variant", "precision"),
        ("efficientnet_lite0", "efficientnet"): ("resolution", "precision"),
    }
    return {
        name: {key: value for key in names if (value := settings.eval[f"{prefix}_{key}"])}
        | dict((given or {}).get(name, {}))
        for (name, prefix), names in keys.items()
    }


def _reject_unused(
    metrics: Sequence[str],
    args: Args,
    extractors: Args,
    overrides: Mapping[str, str],
    protocols: Sequence[str],
) -> None:
    """Raises `UserError` for a command's flags that no metric of the evaluation uses."""
    used = {registry.extractor_of(name, args.get(name, {})) for name in metrics}
    accepted = {argument for name in used if name for argument in extractors.get(name, {})}
    unused = {
        "--unverified" if argument == "verify" else f"--{argument}"
        for given in extractors.values()
        for argument in given
        if argument not in accepted
    }
    if protocols and not any(registry.takes(name, "protocols") for name in metrics):
        unused.add("--protocols")
    for name in overrides:
        if name.startswith(METRIC_ARGS) and name.split(".")[2] not in metrics:
            unused.add(f"--config.{name}")
    if unused:
        raise UserError(
            f"{', '.join(sorted(unused))}: no metric that is evaluated takes this "
            f"({', '.join(metrics)}). Add a metric that does to --evals."
        )


def _run(
    metrics: Sequence[str],
    ctx: Context,
    args: Args,
    store: Callable[[Found], None],
    *,
    partly: bool,
    failed: dict[str, UserError] | None = None,
) -> dict[str, float]:
    """Returns the values of metrics, and stores them; with `partly` also if one of them fails."""
    found: Found = {}
    try:
        values = run(metrics, ctx, args, done=found.__setitem__, failed=failed)
    except BaseException:
        if found and partly:
            store(found)
            log.info("Stored: %s.", ", ".join(found))
        raise
    store(found)
    return values


def _record(
    path: Path, found: Found, provenance: dict[str, Any], training: Sequence[dict] = ()
) -> dict[str, float]:
    """Adds an evaluation to metrics.json, and returns its current values."""
    values = {key: value for each in found.values() for key, value in each.items()}
    return metrics_file.record(path, values, provenance, training, metric_of=registry.metric_of)


def _provenance(ctx: Context, metrics: Mapping[str, Any], args: Args) -> dict[str, Any]:
    """Returns what is needed to compute the metrics again."""
    uses = {name: registry.extractor_of(name, args.get(name, {})) for name in metrics}
    return {
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "evals": list(metrics),
        "seed": ctx.seed,
        "num_samples": ctx.num_samples,
        "args": {name: args[name] for name in metrics if args.get(name)},
        "uses": {name: extractor for name, extractor in uses.items() if extractor},
        "extractors": dict(ctx.used),
        "devices": [device.device_kind for device in jax.devices()],
        "python": sys.version.split()[0],
        "versions": {name: metadata.version(name) for name in _PACKAGES},
        "revision": metrics_file.revision(Path(__file__).parents[2]),
    }
