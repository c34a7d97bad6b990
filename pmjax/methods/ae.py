"""Plain autoencoder: nothing but reconstruction, the least that any claim has to beat."""

import dataclasses

from pmjax import errors
from pmjax.methods.base import MethodSpec, NetBuilder, Objective, autoencode
from pmjax.methods.losses import absolute_error, squared_error

RECONSTRUCTION = {"squared": squared_error, "absolute": absolute_error}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method:
    """Hyper-parameters; norms are means over an example's values."""

    reconstruction: str = "squared"  # or 'absolute'
    batch_norm: bool = False  # a BatchNorm on the embedding

    def __post_init__(self):
        if self.reconstruction not in RECONSTRUCTION:
            raise errors.unknown("reconstruction", self.reconstruction, RECONSTRUCTION)

    def game(self, plan: NetBuilder) -> MethodSpec:
        """Returns the nets E and G, and the objective who moves both."""
        E, G = plan.encoder(batch_norm=self.batch_norm), plan.decoder()

        def autoencoder_loss(params, stats, shared, key):
            """‖x - x̂‖²."""
            loss = RECONSTRUCTION[self.reconstruction](shared["x"], shared["x_hat"])
            return loss, ({"recon": loss}, stats)

        autoencoder = Objective("autoencoder", ("E", "G"), autoencoder_loss, plan.optimizer)
        return MethodSpec({"E": E, "G": G}, autoencode(E[0], G[0]), ("E", "G"), (autoencoder,))
