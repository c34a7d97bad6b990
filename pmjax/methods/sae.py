"""Spherical autoencoder: in high dimensions, the sphere alone makes embeddings fit the prior.

Zhao, Zhu, Zhang: Latent Variables on Spheres for Autoencoders in High Dimensions (2019). Every z is
centred over its coordinates, then put on the unit sphere, embeddings and draws of the prior alike.
"""

import dataclasses

import jax
from flax import linen as nn

from pmjax.errors import UserError
from pmjax.methods.base import Embedding, MethodSpec, NetBuilder, Objective, Sphere, autoencode
from pmjax.methods.losses import squared_error

Array = jax.Array


class CentredSphere(nn.Module):
    """Subtracts from each z [N, d] the mean of its own coordinates, and divides by the norm."""

    @nn.compact
    def __call__(self, z: Array, *, train: bool) -> Array:
        """Maps [N, d] to [N, d]; what it has mapped already stays as it is."""
        return Sphere()(z - z.mean(-1, keepdims=True), train=train)


class SphericalDecoder(nn.Module):
    """G, which puts whatever it is given on the sphere first.

    The net inside sees radius √d, coordinates of variance one, with which it learns faster.
    """

    decoder: nn.Module

    @nn.compact
    def __call__(self, z: Array, *, train: bool) -> Array:
        """Maps z [N, d] to examples [N, …]."""
        z = CentredSphere()(z, train=train)
        return self.decoder(z.shape[-1] ** 0.5 * z, train=train)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method:
    """There are no hyper-parameters; the norm is the mean over an example's values."""

    prior = "sphere_uniform"

    def game(self, plan: NetBuilder) -> MethodSpec:
        """Returns the nets E and G, and the objective who moves both."""
        if plan.latent_dim < 3:
            raise UserError(
                f"latent_dim={plan.latent_dim} leaves too little of a sphere once coordinates are "
                f"centred: take 3 (a circle), 4 (a sphere) or more."
            )
        E = Embedding(plan.trunk(plan.latent_dim), CentredSphere()), plan.shape
        decoder, latent = plan.decoder()
        G = SphericalDecoder(decoder), latent

        def autoencoder_loss(params, stats, shared, key):
            """‖x - x̂‖²."""
            loss = squared_error(shared["x"], shared["x_hat"])
            return loss, ({"recon": loss}, stats)

        autoencoder = Objective("autoencoder", ("E", "G"), autoencoder_loss, plan.optimizer)
        return MethodSpec({"E": E, "G": G}, autoencode(E[0], G[0]), ("E", "G"), (autoencoder,))
