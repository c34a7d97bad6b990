"""Evaluates a workdir's model, or two sets of images that any tool has made.

python -m pmjax.evaluate --workdir=runs/digits [--evals=fid,kid]
python -m pmjax.evaluate --samples=FOLDER --reference=FOLDER [--evals=fd_efficientnet_lite0]
"""

import argparse
import datetime
import json
import sys
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path

from pmjax import cli
from pmjax.errors import UserError, unknown

METRICS = "metrics.json"

# Whose versions can change a number.
_PACKAGES = ("pmjax", "jax", "flax", "optax", "numpy", "scipy", "scikit-learn", "POT", "pillow")


def evaluate(
    workdir: Path,
    *,
    say: Callable[[str], None],
    overrides=None,
    inception: dict[str, str] | None = None,
    protocols: Sequence[str] = (),
) -> dict[str, float]:
    """Computes the metrics that the workdir's config names, and writes them with the report.

    Args:
      workdir: of a finished run.
      say: shows a line of progress.
      overrides: {dotted name: text} for the config's `eval` part.
      inception: arguments of the feature extractor of FID, instead of the config's.
      protocols: of FID, instead of the config's.

    Returns:
      The metrics, which metrics.json has too, with what it takes to compute them again.

    Raises:
      UserError: if the workdir has no model, or a metric does not fit its data.
    """
    from pmjax import build, config, evals, figures, model, report
    from pmjax import workdir as workdirs

    trained = model.load(workdir)
    settings = config.override(config.read(workdir / workdirs.CONFIG), overrides or {}, "eval.")
    train, test = (build.dataset(settings, split) for split in ("train", "test"))
    ctx = evals.Context(
        model=trained,
        train=train,
        test=test,
        priors=tuple(dict.fromkeys([settings.prior, *settings.eval.baselines])),
        seed=settings.seed,
        num_samples=settings.eval.num_samples,
        fresh=evals.fresh_points(settings.data.name),
        extractors=_extractors(_inception(settings) | (inception or {})),
    )
    protocols = tuple(protocols) or settings.eval.get("fid_protocols", ())
    args = {"fid": {"protocols": protocols}} if protocols else {}
    values = evals.run(settings.eval.metrics, ctx, say=say, **args)
    provenance = _provenance(ctx, settings.eval.metrics) | {
        "config": workdirs.digest(settings),
        "data": {"train": train.fingerprint, "test": test.fingerprint},
    }
    record(workdir / METRICS, values, provenance, say=say)
    page = report.write_html(
        workdir,
        title=f"pmjax: {settings.data.name}, {settings.method} with prior {settings.prior}",
        config=settings.to_dict(),
        metrics=values,
        figures=figures.draw(ctx, workdir),
    )
    _show(values, say)
    say(f"Report: {page}")
    return values


def compare(
    samples: Path,
    reference: Path,
    *,
    floor: Path | None = None,
    metrics: Sequence[str] = ("fd_efficientnet_lite0",),
    inception: dict[str, str] | None = None,
    seed: int = 0,
    out: Path,
    say: Callable[[str], None],
) -> dict[str, float]:
    """Compares two sets of images, from whatever tool, and adds the result to a file.

    Args:
      samples: a folder of image files of one size, or an .npy or .npz file of an array.
      reference: likewise real images; or an .npz file of their statistics, for FID.
      floor: other real images: what perfect samples would reach.
      metrics: files of `pmjax/evals` that need images only.
      inception: arguments of the feature extractor of FID.
      seed: of every random choice.
      out: the file, like a workdir's metrics.json.
      say: shows a line of progress.

    Raises:
      UserError: for images that cannot be read or compared, and metrics that need a model.
    """
    from pmjax import evals
    from pmjax.evals import _sets

    sets = {
        name: _sets.load(path)
        for name, path in (("samples", samples), ("reference", reference), ("floor", floor))
        if path
    }
    if isinstance(sets["samples"], Path) or isinstance(sets.get("floor"), Path):
        raise UserError("--samples and --floor take images; only the reference may be statistics.")
    images = {name: s.data for name, s in sets.items() if not isinstance(s, Path)}
    shapes = {name: tuple(x.shape[1:]) for name, x in images.items()}
    if len({shape[:2] for shape in shapes.values()}) > 1:
        listed = ", ".join(f"{name} {h}×{w}" for name, (h, w, _) in shapes.items())
        raise UserError(
            f"The sets have images of different sizes: {listed} (height × width). Resize them "
            "first: how it is done changes every distance."
        )
    ctx = evals.Context.of_sets(
        images["samples"],
        sets["reference"],
        more=sets.get("floor"),
        seed=seed,
        extractors=_extractors(inception or {}),
    )
    values = evals.run(metrics, ctx, say=say)
    provenance = _provenance(ctx, metrics) | {
        "sets": {
            name: {
                "path": str(path.resolve()),
                "num": len(images[name]) if name in images else None,
                "fingerprint": None if name not in images else sets[name].fingerprint,
            }
            for name, path in (("samples", samples), ("reference", reference), ("floor", floor))
            if path
        },
    }
    record(out, values, provenance, say=say)
    _show(values, say)
    say(f"Added to {out}.")
    return values


