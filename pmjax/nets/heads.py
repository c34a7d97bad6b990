"""Modules around a family's nets that make a method's E and G of them."""

import jax.numpy as jnp
from flax import linen as nn
from jax import Array


class Embedding(nn.Module):
    """E: a family's encoder, followed by a norm of its outputs if there is one."""

    trunk: nn.Module
    norm: nn.Module | None

    def __call__(self, x: Array, *, train: bool) -> Array:
        """Maps examples [N, …] to z [N, d]."""
        z = self.trunk(x, train=train)
        return z if self.norm is None else self.norm(z, train=train)


class Posterior(nn.Module):
    """E with a Gaussian posterior q(z|x) = N(mean, exp(log_variance)); its mean is z."""

    trunk: nn.Module

    def __call__(self, x: Array, *, train: bool) -> Array:
        """Maps examples [N, …] to the posterior's mean [N, d]."""
        return self.posterior(x, train=train)[0]

    def posterior(self, x: Array, *, train: bool) -> tuple[Array, Array]:
        """Maps examples [N, …] to the posterior's mean and log-variance, [N, d] each."""
        mean, log_variance = jnp.split(self.trunk(x, train=train), 2, axis=-1)
        return mean, log_variance


class Sphere(nn.Module):
    """Projects every embedding onto the unit sphere."""

    centered: bool = False  # first subtracts from each z the mean of its coordinates

    def __call__(self, z: Array, *, train: bool) -> Array:
        """Maps z [N, d] to z/‖z‖."""
        if self.centered:
            z = z - z.mean(-1, keepdims=True)
        return z / jnp.sqrt(jnp.sum(jnp.square(z), -1, keepdims=True) + 1e-12)


class SphereDecoder(nn.Module):
    """G; the net inside sees a sphere of radius √d, whose coordinates have variance 1."""

    decoder: nn.Module
    project: nn.Module | None = None  # puts z onto the sphere first

    def __call__(self, z: Array, *, train: bool) -> Array:
        """Maps z [N, d] to examples [N, …]."""
        z = z if self.project is None else self.project(z, train=train)
        return self.decoder(z.shape[-1] ** 0.5 * z, train=train)


class Rescale(nn.Module):
    """Multiplies z by a number, then applies a net, if any, whose parameters keep their names."""

    factor: float
    net: nn.Module | None = None

    def setup(self) -> None:
        """Puts the net's parameters at this module's own level."""
        if self.net is not None:
            nn.share_scope(self, self.net)

    def __call__(self, z: Array, *, train: bool) -> Array:
        """Maps z [N, d] to factor·z, or to net(factor·z)."""
        z = self.factor * z
        return z if self.net is None else self.net(z, train=train)
