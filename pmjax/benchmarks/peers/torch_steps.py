"""The training steps of both stages in PyTorch.

As in `pmjax.training.step`, the objectives of stage 1 share one pass through E, G and d, and each
computes the gradients of its own nets only.
"""

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from pmjax.benchmarks.peers.torch_nets import ImageNorm
from pmjax.errors import UserError

Metrics = dict[str, Tensor]
Optimizer = Callable[[list[nn.Parameter], int], "Updates"]


class Updates:
    """Adam with the learning-rate schedule and the clipping of `pmjax.training.optimizers`."""

    def __init__(
        self, parameters: list[nn.Parameter], repeats: int, *, steps: int,
        learning_rate: float, b1: float, b2: float, schedule: str, warmup: int, clip: float,
        accumulate: int,
    ):  # fmt: skip
        if accumulate != 1:
            raise UserError("The PyTorch peer does not accumulate gradients: omit --peer.")
        self.parameters, self.clip = parameters, clip
        self.optimizer = torch.optim.Adam(parameters, lr=learning_rate, betas=(b1, b2))
        rising, falling = warmup * repeats, max(1, (steps - warmup) * repeats)

        def factor(count: int) -> float:
            if count < rising:
                return count / rising
            done = min(1.0, (count - rising) / falling)
            return {
                "constant": 1.0,
                "linear": 1 - done,
                "cosine": 0.5 * (1 + math.cos(math.pi * done)),
            }[schedule]

        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, factor)

    def differentiate(self, loss: Tensor, *, keep_graph: bool = False) -> None:
        """Computes the gradients of the loss with respect to these parameters only."""
        grads = torch.autograd.grad(loss, self.parameters, retain_graph=keep_graph)
        for parameter, grad in zip(self.parameters, grads, strict=True):
            parameter.grad = grad

    def move(self) -> None:
        """Moves the parameters down their gradients."""
        if self.clip:
            nn.utils.clip_grad_norm_(self.parameters, self.clip)
        self.optimizer.step()
        self.schedule.step()


class Autoencoder:
    """Stage 1: equations (9), (10) and (11)."""

    def __init__(
        self, nets: dict[str, nn.Module], optimizer: Optimizer, *, omega1: float, omega2: float,
        lambda_: float, gamma: float, reconstruction: str, batch_norm: bool, dispersion: float,
        regularizer: bool, critic_repeats: int, autoencoder_repeats: int,
    ):  # fmt: skip
        self.E, self.G, self.d = nets["E"], nets["G"], nets["d"]
        self.omega1, self.omega2, self.lambda_, self.gamma = omega1, omega2, lambda_, gamma
        self.norm = {"squared": F.mse_loss, "absolute": F.l1_loss}[reconstruction]
        self.dispersion, self.regularizer = dispersion, regularizer
        self.critic_repeats = critic_repeats if regularizer else 0
        self.autoencoder_repeats = autoencoder_repeats
        # With BatchNorm, an image depends on the rest of the batch.
        self.per_example = not any(isinstance(layer, ImageNorm) for layer in self.G.modules())
        moved = [*self.E.parameters(), *self.G.parameters()]
        self.update_autoencoder = optimizer(moved, autoencoder_repeats)
        self.update_critic = optimizer(list(self.d.parameters()), critic_repeats)

    def step(self, x: Tensor, mu: Tensor | None = None) -> tuple[Metrics, Tensor]:
        """Makes a step on the batch x [B, …]; returns its metrics and embeddings z.

        `mu` [B] is random by default.
        """
        metrics: Metrics = {}
        if mu is None:
            mu = torch.rand(len(x), device=x.device) / 2
        values = self.forward(x, mu)
        z = values["z"].detach()
        for repeat in range(self.critic_repeats):
            if repeat:
                self.update_critic.move()
                values = self._again(x, mu)
            loss, extra = self.critic_loss(values)
            self.update_critic.differentiate(loss, keep_graph=True)
            metrics |= {"loss/critic": loss.detach(), **extra}
        for repeat in range(self.autoencoder_repeats):
            if repeat:
                values = self._again(x, mu)
            loss, extra = self.autoencoder_loss(values)
            self.update_autoencoder.differentiate(loss)
            if self.regularizer and not repeat:
                self.update_critic.move()  # not earlier: the pass above used the old d
            self.update_autoencoder.move()
            metrics |= {"loss/autoencoder": loss.detach(), **extra}
        return metrics, z

    def forward(self, x: Tensor, mu: Tensor) -> dict[str, Tensor]:
        """Returns x, z, x̂, μ, and d of x, of the blend, of x̂ and of x_μ."""
        h = self.E(x)  # z / dispersion, the input of G
        z = self.dispersion * h
        if not self.regularizer:
            return {"x": x, "z": z, "x_hat": self.G(h)}
        h_mu = torch.lerp(h.roll(-1, 0), h, mu[:, None])
        if self.per_example:
            x_hat, x_mu = self.G(torch.cat([h, h_mu])).chunk(2)
        else:
            x_hat = self.G(h)
            with _frozen_statistics(self.G):
                x_mu = self.G(h_mu)
        blend = torch.lerp(x_hat.detach(), x, self.gamma)
        with _frozen_statistics(self.d):
            d_hat, d_mu = self.d(x_hat).squeeze(1), self.d(x_mu).squeeze(1)
        d_x, d_blend = self.d(torch.cat([x, blend])).squeeze(1).chunk(2)
        outputs = {"d_x": d_x, "d_blend": d_blend, "d_hat": d_hat, "d_mu": d_mu}
        return {"x": x, "z": z, "x_hat": x_hat, "mu": mu, **outputs}

    def _again(self, x: Tensor, mu: Tensor) -> dict[str, Tensor]:
        """Makes another pass in the same step without updating statistics."""
        with _frozen_statistics(self.E), _frozen_statistics(self.G), _frozen_statistics(self.d):
            return self.forward(x, mu)

    def critic_loss(self, values: dict[str, Tensor]) -> tuple[Tensor, Metrics]:
        """Equation (9)."""
        real = values["d_x"].square().mean()
        blended = (values["d_blend"] - self.lambda_).square().mean()
        mixed = F.mse_loss(values["d_mu"], values["mu"] + self.lambda_)
        metrics = {"d/real": real, "d/blend": blended, "d/mix": mixed}
        return real + blended + mixed, _detached(metrics)

    def autoencoder_loss(self, values: dict[str, Tensor]) -> tuple[Tensor, Metrics]:
        """Equation (10)."""
        loss = recon = self.norm(values["x_hat"], values["x"])
        metrics = {"recon": recon}
        if self.regularizer:
            fool_mix, fool_recon = values["d_mu"].square().mean(), values["d_hat"].square().mean()
            loss = loss + self.omega1 * fool_mix + self.omega2 * fool_recon
            metrics |= {"fool/mix": fool_mix, "fool/recon": fool_recon}
        return loss, _detached(metrics)


