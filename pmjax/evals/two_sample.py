"""Two-sample tests of priors' latents against embeddings of test examples."""

from collections.abc import Callable

from pmjax.evals.context import Context


def two_sample_tests(
    ctx: Context, name: str, num: int, two_sample: Callable[..., tuple[float, float]]
) -> dict[str, float]:
    """Returns '<name>/<set>' and '<name>_p/<set>' of each prior's latents, and of 'train'.

    'train' are embeddings of training examples: the floor, which a prior that fits them reaches.
    Each set has `num` examples, or the size of the smaller split. `two_sample(latents, embeddings,
    seed=)` returns a value and its p-value.
    """
    num = min(num, len(ctx.test.data), len(ctx.train.data))
    sets = {prior: ctx.latents(prior, num) for prior in ctx.priors}
    sets["train"] = ctx.embeddings("train")[ctx.subset("train", num)]
    embeddings = ctx.embeddings("test")[ctx.subset("test", num)]
    values: dict[str, float] = {}
    for what, z in sets.items():
        value, p = two_sample(z, embeddings, seed=ctx.derived_seed(name, what))
        values |= {f"{name}/{what}": value, f"{name}_p/{what}": p}
    return values
