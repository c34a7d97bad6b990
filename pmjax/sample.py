"""Draws samples: python -m pmjax.sample --workdir=runs/digits --num=64 --seed=0 --out=grid.png."""

import argparse
from pathlib import Path

from pmjax import cli, errors
from pmjax.errors import UserError

_FORMATS = (".png", ".npy")


def main() -> None:
    """Writes a picture of all samples (.png), or their array (.npy: uint8 images, float points)."""
    parser = argparse.ArgumentParser(prog="python -m pmjax.sample", description=__doc__)
    parser.add_argument("--workdir", required=True, type=Path, help="of a finished run")
    parser.add_argument("--num", type=int, default=64, help="how many samples (64)")
    parser.add_argument("--seed", type=int, default=0, help="of the draw (0)")
    parser.add_argument("--prior", help="another prior than the run's own, such as gmm")
    parser.add_argument("--out", required=True, type=Path, help="a .png or .npy file")
    flags, rest = cli.parse(parser)
    if rest:
        raise errors.unknown("argument", f"--config.{next(iter(rest))}", ["--workdir", "--prior"])
    if flags.out.suffix not in _FORMATS:
        raise UserError(f"--out={flags.out}: the file's ending must be one of {_FORMATS}.")

    import numpy as np

    from pmjax import model
    from pmjax.datasets.batches import to_uint8
    from pmjax.reporting import report

    cli.cache_compilations()
    trained = model.load(flags.workdir)
    samples = trained.sample(flags.num, seed=flags.seed, prior=flags.prior)
    images = samples.ndim == 4
    if images:
        samples = to_uint8(samples)
    try:
        if flags.out.suffix == ".npy":
            np.save(flags.out, samples)
        elif images:
            report.save_png(flags.out, report.grid(samples))
        else:
            raise UserError("These samples are points, not images: take --out=FILE.npy.")
    except OSError as error:
        raise UserError(f"{flags.out} cannot be written ({error.strerror}).") from error
    print(f"{len(samples)} samples of the prior '{flags.prior or trained.prior}': {flags.out}")


if __name__ == "__main__":
    cli.run(main)