class LatentGAN:
    """Stage 2: equations (12) and (13)."""

    def __init__(
        self, nets: dict[str, nn.Module], optimizer: Optimizer, *, base_prior: str, base_dim: int,
        critic_repeats: int, generator_repeats: int, mixture: dict[str, Tensor],
    ):  # fmt: skip
        """Stores the nets; `mixture` has weights, means and Cholesky roots of a fitted base."""
        self.g, self.D = nets["g"], nets["D"]
        self.base_prior, self.base_dim, self.mixture = base_prior, base_dim, mixture
        self.critic_repeats, self.generator_repeats = critic_repeats, generator_repeats
        self.update_D = optimizer(list(self.D.parameters()), critic_repeats)
        self.update_g = optimizer(list(self.g.parameters()), generator_repeats)

    def step(self, z: Tensor, bases: Tensor | None = None) -> Metrics:
        """Makes a step on the embeddings z [B, d]; `bases` [turns, B, p] are random by default."""
        metrics: Metrics = {}
        draws = self._draws(z) if bases is None else iter(bases)
        for _ in range(self.critic_repeats):
            loss, extra = self.critic_loss(z, next(draws))
            self.update_D.differentiate(loss)
            self.update_D.move()
            metrics |= {"loss/latent_critic": loss.detach(), **extra}
        for _ in range(self.generator_repeats):
            with _frozen_statistics(self.D):
                loss = -self.D(self.generate(next(draws))).mean()
            self.update_g.differentiate(loss)
            self.update_g.move()
            metrics["loss/latent_generator"] = loss.detach()
        return metrics

    def generate(self, base: Tensor) -> Tensor:
        """Maps z' [B, p] to z; for a fitted base, g is a correction."""
        return base + self.g(base) if self.base_prior == "gmm" else self.g(base)

    def critic_loss(self, z: Tensor, base: Tensor) -> tuple[Tensor, Metrics]:
        """Equation (12)."""
        with torch.no_grad():
            z_fake = self.generate(base)
        real, fake = self.D(torch.cat([z, z_fake])).chunk(2)
        loss = F.relu(1 - real).mean() + F.relu(1 + fake).mean()
        return loss, _detached({"D/real": real.mean(), "D/fake": fake.mean()})

    def _draws(self, z: Tensor) -> Iterator[Tensor]:
        while True:
            base = torch.randn(len(z), self.base_dim, device=z.device)
            if self.base_prior == "gmm":
                which = torch.multinomial(self.mixture["weights"], len(z), replacement=True)
                roots = self.mixture["roots"][which]
                yield self.mixture["means"][which] + (roots @ base[:, :, None]).squeeze(2)
            else:
                yield F.normalize(base) if self.base_prior == "sphere" else base


class Average:
    """Exponential moving average of parameters, with the warm-up of `pmjax.training.step`."""

    def __init__(self, nets: dict[str, nn.Module], decay: float):
        self.nets = copy.deepcopy(nets)
        self.values = [p.detach() for net in self.nets.values() for p in net.parameters()]
        self.moving = [p.detach() for net in nets.values() for p in net.parameters()]
        self.decay, self.steps = decay, 0

    def update(self) -> None:
        """Updates the average after a step."""
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        get_ema_multi_avg_fn(decay)(self.values, self.moving, self.steps)
        self.steps += 1


@contextmanager
def _frozen_statistics(net: nn.Module) -> Iterator[None]:
    """Calls a net without updating its statistics."""
    before = net.training
    net.eval()
    try:
        yield
    finally:
        net.train(before)


def _detached(metrics: Metrics) -> Metrics:
    return {name: value.detach() for name, value in metrics.items()}
