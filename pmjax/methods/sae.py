"""Spherical autoencoder: in high dimensions the sphere alone makes embeddings match the prior.

Zhao, Zhu, Zhang: Latent Variables on Spheres for Autoencoders in High Dimensions (2019). Embeddings
and draws of the prior are centered over their coordinates, then projected onto the unit sphere.
"""

import dataclasses

from flax import linen as nn
from jax import Array

from pmjax.errors import UserError
from pmjax.methods.base import LossValue, MethodSpec, NetBuilder, Objective, Shared, autoencode
from pmjax.methods.losses import squared_error
from pmjax.nets.base import Nets
from pmjax.nets.heads import Sphere


class CenteredSphere(nn.Module):
    """Subtracts from each z the mean of its coordinates, and projects it onto the unit sphere."""

    @nn.compact
    def __call__(self, z: Array, *, train: bool) -> Array:
        """Maps [N, d] to [N, d]; applied twice it is the same as once."""
        return Sphere()(z - z.mean(-1, keepdims=True), train=train)


class SphericalDecoder(nn.Module):
    """G, which first projects its input onto the sphere.

    The net inside sees radius √d, coordinates of variance 1, with which it learns faster.
    """

    decoder: nn.Module

    @nn.compact
    def __call__(self, z: Array, *, train: bool) -> Array:
        """Maps z [N, d] to examples [N, …]."""
        z = CenteredSphere()(z, train=train)
        return self.decoder(z.shape[-1] ** 0.5 * z, train=train)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method:
    """There are no hyper-parameters; the norm is the mean over an example's values."""

    prior = "sphere_uniform"

    def spec(self, build: NetBuilder) -> MethodSpec:
        """Returns the nets E and G, and the objective that updates both."""
        if build.latent_dim < 3:
            raise UserError(
                f"latent_dim={build.latent_dim} leaves too little of a sphere after centering: "
                f"use 3 (a circle), 4 (a sphere) or more."
            )
        nets = {"E": build.encoder(CenteredSphere()), "G": build.decoder(SphericalDecoder)}
        objective = Objective("autoencoder", ("E", "G"), self.autoencoder_loss)
        return MethodSpec(nets, autoencode, ("E", "G"), (objective,))

    def autoencoder_loss(self, nets: Nets, s: Shared, key: Array) -> LossValue:
        """‖x - x̂‖²."""
        recon = squared_error(s.x, s.x_hat)
        return recon, {"recon": recon}
