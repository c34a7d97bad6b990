"""Evaluates a workdir's model, or two sets of images that any tool has made.

python -m pmjax.evaluate --workdir=runs/digits [--evals=fid,kid] [--checkpoint=latest]
python -m pmjax.evaluate --samples=FOLDER --reference=FOLDER [--floor=split] [--evals=fid,kid]
"""

import argparse
import contextlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pmjax import cli, heaps, results
from pmjax.errors import UserError
from pmjax.results import METRICS


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
        `kept.from_checkpoint`; '' for that of the finished run.

    Returns:
      The metrics, which metrics.json has too, with what it takes to compute them again.

    Raises:
      UserError: if the workdir has no model, or a metric does not fit its data; for arguments and
        missing weights before anything is computed.
    """
    from pmjax import build, config, figures, kept, midway, model, report
    from pmjax import workdir as workdirs
    from pmjax.evals import _arguments

    if checkpoint:
        workdir = kept.from_checkpoint(workdir, checkpoint, say=say)
    trained = model.load(workdir)
    settings = config.read(workdir / workdirs.CONFIG)
    settings = config.override(settings, dict(overrides or {}), "eval.")
    metrics, args = settings.eval.metrics, metric_args(settings)
    if protocols:
        takers = [name for name in metrics if _arguments.takes(name, "protocols")]
        args |= {name: args.get(name, {}) | {"protocols": tuple(protocols)} for name in takers}
    _refuse_idle(metrics, args, extractors or {}, overrides or {}, protocols)
    _arguments.require_possible(metrics, args, _extractors(settings, extractors))
    train, test = (build.dataset(settings, split) for split in ("train", "test"))
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
        provenance = results.provenance(ctx, found, args) | {
            "config": workdirs.digest(settings),
            "data": {"train": train.fingerprint, "test": test.fingerprint},
            "model": {path.stem: results.digest(path) for path in files},
        }
        training, path = midway.history(workdir), workdir / METRICS
        known.update(results.record(path, _joined(found), provenance, training, say=say))

    # A run's first evaluation is whole or not there; later ones add what they get done.
    values = _run(metrics, ctx, args, keep, say=say, partly=(workdir / METRICS).is_file())
    page = report.write_html(
        workdir,
        title=f"pmjax: {settings.data.name}, {settings.method} with prior {settings.prior}",
        config=settings.to_dict(),
        metrics=known,
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
      metrics: files of `pmjax/evals` that need images only; without any, that of the reference's
        statistics, and for images 'fd_efficientnet_lite0'.
      overrides: {'eval.args.METRIC.NAME': text}, arguments of metrics.
      extractors: {feature extractor: arguments}, where they are not the defaults.
      seed: of every random choice.
      out: the file, like a workdir's metrics.json.
      say: shows a line of progress.

    Raises:
      UserError: for images that cannot be read or compared, and metrics that need a model.
    """
    from pmjax import config, evals
    from pmjax.datasets._lock import lock
    from pmjax.evals import _arguments, _sets

    _sets.require_possible(reference, floor)
    metrics = metrics or (_sets.metric_for(reference, say=say),)
    args = config.metric_args(dict(overrides or {}))
    _refuse_idle(metrics, args, extractors or {}, overrides or {}, ())
    _arguments.require_possible(metrics, args, extractors or {})
    results.require_writable(out)
    sets, about = _sets.compared(samples, reference, floor, seed=seed, say=say)
    ctx = evals.Context.of_sets(
        sets["samples"].data,
        sets["reference"],
        more=sets.get("floor"),
        seed=seed,
        extractors=extractors or {},
    )

    def keep(found: dict[str, dict[str, float]]) -> None:
        with lock(out, "results"):
            provenance = results.provenance(ctx, found, args) | {"sets": about}
            results.record(out, _joined(found), provenance, say=say)

    values = _run(metrics, ctx, args, keep, say=say, partly=True)
    _show(values, say)
    say(f"Added to {out}.")
    return values


def require_possible(settings) -> None:
    """Raises `UserError` for evaluations of a config, in training or after it, that must fail.

    What only the data or the model can tell is told later.
    """
    from pmjax import midway
    from pmjax.evals import _arguments

    midway.require_possible(settings)
    metrics = [*settings.eval.metrics]
    for prefix in midway.STAGES.values():
        metrics += settings.eval[f"{prefix}during"] if settings.eval[f"{prefix}every"] else ()
    _arguments.require_possible(metrics, metric_args(settings), _extractors(settings))


