"""What all config files share: `get_config`, which starts from the defaults, and common variants.

`pmjax/schema.py` declares every key with its default and a comment. To list them for a config:

    python -m pmjax.main --config=configs/digits.py --help
"""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from pmjax import config, schema

# Variants of every config. 'paper' differs from the defaults in the latent GAN's base only: a base
# that is fitted to the embeddings gives better samples.
PRESETS: dict[str, dict[str, Any]] = {
    "paper": {
        "schedule": "two_stage",
        "method_args.reconstruction": "squared",
        "prior_args.base_prior": "gaussian",
    },
    "author": {
        "schedule": "joint",
        "method_args.reconstruction": "absolute",
        "method_args.omega1": 1.0,
        "method_args.omega2": 1.0,
        "method_args.critic_repeats": 2,
        "prior_args.base_prior": "sphere",
        "prior_args.critic_repeats": 5,
        "optimizer.learning_rate": 2e-4,
        "optimizer.b1": 0.0,
        "optimizer.b2": 0.999,
        "optimizer.schedule": "constant",
    },
}

# For a smoke run on images: about a minute on two cores.
RUNLOCAL = {
    "steps": 20,
    "stage2.steps": 200,
    "eval.num_samples": 64,
    "eval.metrics": ("reconstruction",),
}

# For a smoke run on a CPU of a config for accelerators.
SMALL_MIMICRY = {
    "nets_args.scale": 0.125,
    "precision": "float32",
    "steps_per_dispatch": 1,
    "data.batch_size": 32,
    "prior_args.width": 64,
}


def get_config(
    variant: str = "",
    overrides: Mapping[str, Any] | None = None,
    variants: Mapping[str, Mapping[str, Any]] | None = None,
) -> ConfigDict:
    """Returns the defaults with `overrides`, then the named variants on top.

    Args:
      variant: what follows the colon in --config=configs/digits.py:author; commas join several.
      overrides: {dotted name: value} of this config.
      variants: {name of a variant: its overrides}, in addition to `PRESETS`.
    """
    known = PRESETS | dict(variants or {})
    layers = [overrides or {}]
    for name in filter(None, variant.split(",")):
        if name not in known:
            raise ValueError(f"unknown variant '{name}'; valid: {', '.join(sorted(known))}")
        layers.append(known[name])
    settings = schema.defaults()
    for layer in layers:
        for name, value in layer.items():
            config.assign(settings, name, value)
    return settings
