"""Vector-quantized autoencoder: z is a row of codes, all from one learned codebook.

Van den Oord, Vinyals, Kavukcuoglu: Neural Discrete Representation Learning (2017). The latent
vector is cut into slots of `code_dim` numbers; a prior over codes recovers the codebook from the
embeddings.
"""

import dataclasses
import math

from jax import Array, lax

from pmjax.errors import UserError
from pmjax.methods.base import LossValue, MethodSpec, NetBuilder, Shared, joint_spec
from pmjax.methods.losses import squared_error
from pmjax.nets.base import Net, Nets
from pmjax.nets.quantizer import Quantizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method:
    """Hyper-parameters; norms are means over an example's values, or over z's."""

    codes: int = 128  # in the codebook
    code_dim: int = 0  # numbers in a slot (0: the greatest divisor of 4 and the latent dimension)
    commitment: float = 0.25  # β, weight of ‖z_e - sg[e]‖²
    decay: float = 0.99  # of the codebook's moving averages
    revive_below: float = 0.03  # of a code's average use

    prior = "code_prior"

    def spec(self, build: NetBuilder) -> MethodSpec:
        """Returns E and G with one objective."""
        code_dim = self.code_dim or math.gcd(4, build.latent_dim)
        if build.latent_dim % code_dim:
            raise UserError(f"code_dim={code_dim} must divide latent_dim={build.latent_dim}.")
        trunk = build.trunk(build.latent_dim)
        E = Quantizer(trunk, self.codes, code_dim, self.decay, self.revive_below)
        return joint_spec(Net(E, build.shape), build.decoder(), self.forward, self.autoencoder_loss)

    def forward(self, nets: Nets, x: Array, key: Array) -> dict[str, Array]:
        """z_e = E(x), e the nearest codes, x̂ = G(e); the gradient at e passes straight to z_e."""
        z_e, e, perplexity = nets.E.quantize(x, key)
        x_hat = nets.G(z_e + lax.stop_gradient(e - z_e))
        return {"x": x, "z": e, "z_e": z_e, "x_hat": x_hat, "perplexity": perplexity}

    def autoencoder_loss(self, nets: Nets, s: Shared, key: Array) -> LossValue:
        """‖x - x̂‖² + β ‖z_e - sg[e]‖², equation (3); moving averages replace its second term."""
        recon = squared_error(s.x, s.x_hat)
        commit = squared_error(s.z_e, lax.stop_gradient(s.z))
        metrics = {"recon": recon, "commit": commit, "perplexity": s.perplexity}
        return recon + self.commitment * commit, metrics
