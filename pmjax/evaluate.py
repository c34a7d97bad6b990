"""Evaluates a workdir's model, or two sets of images that any tool has made.

python -m pmjax.evaluate --workdir=runs/digits [--evals=fid,kid]
python -m pmjax.evaluate --samples=FOLDER --reference=FOLDER [--evals=fd_efficientnet_lite0]
"""

import argparse
import contextlib
import datetime
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from pmjax import cli
from pmjax.errors import UserError

METRICS = "metrics.json"

# Whose versions can change a number.
_PACKAGES = ("pmjax", "jax", "flax", "optax", "numpy", "scipy", "scikit-learn", "POT", "pillow")
# What evaluations must have in common for their values to stand side by side.
_SAME = ("model", "data", "sets", "seed", "num_samples")


def evaluate(
    workdir: Path,
    *,
    say: Callable[[str], None],
    overrides=None,
    inception: dict[str, Any] | None = None,
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
    from pmjax import build, config, figures, midway, model, report
    from pmjax import workdir as workdirs

    trained = model.load(workdir)
    settings = config.override(config.read(workdir / workdirs.CONFIG), overrides or {}, "eval.")
    train, test = (build.dataset(settings, split) for split in ("train", "test"))
    ctx = context(
        settings,
        model=trained,
        train=train,
        test=test,
        priors=tuple(dict.fromkeys([settings.prior, *settings.eval.baselines])),
        inception=inception,
    )
    args = {"fid": {"protocols": tuple(protocols) or settings.eval.fid_protocols}}
    known: dict[str, float] = {}

    def keep(found: dict[str, dict[str, float]]) -> None:
        files = workdir / workdirs.AUTOENCODER, workdirs.prior_path(workdir, settings.prior)
        provenance = _provenance(ctx, found) | {
            "config": workdirs.digest(settings),
            "data": {"train": train.fingerprint, "test": test.fingerprint},
            "model": {path.stem: _digest(path) for path in files},
        }
        training = midway.history(workdir)
        known.update(record(workdir / METRICS, _joined(found), provenance, training, say=say))

    # A run's first evaluation is whole or not there; later ones add what they get done.
    values = _run(
        settings.eval.metrics, ctx, args, keep, say=say, partly=(workdir / METRICS).is_file()
    )
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
    floor: Path | None = None,
    metrics: Sequence[str] = ("fd_efficientnet_lite0",),
    inception: dict[str, Any] | None = None,
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
    from pmjax.datasets._lock import lock
    from pmjax.evals import _sets

    _require_writable(out)
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
    about = {
        name: {
            "path": str(path.resolve()),
            "num": len(images[name]) if name in images else None,
            "fingerprint": None if name not in images else sets[name].fingerprint,
        }
        for name, path in (("samples", samples), ("reference", reference), ("floor", floor))
        if path
    }

    def keep(found: dict[str, dict[str, float]]) -> None:
        with lock(out, "results"):
            record(out, _joined(found), _provenance(ctx, found) | {"sets": about}, say=say)

    values = _run(metrics, ctx, {}, keep, say=say, partly=True)
    _show(values, say)
    say(f"Added to {out}.")
    return values


def context(settings, *, inception: dict[str, Any] | None = None, **parts):
    """Returns the evaluation context of a config, whose model, data and priors are given.

    Args:
      settings: the config.
      inception: arguments of the feature extractor of FID, instead of the config's.
      **parts: other arguments of `evals.Context`.
    """
    from pmjax import evals

    names = ("weights", "variant", "precision")
    given = {name: settings.eval[f"inception_{name}"] for name in names}
    given = {name: value for name, value in given.items() if value} | (inception or {})
    return evals.Context(
        seed=settings.seed,
        num_samples=settings.eval.num_samples,
        fresh=evals.fresh_points(settings.data.name),
        extractors=_extractors(given),
        **parts,
    )


def record(
    path: Path,
    values: dict[str, float],
    provenance: dict[str, Any],
    training: Sequence[dict] = (),
    *,
    say: Callable[[str], None],
) -> dict[str, float]:
    """Adds an evaluation to a file; one that cannot be read is kept beside it.

    The file's 'history' has every evaluation, with what it takes to compute it again; 'metrics' the
    newest value of each metric, of the newest model on the same data with the same seed and number
    of samples; beside them is the newest evaluation's provenance, and 'training' has the
    evaluations while the model trained.

    Returns:
      What is now in 'metrics'.
    """
    history = []
    if path.is_file():
        try:
            before = json.loads(path.read_text())
            history = before.pop("history", [])
            before.pop("training", None)
            if not all(isinstance(each, dict) for each in history):
                raise TypeError("what is no evaluation is among them")
            about = {name: value for name, value in before.items() if name != "metrics"}
            if not history or about != {k: v for k, v in history[-1].items() if k != "metrics"}:
                history.append(before)  # of a version whose history lacked the newest
        except (ValueError, AttributeError, TypeError):
            kept = path.with_name(f"{path.name}.damaged")
            path.replace(kept)
            history = []
            say(f"{path} could not be read; it is now {kept}.")
    history.append({"metrics": values, **provenance})
    known: dict[str, float] = {}
    for each in history:
        same = ((each.get(name, provenance.get(name)), provenance.get(name)) for name in _SAME)
        if all(a == b for a, b in same):  # earlier versions did not name the model
            known |= each.get("metrics", {})
    content = {"metrics": known, **provenance}
    content |= {"training": list(training)} if training else {}
    fresh = path.with_name(f"{path.name}.part")
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh.write_text(json.dumps(content | {"history": history}, indent=2) + "\n")
    fresh.replace(path)
    return known


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


def _require_writable(path: Path) -> None:
    """Raises `UserError` unless a file can be written, before it takes minutes to find out."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        probe = path.with_name(f"{path.name}.part")
        probe.touch()
        probe.unlink()
        if path.is_dir():
            raise IsADirectoryError(None, "it is a directory")
    except OSError as error:
        raise UserError(f"--out={path} cannot be written ({error.strerror}).") from error


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
        "revision": revision(Path(__file__).parents[1]),
    }


def revision(root: Path) -> str | None:
    """Returns a checkout's revision, '-dirty' if it was changed; else the one pip took, or None."""
    if not (root / ".git").exists():
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # no repository's
            origin = metadata.distribution("pmjax").read_text("direct_url.json")
            return json.loads(origin)["vcs_info"]["commit_id"]
        return None
    command = ["git", "-C", root, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
        return done.stdout.strip()
    return None


def _digest(path: Path) -> str | None:
    """Returns what a file of arrays begins with: a digest of the rest."""
    if not path.is_file():
        return None
    with path.open("rb") as file:
        return file.read(32).hex()[:16]


def _extractors(inception: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {"inception_2015": inception} if inception else {}


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
    add("--unverified", action="store_true", help="take other weights than the published ones")
    add("--seed", type=int, help="of two sets (0); a workdir has its own")
    add("--out", type=Path, help=f"where results on two sets are added ({METRICS})")
    flags, overrides = cli.parse(parser)
    given = {name: getattr(flags, name) for name in ("weights", "variant", "precision")}
    inception = {name: value for name, value in given.items() if value}
    inception |= {"verify": False} if flags.unverified else {}
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
    if flags.workdir and (flags.out or flags.seed is not None):
        raise UserError("--out and --seed belong to --samples; a workdir has its own.")
    cli.cache_compilations()
    if flags.workdir:
        overrides |= {"eval.metrics": flags.evals} if names else {}
        protocols = _words(flags.protocols)
        from pmjax.workdir import held

        # One that is not there is told of by what reads it.
        alone = held(flags.workdir) if flags.workdir.is_dir() else contextlib.nullcontext()
        with alone:
            evaluate(
                flags.workdir,
                say=say,
                overrides=overrides,
                inception=inception,
                protocols=protocols,
            )
    else:
        compare(
            flags.samples,
            flags.reference,
            floor=flags.floor,
            **({"metrics": names} if names else {}),
            inception=inception,
            seed=flags.seed or 0,
            out=flags.out or Path(METRICS),
            say=say,
        )


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


if __name__ == "__main__":
    cli.run(main)
