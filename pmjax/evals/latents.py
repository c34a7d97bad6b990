"""Latents of the priors beside real embeddings, for tests that compare the two."""

from collections.abc import Callable

import numpy as np

from pmjax.evals.context import Context, finite


def draw(ctx: Context, prior: str, num: int) -> np.ndarray:
    """Returns `num` latents of a prior, float32 [num, d]."""

    def make():
        seed = ctx.derived_seed("latents", num)
        return np.asarray(ctx.model.sample_latent(num, seed=seed, prior=prior), np.float32)

    z = ctx.cached(("latents", prior, num), make)
    return finite(f"latents of prior '{prior}'", z)


def paired_with_test(ctx: Context, num: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Returns embeddings of random test examples, and what to compare them with.

    Args:
        ctx: what to evaluate.
        num: how many of each; at most the size of either split.

    Returns:
        Embeddings [num, d], and as many latents of each prior, by its name, and, as 'train',
        embeddings of training examples: a prior that fits those cannot be nearer than they are.
    """
    num = min(num, len(ctx.test.data), len(ctx.train.data))
    sources = {prior: draw(ctx, prior, num) for prior in ctx.priors}
    sources["train"] = ctx.embeddings("train")[ctx.subset("train", num)]
    return ctx.embeddings("test")[ctx.subset("test", num)], sources


def two_sample_tests(
    ctx: Context, name: str, num: int, two_sample: Callable[..., tuple[float, float]]
) -> dict[str, float]:
    """Returns '<name>/<what>' and '<name>_p/<what>' of each of `paired_with_test`'s sources.

    `two_sample` takes latents, test embeddings and a seed, and gives a value and its p-value.
    """
    embeddings, sources = paired_with_test(ctx, num)
    values = {}
    for what, z in sources.items():
        value, p = two_sample(z, embeddings, seed=ctx.derived_seed(name, what))
        values |= {f"{name}/{what}": value, f"{name}_p/{what}": p}
    return values