def during(
    ctx,
    workdir: Path,
    *,
    step: int,
    metrics: Sequence[str],
    best: str,
    say: Callable[[str], None],
) -> bool:
    """Evaluates a model while it trains, and tells whether it is the best so far.

    Every evaluation is a line of the workdir's evaluations.jsonl, from which a resumed run goes on.

    Args:
      ctx: an `evals.Context` of the model as it is; without priors, where there is none yet.
      workdir: of the run.
      step: after which the model is what it is.
      metrics: files of `pmjax/evals`.
      best: the key of a value, such as 'recon/mse', of which less is better; '-recon/psnr': more.
      say: shows a line of progress.
    """
    from pmjax import evals

    key, sign = best.removeprefix("-"), -1 if best.startswith("-") else 1
    values = evals.run(metrics, ctx, say=say)
    if key not in values:
        raise unknown("value (config.eval.best)", key, values)
    path = workdir / "evaluations.jsonl"
    lines = path.read_text().splitlines() if path.is_file() else []
    before = [row for row in map(json.loads, lines) if row["step"] < step]
    rows = [*before, {"step": step, "metrics": values}]
    fresh = path.with_name(f"{path.name}.part")
    fresh.write_text("".join(json.dumps(row) + "\n" for row in rows))
    fresh.replace(path)
    others = [sign * row["metrics"][key] for row in before if key in row["metrics"]]
    return sign * values[key] < min(others, default=float("inf"))


def record(path: Path, values: dict, provenance: dict, *, say: Callable[[str], None]) -> None:
    """Writes metrics and their provenance; what the file had before goes on in its 'history'.

    A file that cannot be read is kept beside it.
    """
    history = []
    if path.is_file():
        try:
            before = json.loads(path.read_text())
            history = [*before.pop("history", []), before]
        except (ValueError, AttributeError):
            kept = path.with_name(f"{path.name}.damaged")
            path.replace(kept)
            say(f"{path} could not be read; it is now {kept}.")
    fresh = path.with_name(f"{path.name}.part")
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"metrics": values, **provenance, "history": history}
    fresh.write_text(json.dumps(content, indent=2) + "\n")
    fresh.replace(path)


def _provenance(ctx, metrics) -> dict:
    """Returns what it takes to compute the metrics again."""
    import jax

    return {
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "evals": list(metrics),
        "seed": ctx.seed,
        "num_samples": ctx.num_samples,
        "extractors": ctx.used,
        "devices": [device.device_kind for device in jax.devices()],
        "python": sys.version.split()[0],
        "versions": {name: metadata.version(name) for name in _PACKAGES},
    }


def _inception(settings) -> dict[str, str]:
    """Returns the arguments that a config has for Inception; old workdirs have none."""
    names = ("weights", "variant", "precision")
    given = {name: settings.eval.get(f"inception_{name}", "") for name in names}
    return {name: value for name, value in given.items() if value}


def _extractors(inception: dict[str, str]) -> dict[str, dict[str, str]]:
    return {"inception_2015": inception} if inception else {}


def _show(values, say):
    width = max(map(len, values), default=0)
    say("\n".join(f"{name:{width}}  {value:.5g}" for name, value in values.items()))


def main() -> None:
    """Reads the flags and evaluates."""
    parser = argparse.ArgumentParser(
        prog="python -m pmjax.evaluate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Of a workdir, single values of the config's eval part: "
        "--config.eval.num_samples=10000.",
    )
    add = parser.add_argument
    add("--workdir", type=Path, help="of a finished run")
    add("--samples", type=Path, help="folder, .npy or .npz of generated images")
    add("--reference", type=Path, help="folder, .npy or .npz of real images, or of statistics")
    add("--floor", type=Path, help="other real images, for the real-against-real floor")
    add("--evals", help="metrics, files of pmjax/evals, such as fid,kid")
    add("--protocols", default="", help="of FID on a workdir, such as 50k_train,10k_test")
    add("--variant", help="of Inception's input: pytorch_fid, torch_fidelity, clean_fid")
    add("--weights", help="file of the 2015 Inception weights")
    add("--precision", help="of Inception: float32, or bfloat16 on accelerators")
    add("--seed", type=int, default=0, help="of two sets; a workdir has its own")
    add("--out", type=Path, default=Path(METRICS), help="where results on two sets are added")
    flags, overrides = cli.parse(parser)
    given = {name: getattr(flags, name) for name in ("weights", "variant", "precision")}
    inception = {name: value for name, value in given.items() if value}
    names = _words(flags.evals or "")

    def say(line: str) -> None:
        print(line, flush=True)

    if (flags.workdir is None) == (flags.samples is None):
        raise UserError("Give --workdir=DIR, or --samples=FOLDER with --reference=FOLDER.")
    if flags.samples and (not flags.reference or overrides or flags.protocols):
        raise UserError(
            "--samples needs --reference=FOLDER or FILE, and takes no --config… and no --protocols."
        )
    if flags.workdir and (flags.reference or flags.floor):
        raise UserError("--reference and --floor belong to --samples; a workdir has its own data.")
    cli.cache_compilations()
    if flags.workdir:
        overrides |= {"eval.metrics": flags.evals} if names else {}
        protocols = _words(flags.protocols)
        evaluate(
            flags.workdir, say=say, overrides=overrides, inception=inception, protocols=protocols
        )
    else:
        compare(
            flags.samples,
            flags.reference,
            floor=flags.floor,
            **({"metrics": names} if names else {}),
            inception=inception,
            seed=flags.seed,
            out=flags.out,
            say=say,
        )


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


if __name__ == "__main__":
    cli.run(main)
