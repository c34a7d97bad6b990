"""Evaluates the model of a workdir, or two sets of images made by any tool.

python -m pmjax.evaluate --workdir=runs/digits [--evals=fid,kid] [--checkpoint=latest]
python -m pmjax.evaluate --samples=FOLDER --reference=FOLDER [--floor=split] [--evals=fid,kid]
"""

import argparse
import contextlib
from pathlib import Path

from pmjax import api, cli, paths
from pmjax.distributed import accelerators, host_memory
from pmjax.errors import UserError
from pmjax.evals.image_sets import SPLIT
from pmjax.evals.runner import compare, evaluate
from pmjax.evals.tables import listing
from pmjax.schema import words
from pmjax.storage.metrics_file import METRICS
from pmjax.storage.workdir import lock
from pmjax.training import snapshots

_EXTRACTOR_FLAGS = {
    "inception_2015": ("weights", "variant", "verify", "precision"),
    "efficientnet_lite0": ("resolution", "precision"),
}


def main() -> None:
    """Reads the flags and evaluates."""
    parser = argparse.ArgumentParser(
        prog="python -m pmjax.evaluate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Arguments of metrics: --config.eval.args.kid.subset_size=500. With --workdir, also "
        "other keys of the config's group eval: --config.eval.num_samples=10000.",
    )
    add = parser.add_argument
    add("--workdir", type=paths.local, help="of a run")
    add(
        "--checkpoint",
        default="",
        help="a step of stage 1, or latest, stage2/STEP, stage2/latest: creates WORKDIR/at-STEP",
    )
    add("--samples", type=paths.local, help="folder, .npy or .npz of generated images")
    add("--reference", type=paths.local, help="folder, .npy or .npz of real images, or statistics")
    add(
        "--floor",
        type=lambda text: text if text == SPLIT else paths.local(text),
        help="folder, .npy or .npz of other real images, as a real-against-real floor; split: a "
        "part of the reference (a folder of that name is ./split)",
    )
    add("--evals", help="metrics, such as fid,kid,prdc_efficientnet_lite0; see pmjax/evals")
    add("--protocols", default="", help="of FID on a workdir, such as 50k_train,10k_test")
    add("--variant", help="of Inception's input: pytorch_fid, torch_fidelity, clean_fid")
    add("--weights", type=paths.local, help="file of the 2015 Inception weights")
    add("--unverified", action="store_true", help="accept other weights than the published ones")
    add("--resolution", type=int, help="of EfficientNet-Lite0's input, in pixels")
    add("--precision", help="of features: float32, or bfloat16 on accelerators")
    add("--seed", type=int, help="with --samples (default 0); a workdir has its own")
    add("--out", type=paths.local, help=f"file that values of two sets are added to ({METRICS})")
    flags, overrides = cli.parse(parser)
    if flags.resolution is not None and not 1 <= flags.resolution <= 2**14:
        raise UserError(f"--resolution={flags.resolution} must be from 1 to {2**14}.")
    flags.verify = False if flags.unverified else None
    extractors = {
        name: {key: value for key in keys if (value := getattr(flags, key)) is not None}
        for name, keys in _EXTRACTOR_FLAGS.items()
    }
    names, protocols = words(flags.evals or ""), words(flags.protocols)
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
    host_memory.keep_freed_memory(one_arena=True)
    cli.cache_compilations()
    accelerators.start()
    if flags.workdir:
        overrides |= {"eval.metrics": flags.evals} if names else {}
        workdir = flags.workdir  # a missing one is an error of what reads it
        with lock(workdir) if workdir.is_dir() else contextlib.nullcontext():
            if flags.checkpoint:
                workdir = snapshots.from_checkpoint(workdir, flags.checkpoint)
            model = api.load(workdir)
            values = evaluate(
                workdir, model, overrides=overrides, extractors=extractors, protocols=protocols
            )
    else:
        values = compare(
            flags.samples,
            flags.reference,
            floor=flags.floor,
            metrics=names,
            overrides=overrides,
            extractors=extractors,
            seed=flags.seed or 0,
            out=flags.out or Path(METRICS),
        )
    print(listing(values), flush=True)


if __name__ == "__main__":
    cli.run(main)
