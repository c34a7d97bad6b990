"""The sets of features that metrics compare with the test set, and the keys of their values.

Values are '<metric>/<set>' or '<metric>/<quantity>/<set>', with their spread under the same key +
'/spread'. The sets are every prior by its name (`num_samples` samples) and 'floor' (as many
training images: what perfect samples would reach), if there is a training set; distances, if there
is a model, also of `OF_DECODER`. '<metric>/flag/<name>' is present only where the number of images
calls for a caveat.
"""

import logging
from collections.abc import Mapping, Sequence

import numpy as np

from pmjax.errors import UserError
from pmjax.evals.context import Context
from pmjax.evals.features.base import Features

log = logging.getLogger(__name__)
OF_DECODER = ("recon", "recon_train", "midpoints")


def feature_sets(
    ctx: Context, features: Features, also: Sequence[str] = ()
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Returns the features float32 [N, D] of the test set, and of the sets to compare, by name.

    `also` are sets of a decoder to compare as well; see `Context.compared`.

    Raises:
        UserError: if the data are not images, or features are not finite.
    """
    ctx.require_images(features.metric)
    sets = {}
    for what, source in {"test": "test", **ctx.compared(also)}.items():
        sets[what] = features.of(source)
        require_finite(features.metric, f"'{what}'", sets[what])
    return sets.pop("test"), sets


def require_finite(metric: str, what: str, values: np.ndarray) -> None:
    """Raises `UserError` for features that are not finite, or statistics of such features."""
    if not np.isfinite(values).all():
        raise UserError(
            f"Metric '{metric}': features of {what} hold NaN or infinite values. Check the weights "
            "of the extractor and the images."
        )


def with_spreads(prefix: str, estimates: Mapping[str, tuple[float, float]]) -> dict[str, float]:
    """Returns {key: value} of {set: (value, spread)}."""
    values: dict[str, float] = {}
    for what, (value, spread) in estimates.items():
        values |= {f"{prefix}/{what}": value, f"{prefix}/{what}/spread": spread}
    return values


def few_images(
    features: Features, counts: Sequence[int], dim: int, protocol: str = ""
) -> dict[str, float]:
    """Flags sets with no more images than features: rank-deficient covariances, a large bias."""
    few = min(counts)
    why = (
        f"{few} images are no more than the {dim} features: the covariance does not have full "
        "rank, and the distance has a large bias. Compare with the floor only, or use more images "
        f"(samples: {_more(features.ctx, protocol)})."
    )
    name = "fewer_images_than_features"
    return flag(features, name, few, why, protocol) if few <= dim else {}


def small_floor(features: Features, count: int, num: int, protocol: str = "") -> dict[str, float]:
    """Flags a floor with fewer images than there are samples, which is biased more than they."""
    why = (
        f"the floor has {count} images, fewer than the {num} samples: it is not what as many "
        f"perfect samples would reach. Use {count} samples: {_more(features.ctx, protocol)}."
    )
    return flag(features, "floor_images", count, why, protocol) if count < num else {}


def floor_of(features: Features, sets: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Returns `small_floor` of sets of features, if a floor is among them."""
    num = features.ctx.num_samples
    return small_floor(features, len(sets["floor"]), num) if "floor" in sets else {}


def flag(
    features: Features, name: str, value: float, why: str, protocol: str = ""
) -> dict[str, float]:
    """Returns the value under its key, and logs the reason once."""
    prefix = "/".join(filter(None, (features.metric, protocol)))
    message = f"{prefix}: {why}"
    features.ctx.cached(("flag", prefix, name), lambda: log.warning(message), depends_on="data")
    return {f"{prefix}/flag/{name}": value}


def _more(ctx: Context, protocol: str) -> str:
    """Returns the flag that sets the number of samples."""
    if not ctx.has("model"):
        return "--samples"
    return "--protocols" if protocol else "--config.eval.num_samples"
