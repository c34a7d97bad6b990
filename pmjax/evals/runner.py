"""Evaluates a workdir's model, or two sets of images, with the metrics that are asked for."""

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pmjax import plugins
from pmjax.errors import UserError
from pmjax.evals.context import LEAVE, Context, _NotThere
from pmjax.evals.meanings import rounded
from pmjax.evals.registry import checked
from pmjax.storage import metrics_file
from pmjax.storage.metrics_file import METRICS


def shown_values(values: Mapping[str, float], digits: int) -> dict[str, str]:
    """Returns values as people read them, each with its spread."""
    shown = {}
    for key, value in values.items():
        spread = values.get(f"{key}/spread")
        if not key.endswith("/spread"):
            shown[key] = f"{value:.{digits}g}" + ("" if spread is None else f" ± {rounded(spread)}")
    return shown


def run(
    metrics: Sequence[str],
    ctx: Context,
    *,
    say: Callable[[str], None] = lambda line: print(line, file=sys.stderr, flush=True),
    done: Callable[[str, dict[str, float]], None] = lambda name, values: None,
    **args: dict[str, Any],
) -> dict[str, float]:
    """Returns the values of several metrics, evaluated in order, with a line for each.

    Args:
        metrics: names of files of this package.
        ctx: what to evaluate.
        say: shows one line of progress.
        done: takes the name and the values of each metric as it ends.
        **args: a metric's name = a dictionary of its arguments; also for metrics not asked for.

    Raises:
        UserError: for unknown names and arguments (before anything is computed), data that a
            metric does not fit, and values that are not finite.
    """
    functions = {name: plugins.load("metrics", name).evaluate for name in (*metrics, *args)}
    args = {name: checked(name, given) for name, given in args.items()}
    values = {}
    for name in metrics:
        start = time.perf_counter()
        try:
            new = {key: float(x) for key, x in functions[name](ctx, **args.get(name, {})).items()}
        except _NotThere as error:
            raise UserError(f"Metric '{name}' needs {error}. {LEAVE}") from None
        for key, value in new.items():
            if not np.isfinite(value):
                raise UserError(
                    f"Metric '{name}' gave {key} = {value}: the model or the data are degenerate."
                )
        shown = ", ".join(f"{key} {value}" for key, value in shown_values(new, 4).items())
        say(f"eval {name} ({time.perf_counter() - start:.1f} s): {shown}")
        done(name, new)
        values |= new
    return values