def context(settings, *, extractors: Mapping[str, Mapping[str, Any]] | None = None, **parts):
    """Returns the evaluation context of a config, whose model, data and priors are given.

    Args:
      settings: the config.
      extractors: {feature extractor: arguments}, instead of the config's.
      **parts: other arguments of `evals.Context`.
    """
    from pmjax import evals

    return evals.Context(
        seed=settings.seed,
        num_samples=settings.eval.num_samples,
        fresh=evals.fresh_points(settings.data.name),
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
    from pmjax import config, evals
    from pmjax.evals import _arguments

    used = {evals.extractor_of(name, args.get(name, {})) for name in metrics}
    taken = {argument for name in used for argument in extractors.get(name, {})}
    idle = {
        "--unverified" if argument == "verify" else f"--{argument}"
        for given in extractors.values()
        for argument in given
        if argument not in taken
    }
    if protocols and not any(_arguments.takes(name, "protocols") for name in metrics):
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
    from pmjax import evals

    found: dict[str, dict[str, float]] = {}
    try:
        evals.run(metrics, ctx, say=say, done=found.__setitem__, **args)
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
    from pmjax import evals

    shown = evals.shown_values(values, 5)
    width = max(map(len, shown), default=0)
    say("\n".join(f"{name:{width}}  {value}" for name, value in shown.items()))


def main() -> None:
    """Reads the flags and evaluates."""
    parser = argparse.ArgumentParser(
        prog="python -m pmjax.evaluate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Arguments of metrics: --config.eval.args.kid.subset_size=500. Of a workdir, all "
        "single values of the config's eval part: --config.eval.num_samples=10000.",
    )
    add = parser.add_argument
    add("--workdir", type=Path, help="of a run")
    add(
        "--checkpoint",
        default="",
        help="a step of stage 1, or latest, stage2/STEP, stage2/latest: WORKDIR/at-STEP is made",
    )
    add("--samples", type=Path, help="folder, .npy or .npz of generated images")
    add("--reference", type=Path, help="folder, .npy or .npz of real images, or of statistics")
    add(
        "--floor",
        help="folder, .npy or .npz of other real images, for the real-against-real floor; split: a "
        "part of the reference (./split is a folder)",
    )
    add("--evals", help="metrics, files of pmjax/evals, such as fid,kid")
    add("--protocols", default="", help="of FID on a workdir, such as 50k_train,10k_test")
    add("--variant", help="of Inception's input: pytorch_fid, torch_fidelity, clean_fid")
    add("--weights", help="file of the 2015 Inception weights")
    add("--unverified", action="store_true", help="take other weights than the published ones")
    add("--resolution", type=int, help="of EfficientNet-Lite0's input, pixels")
    add("--precision", help="of features: float32, or bfloat16 on accelerators")
    add("--seed", type=int, help="of two sets (0); a workdir has its own")
    add("--out", type=Path, help=f"where results on two sets are added ({METRICS})")
    flags, overrides = cli.parse(parser)
    if flags.resolution is not None and not 1 <= flags.resolution <= 2**14:
        raise UserError(f"--resolution={flags.resolution} must be from 1 to {2**14}.")
    extractors = {
        "inception_2015": {
            "weights": flags.weights,
            "variant": flags.variant,
            "verify": False if flags.unverified else None,
            "precision": flags.precision,
        },
        "efficientnet_lite0": {"resolution": flags.resolution, "precision": flags.precision},
    }
    extractors = {
        name: {argument: value for argument, value in given.items() if value is not None}
        for name, given in extractors.items()
    }
    names, protocols = _words(flags.evals or ""), _words(flags.protocols)

    def say(line: str) -> None:
        print(line, flush=True)

    if (flags.workdir is None) == (flags.samples is None):
        raise UserError("Give --workdir=DIR, or --samples=FOLDER with --reference=FOLDER.")
    if flags.samples and (not flags.reference or protocols or flags.checkpoint):
        raise UserError(
            "--samples needs --reference=FOLDER or FILE; --protocols and --checkpoint belong to "
            "a workdir."
        )
    if flags.workdir and (flags.reference or flags.floor):
        raise UserError("--reference and --floor belong to --samples; a workdir has its own data.")
    if flags.workdir and (flags.out or flags.seed is not None):
        raise UserError("--out and --seed belong to --samples; a workdir has its own.")
    heaps.keep_freed_memory(one_arena=True)
    cli.cache_compilations()
    if flags.workdir:
        overrides |= {"eval.metrics": flags.evals} if names else {}
        from pmjax.workdir import held

        # One that is not there is told of by what reads it.
        alone = held(flags.workdir) if flags.workdir.is_dir() else contextlib.nullcontext()
        with alone:
            evaluate(
                flags.workdir,
                say=say,
                overrides=overrides,
                extractors=extractors,
                protocols=protocols,
                checkpoint=flags.checkpoint,
            )
    else:
        compare(
            flags.samples,
            flags.reference,
            floor=flags.floor,
            metrics=names,
            overrides=overrides,
            extractors=extractors,
            seed=flags.seed or 0,
            out=flags.out or Path(METRICS),
            say=say,
        )


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


if __name__ == "__main__":
    cli.run(main)
