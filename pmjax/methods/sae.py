"""Spherical autoencoder: in high dimensions the sphere alone makes embeddings match the prior.

Zhao, Zhu, Zhang: Latent Variables on Spheres for Autoencoders in High Dimensions (2019). Embeddings
and draws of the prior are centered over their coordinates, then projected onto the unit sphere.
"""

import dataclasses
from functools import partial

from jax import Array

from pmjax.errors import UserError
from pmjax.methods.base import LossValue, MethodSpec, NetBuilder, Shared, autoencode, joint_spec
from pmjax.methods.losses import squared_error
from pmjax.nets.base import Nets
from pmjax.nets.heads import Sphere, SphereDecoder


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method:
    """There are no hyper-parameters; the norm is the mean over an example's values."""

    prior = "sphere_uniform"

    def spec(self, build: NetBuilder) -> MethodSpec:
        """Returns E and G with one objective."""
        if build.latent_dim < 3:
            raise UserError(
                f"latent_dim={build.latent_dim} leaves too little of a sphere after centering: "
                f"use 3 (a circle), 4 (a sphere) or more."
            )
        E = build.encoder(Sphere(centered=True))
        G = build.decoder(partial(SphereDecoder, project=Sphere(centered=True)))
        return joint_spec(E, G, autoencode, self.autoencoder_loss)

    def autoencoder_loss(self, nets: Nets, s: Shared, key: Array) -> LossValue:
        """‖x - x̂‖²."""
        recon = squared_error(s.x, s.x_hat)
        return recon, {"recon": recon}
