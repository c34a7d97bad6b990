"""Samples a model: python -m pmjax.sample --workdir=runs/digits --num=64 --out=grid.png."""

import argparse

from pmjax import cli, errors, paths
from pmjax.errors import UserError

_FORMATS = (".png", ".npy")


def main() -> None:
    """Writes a grid of all samples (.png), or their array (.npy: uint8 images or float points)."""
    parser = argparse.ArgumentParser(prog="python -m pmjax.sample", description=__doc__)
    parser.add_argument("--workdir", required=True, type=paths.local, help="of a finished run")
    parser.add_argument("--num", type=int, default=64, help="number of samples (64)")
    parser.add_argument("--seed", type=int, default=0, help="of the samples (0)")
    parser.add_argument("--prior", help="another prior than the run's own, such as gmm")
    parser.add_argument("--out", required=True, type=paths.local, help="a .png or .npy file")
    flags, rest = cli.parse(parser)
    if rest:
        raise errors.unknown("argument", f"--config.{next(iter(rest))}", ["--workdir", "--prior"])
    if flags.out.suffix not in _FORMATS:
        raise UserError(f"--out={flags.out}: the file must end in {' or '.join(_FORMATS)}.")

    # Imported once the flags are checked: JAX and its libraries take seconds.
    import numpy as np

    from pmjax import api
    from pmjax.datasets.batches import to_uint8
    from pmjax.reporting.images import grid, save_png

    cli.cache_compilations()
    model = api.load(flags.workdir)
    samples = model.sample(flags.num, seed=flags.seed, prior=flags.prior)
    images = samples.ndim == 4
    if images:
        samples = to_uint8(samples)
    try:
        if flags.out.suffix == ".npy":
            np.save(flags.out, samples)
        elif images:
            save_png(flags.out, grid(samples))
        else:
            raise UserError("These samples are points, not images: use --out=FILE.npy.")
    except OSError as error:
        raise UserError(f"{flags.out} cannot be written ({error.strerror}).") from error
    print(f"{len(samples)} samples of the prior '{flags.prior or model.prior}': {flags.out}")


if __name__ == "__main__":
    cli.run(main)