def evaluate(
    workdir: Path,
    *,
    say: Callable[[str], None],
    overrides: Mapping[str, str] | None = None,
    extractors: Mapping[str, Mapping[str, Any]] | None = None,
    protocols: Sequence[str] = (),
    checkpoint: str = "",
) -> dict[str, float]:
    """Computes the metrics that the workdir's config names, and writes them with the report.

    Args:
      workdir: of a run.
      say: shows a line of progress.
      overrides: {dotted name: text} for the config's `eval` part.
      extractors: {feature extractor: arguments}, instead of the config's.
      protocols: of the metrics that have some, instead of the config's.
      checkpoint: which one's model is evaluated, in a workdir of its own in this one: see
        `snapshots.from_checkpoint`; '' for that of the finished run.

    Returns:
      The metrics, which metrics.json has too, with what it takes to compute them again.

    Raises:
      UserError: if the workdir has no model, or a metric does not fit its data; for arguments and
        missing weights before anything is computed.
    """
    from pmjax import api, builders, config
    from pmjax.evals import figures, meanings, registry
    from pmjax.reporting import history, html
    from pmjax.storage import workdir as workdirs
    from pmjax.training import snapshots

    if checkpoint:
        workdir = snapshots.from_checkpoint(workdir, checkpoint)
    trained = api.load(workdir)
    settings = config.read(workdir / workdirs.CONFIG)
    settings = config.override(settings, overrides or {}, "eval.")
    metrics, args = settings.eval.metrics, metric_args(settings)
    if protocols:
        takers = [name for name in metrics if registry.takes(name, "protocols")]
        args |= {name: args.get(name, {}) | {"protocols": tuple(protocols)} for name in takers}
    _refuse_idle(metrics, args, extractors or {}, overrides or {}, protocols)
    registry.validate(metrics, args, _extractors(settings, extractors))
    train, test = (builders.dataset(settings, split) for split in ("train", "test"))
    ctx = context(
        settings,
        model=trained,
        train=train,
        test=test,
        priors=tuple(dict.fromkeys([settings.prior, *settings.eval.baselines])),
        extractors=extractors,
        embedded=trained.embeddings,
    )
    known: dict[str, float] = {}

    def keep(found: dict[str, dict[str, float]]) -> None:
        files = workdir / workdirs.AUTOENCODER, workdirs.prior_path(workdir, settings.prior)
        provenance = metrics_file.provenance(ctx, found, args) | {
            "config": workdirs.digest(settings),
            "data": {"train": train.fingerprint, "test": test.fingerprint},
            "model": {path.stem: metrics_file.digest(path) for path in files},
        }
        training, path = history.evaluations(workdir), workdir / METRICS
        known.update(metrics_file.record(path, _joined(found), provenance, training, say=say))

    # A run's first evaluation is whole or not there; later ones add what they get done.
    values = _run(metrics, ctx, args, keep, say=say, partly=(workdir / METRICS).is_file())
    page = html.write_report(
        workdir,
        title=f"pmjax: {settings.data.name}, {settings.method} with prior {settings.prior}",
        config=settings.to_dict(),
        tables=meanings.tables(known),
        figures=figures.draw(ctx, workdir),
    )
    _show(values, say)
    say(f"Report: {page}")
    return values


def compare(
    samples: Path,
    reference: Path,
    *,
    floor: Path | str | None = None,
    metrics: Sequence[str] = (),
    overrides: Mapping[str, str] | None = None,
    extractors: Mapping[str, Mapping[str, Any]] | None = None,
    seed: int = 0,
    out: Path,
    say: Callable[[str], None],
) -> dict[str, float]:
    """Compares two sets of images, from whatever tool, and adds the result to a file.

    Args:
      samples: a folder of image files of one size, or an .npy or .npz file of an array.
      reference: likewise real images; or an .npz file of their statistics, for FID.
      floor: other real images: what perfect samples would reach; or 'split', for a random part of
        the reference, which is then left out of it.
      metrics: files of `pmjax/evals/metrics` that need images only; without any, that of the reference's
        statistics, and for images 'fd_efficientnet_lite0'.
      overrides: {'eval.args.METRIC.NAME': text}, arguments of metrics.
      extractors: {feature extractor: arguments}, where they are not the defaults.
      seed: of every random choice.
      out: the file, like a workdir's metrics.json.
      say: shows a line of progress.

    Raises:
      UserError: for images that cannot be read or compared, and metrics that need a model.
    """
    from pmjax import config
    from pmjax.evals import image_sets, registry
    from pmjax.evals.context import Context
    from pmjax.storage.lock import lock

    image_sets.validate(reference, floor)
    metrics = metrics or (image_sets.metric_for(reference, say=say),)
    args = registry.checked_args(config.metric_args(overrides or {}))
    _refuse_idle(metrics, args, extractors or {}, overrides or {}, ())
    registry.validate(metrics, args, extractors or {})
    metrics_file.require_writable(out)
    sets, about = image_sets.compared(samples, reference, floor, seed=seed, say=say)
    ctx = Context.from_images(
        sets["samples"].data,
        sets["reference"],
        more=sets.get("floor"),
        seed=seed,
        extractors=extractors or {},
    )

    def keep(found: dict[str, dict[str, float]]) -> None:
        with lock(out, "results"):
            provenance = metrics_file.provenance(ctx, found, args) | {"sets": about}
            metrics_file.record(out, _joined(found), provenance, say=say)

    values = _run(metrics, ctx, args, keep, say=say, partly=True)
    _show(values, say)
    say(f"Added to {out}.")
    return values


