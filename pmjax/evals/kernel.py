"""The kernel distance between sets of features (Bińkowski et al., 2018), in float64."""

from collections.abc import Mapping

import numpy as np

from pmjax.errors import UserError


def kernel_distances(
    reference: np.ndarray,
    sets: Mapping[str, np.ndarray],
    *,
    subset_size: int,
    subsets: int,
    seed: int,
    where: str = "",
) -> dict[str, tuple[float, float]]:
    """Returns the kernel distance of each set to the reference: mean and deviation over subsets.

    The unbiased estimate of MMD², over `subsets` pairs of random subsets of `subset_size`
    examples, with the kernel (xᵀy / D + 1)³. Being unbiased, it is about 0 between sets of one
    distribution, may be negative, and depends on the size of subsets in its deviation alone. Every
    set meets the same subsets of the reference, so that their differences vary less than they do.

    Args:
        reference: [N, D].
        sets: [N, D] each.
        subset_size: examples a subset, at most those of the smallest set.
        subsets: how many.
        seed: of the subsets.
        where: what comes before an argument's name in messages.
    """
    smallest = min(map(len, (reference, *sets.values())))
    if not 2 <= subset_size <= smallest or subsets < 1:
        raise UserError(
            f"{subsets} subsets of {subset_size} examples cannot be drawn from {smallest}: set "
            f"{where}subset_size to at least 2 and {where}subsets to at least 1, and give four "
            "examples of each set or more."
        )
    values = {what: [] for what in sets}
    for index in range(subsets):
        y = _draw(reference, subset_size, (seed, index, 0))
        within = _mean_of_pairs(y)
        for what, features in sets.items():
            x = _draw(features, subset_size, (seed, index, 1))
            values[what].append(_mean_of_pairs(x) + within - 2 * _kernel(x, y).mean())
    return {what: (float(np.mean(each)), float(np.std(each))) for what, each in values.items()}


def _draw(features, size, seed):
    chosen = np.random.default_rng(seed).choice(len(features), size, replace=False)
    return features[chosen].astype(np.float64)


def _mean_of_pairs(x):
    """Returns the mean of the kernel over pairs of two different examples."""
    kernel = _kernel(x, x)
    return (kernel.sum() - np.trace(kernel)) / (len(x) * (len(x) - 1))


def _kernel(x, y):
    base = x @ y.T
    base /= x.shape[1]
    base += 1
    cube = base * base
    cube *= base
    return cube
