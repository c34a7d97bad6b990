"""Plain autoencoder: reconstruction alone, the baseline of every comparison."""

import dataclasses

from jax import Array

from pmjax import errors
from pmjax.methods.base import LossValue, MethodSpec, NetBuilder, Objective, Shared, autoencode
from pmjax.methods.losses import RECONSTRUCTION
from pmjax.nets.base import Nets


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method:
    """Hyper-parameters; norms are means over an example's values."""

    reconstruction: str = "squared"  # or 'absolute'
    batch_norm: bool = False  # a BatchNorm on the embedding

    def __post_init__(self) -> None:
        if self.reconstruction not in RECONSTRUCTION:
            raise errors.unknown("reconstruction", self.reconstruction, RECONSTRUCTION)

    def spec(self, build: NetBuilder) -> MethodSpec:
        """Returns the nets E and G, and the objective that updates both."""
        E = build.encoder(build.latent_norm() if self.batch_norm else None)
        objective = Objective("autoencoder", ("E", "G"), self.autoencoder_loss)
        return MethodSpec({"E": E, "G": build.decoder()}, autoencode, ("E", "G"), (objective,))

    def autoencoder_loss(self, nets: Nets, s: Shared, key: Array) -> LossValue:
        """‖x - x̂‖²."""
        recon = RECONSTRUCTION[self.reconstruction](s.x, s.x_hat)
        return recon, {"recon": recon}
