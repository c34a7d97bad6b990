"""One forward pass that several objectives differentiate through, computed once.

The objectives of a method start from the same forward pass: the critic and the autoencoder both use
x̂ = G(E(x)). Plain `jax.value_and_grad` would run the pass once for each objective. Here the pass
runs once and is linearized; each objective then pulls its gradient back through the linear map.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

Tree = Any
Params = dict[str, Tree]  # by the nets' names


class SharedPass(NamedTuple):
    """A forward pass at some parameters."""

    params: Params  # that the pass depends on
    output: Tree
    jvp: Callable[[Params], Tree]  # the linear map from changes of `params` to those of `output`


def linearize_forward(
    forward: Callable[[Params], tuple[Tree, Tree]], params: Params
) -> tuple[SharedPass, Tree]:
    """Runs `forward(params) -> (output, aux)`; returns the pass, and `aux`."""
    output, jvp, aux = jax.linearize(forward, params, has_aux=True)
    return SharedPass(params, output, jvp), aux


def value_and_grad(
    loss: Callable[..., Any], shared: SharedPass, has_aux: bool = False
) -> Callable[[Params], tuple[Any, Params]]:
    """Returns `jax.value_and_grad` of a loss that continues from a shared pass.

    The gradient has two parts: of the loss itself, and through the shared pass for those of its
    parameters that are differentiated. Both are one linear map, and its transpose is the gradient:
    only the parts of the pass that the loss uses cost anything.

    Example: the loss is d·(3E)² = 5·(3·2)², once as a function of d and once as a function of E.

    >>> shared, _ = linearize_forward(lambda params: (3 * params["E"], None), {"E": 2.0})
    >>> def loss(trainable, output):
    ...     params = {"E": 2.0, "d": 5.0} | trainable
    ...     return params["d"] * output**2
    >>> value, grads = value_and_grad(loss, shared)({"d": 5.0})
    >>> print(value, grads["d"])  # (3E)²
    180.0 36.0
    >>> value, grads = value_and_grad(loss, shared)({"E": 2.0})
    >>> print(value, grads["E"])  # 2·d·3E·3
    180.0 180.0

    Args:
      loss: (parameters to differentiate, output of the pass) -> value, or (value, aux).
      shared: the pass.
      has_aux: whether the loss returns (value, aux).

    Returns:
      A function from the parameters to differentiate, by the nets' names, to (value, gradient) or
      ((value, aux), gradient).
    """

    def with_aux(trainable: Params, output: Tree) -> tuple[Any, Any]:
        return loss(trainable, output) if has_aux else (loss(trainable, output), None)

    def fn(trainable: Params) -> tuple[Any, Params]:
        value, jvp, aux = jax.linearize(with_aux, trainable, shared.output, has_aux=True)

        def total_jvp(changes: Params) -> jax.Array:
            through = {name: changes[name] for name in shared.params}
            return jvp({name: changes[name] for name in trainable}, shared.jvp(through))

        (grads,) = jax.linear_transpose(total_jvp, shared.params | trainable)(jnp.ones_like(value))
        grads = {name: grads[name] for name in trainable}
        return ((value, aux) if has_aux else value), grads

    return fn
