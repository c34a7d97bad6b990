"""Builds what a config names: data sets, methods and priors."""

from typing import Any

import numpy as np
from ml_collections import ConfigDict

from pmjax import plugins
from pmjax.datasets import loader
from pmjax.datasets.base import Dataset
from pmjax.errors import UserError
from pmjax.methods.base import MethodSpec, NetBuilder, combine
from pmjax.priors import base as priors
from pmjax.priors.base import BasePrior, TrainedPrior


def dataset(settings: ConfigDict, split: str) -> Dataset:
    """Loads a split of the config's data set."""
    data = settings.data
    given: dict[str, Any] = {
        n: data[n] or None for n in ("path", "manual_dir", "size", "cache_dir")
    }
    return loader.load(data.name, split, **given, skip_broken=data.skip_broken, verify=data.verify)


def stage1_spec(settings: ConfigDict, shape: tuple[int, ...]) -> MethodSpec:
    """Returns the spec of stage 1 for examples of a shape; of both stages if trained jointly."""
    method = plugins.load("methods", settings.method).Method
    build = NetBuilder(
        shape=tuple(shape),
        latent_dim=settings.latent_dim,
        family=settings.nets,
        net_args=settings.nets_args.to_dict(),
        batch_norm=settings.batch_norm.to_dict(),
        precision=settings.precision,
    )
    spec = method(**settings.method_args).spec(build)
    if settings.schedule == "two_stage":
        return spec
    own = prior(settings)
    if not isinstance(own, TrainedPrior):
        raise UserError(
            f"config.schedule='joint' needs a trained prior, such as 'latent_gan'; "
            f"'{settings.prior}' is not trained."
        )
    if own.needs_embeddings:
        raise UserError(
            f"config.schedule='joint' trains the prior '{settings.prior}' together with the "
            f"embeddings, so it cannot be initialized from them. Set --config.schedule=two_stage, "
            f"or for 'latent_gan' --config.prior_args.base_prior=gaussian."
        )
    second = own.spec(settings.latent_dim)
    return combine(spec, second, averaged=("G", *second.averaged))


def stage2_spec(
    settings: ConfigDict, name: str | None = None, *, z: np.ndarray | None = None
) -> MethodSpec:
    """Returns the spec of a prior that is trained on the embeddings (None: the config's own).

    Nets that are initialized from the embeddings z [N, d] need them, unless only shapes matter.
    """
    chosen = trained_prior(settings, name)
    spec = chosen.spec(settings.latent_dim)
    return spec if z is None else chosen.init_from_embeddings(spec, z, seed=settings.seed)


def trained_prior(settings: ConfigDict, name: str | None = None) -> TrainedPrior:
    """Returns `prior`, which must be of the trained kind."""
    chosen = prior(settings, name)
    if not isinstance(chosen, TrainedPrior):
        raise TypeError(f"The prior '{name or settings.prior}' is not trained.")
    return chosen


def prior(settings: ConfigDict, name: str | None = None) -> BasePrior:
    """Returns an unfitted prior: the config's own with its arguments, another with defaults."""
    own = name in (None, settings.prior)
    return priors.make(name or settings.prior, settings.prior_args.to_dict() if own else {})