def validate(settings) -> None:
    """Raises `UserError` for evaluations of a config, in training or after it, that must fail.

    What only the data or the model can tell is told later.
    """
    from pmjax.evals import registry

    metrics = [*settings.eval.metrics]
    for prefix in ("", "stage2_"):
        metrics += settings.eval[f"{prefix}during"] if settings.eval[f"{prefix}every"] else ()
    registry.validate(metrics, metric_args(settings), _extractors(settings))


def context(settings, *, extractors: Mapping[str, Mapping[str, Any]] | None = None, **parts):
    """Returns the evaluation context of a config, whose model, data and priors are given.

    Args:
      settings: the config.
      extractors: {feature extractor: arguments}, instead of the config's.
      **parts: other arguments of `evals.Context`.
    """
    from pmjax.evals.context import Context, fresh_points

    return Context(
        seed=settings.seed,
        num_samples=settings.eval.num_samples,
        fresh=fresh_points(settings.data.name),
        extractors=_extractors(settings, extractors),
        **parts,
    )


def metric_args(settings) -> dict[str, dict[str, Any]]:
    """Returns {metric: its arguments} of a config."""
    args = settings.eval.args.to_dict()
    return args | {"fid": {"protocols": settings.eval.fid_protocols} | args.get("fid", {})}


def _extractors(settings, given: Mapping[str, Mapping[str, Any]] | None = None) -> dict[str, dict]:
    """Returns {feature extractor: arguments} of a config, less defaults, with others on top."""
    keys = {
        ("inception_2015", "inception"): ("weights", "variant", "precision"),
        ("efficientnet_lite0", "efficientnet"): ("resolution", "precision"),
    }
    return {
        name: {key: value for key in names if (value := settings.eval[f"{prefix}_{key}"])}
        | dict((given or {}).get(name, {}))
        for (name, prefix), names in keys.items()
    }


def _refuse_idle(metrics, args, extractors, overrides, protocols) -> None:
    """Raises `UserError` for what a command gives to metrics that are not evaluated."""
    from pmjax import config
    from pmjax.evals import registry
    from pmjax.evals.registry import extractor_of

    used = {extractor_of(name, args.get(name, {})) for name in metrics}
    taken = {argument for name in used for argument in extractors.get(name, {})}
    idle = {
        "--unverified" if argument == "verify" else f"--{argument}"
        for given in extractors.values()
        for argument in given
        if argument not in taken
    }
    if protocols and not any(registry.takes(name, "protocols") for name in metrics):
        idle.add("--protocols")
    for name in overrides:
        if name.startswith(config.METRIC_ARGS) and name.split(".")[2] not in metrics:
            idle.add(f"--config.{name}")
    if idle:
        raise UserError(
            f"{', '.join(sorted(idle))}: no metric that is evaluated takes this "
            f"({', '.join(metrics)}). Name one that does in --evals."
        )


def _run(metrics, ctx, args, keep, *, say, partly) -> dict[str, float]:
    """Returns the values of metrics, and gives them to `keep`; with `partly` also if one fails."""
    from pmjax.evals import runner

    found: dict[str, dict[str, float]] = {}
    try:
        runner.run(metrics, ctx, say=say, done=found.__setitem__, **args)
    except BaseException:
        if found and partly:
            keep(found)
            say(f"Kept: {', '.join(found)}.")
        raise
    keep(found)
    return _joined(found)


def _joined(found: dict[str, dict[str, float]]) -> dict[str, float]:
    return {key: value for values in found.values() for key, value in values.items()}


def _show(values, say):
    from pmjax.evals import runner

    shown = runner.shown_values(values, 5)
    width = max(map(len, shown), default=0)
    say("\n".join(f"{name:{width}}  {value}" for name, value in shown.items()))
