"""The training step and the features in idiomatic eager PyTorch.

On a GPU it uses channels last, no TF32 (as JAX) and autocast for bfloat16.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from ml_collections import ConfigDict
from torch import Tensor

from pmjax import builders
from pmjax.benchmarks.peers import torch_arrays, torch_mimicry
from pmjax.benchmarks.peers.torch_inception import Features
from pmjax.benchmarks.peers.torch_nets import (
    embedding,
    make_latent_gan,
    make_mlp,
    make_resnet,
)
from pmjax.benchmarks.peers.torch_steps import Autoencoder, Average, LatentGAN, Updates
from pmjax.benchmarks.process import About, Block, repeat
from pmjax.datasets.batches import batch_indices
from pmjax.errors import UserError

__all__ = ["Features", "TrainingStep", "Twin", "channels_first"]
Tree = dict[str, Any]
FAMILIES = {"mimicry": torch_mimicry.make, "mlp": make_mlp, "resnet": make_resnet}


class Twin:
    """The step of one stage of a config; with the joint schedule, stage 1 trains both."""

    def __init__(
        self,
        settings: ConfigDict,
        *,
        stage: int,
        shape: tuple[int, ...],
        params: Tree,
        stats: Tree,
        device: str = "cpu",
        optimizer: Callable | None = None,
    ):
        """Builds the nets from `params` and `stats`, arrays by net as in the training state.

        Args:
          settings: the config.
          stage: 1 or 2.
          shape: of one example in JAX, [H, W, C] or [D].
          params: of the nets.
          stats: of the nets.
          device: of the nets.
          optimizer: (parameters, updates per step) -> `Updates`; the config's Adam by default.

        Raises:
          UserError: for a method, a prior or nets that PyTorch lacks.
        """
        joint = settings.schedule == "joint"
        of_stage = settings if stage == 1 else settings.stage2
        optimizer = optimizer or (
            lambda parameters, repeats: Updates(
                parameters, repeats, steps=of_stage.steps, **of_stage.optimizer.to_dict()
            )
        )
        self.nets: dict[str, torch.nn.Module] = {}  # named as in the training state
        self.autoencoder: Autoencoder | None = None
        self.gan: LatentGAN | None = None
        if stage == 1:
            args = settings.method_args.to_dict()
            _only("method", settings.method, "pm")
            _only("nets", settings.nets, *FAMILIES)
            self.nets |= FAMILIES[settings.nets](
                net_args=settings.nets_args.to_dict(), shape=shape, latent_dim=settings.latent_dim
            )
            norm = settings.batch_norm.to_dict() if args["batch_norm"] else None
            self.nets["E"] = embedding(self.nets["E"], norm, settings.latent_dim)
        if stage == 2 or joint:
            prior = settings.prior_args.to_dict()
            _only("prior", settings.prior, "latent_gan")
            prior["base_dim"] = prior["base_dim"] or settings.latent_dim
            size = {name: prior.pop(name) for name in ("width", "blocks", "spectral_norm")}
            self.nets |= make_latent_gan(
                base_dim=prior["base_dim"], latent_dim=settings.latent_dim, **size
            )
        for name in self.nets.keys() & params.keys():
            torch_arrays.load(self.nets[name], params[name], stats[name])
            self.nets[name].to(device)
        if stage == 1:
            self.autoencoder = Autoencoder(self.nets, optimizer, **args)
        if stage == 2 or joint:
            fitted = stats.get("base", {}).get("base", {})
            fitted = {n: torch.tensor(np.asarray(a), device=device) for n, a in fitted.items()}
            self.gan = LatentGAN(self.nets, optimizer, mixture=fitted, **prior)
            averaged = ("G", "g") if joint else ("g",)
            self.average = Average({name: self.nets[name] for name in averaged}, settings.ema_decay)

    def step(self, batch: Tensor, draws: Tree | None = None) -> dict[str, Tensor]:
        """Makes a step; returns the metrics under the names of `pmjax.training.step.train_step`.

        Args:
          batch: uint8 images [B, C, H, W] or float examples [B, …].
          draws: 'mu' [B] and 'bases' [turns, B, p]; random by default.
        """
        draws, x = draws or {}, batch
        metrics: dict[str, Tensor] = {}
        if x.dtype == torch.uint8:
            x = x.float().sub_(127.5).mul_(1 / 127.5)
        if self.autoencoder:
            metrics, x = self.autoencoder.step(x, draws.get("mu"))
        if self.gan:
            metrics |= self.gan.step(x, draws.get("bases"))
            self.average.update()
        return metrics


class TrainingStep:
    """The training step that `pmjax.bench` measures."""

    compiled = False  # by torch.compile

    def __init__(self, settings: ConfigDict, *, stage: int, cores: int, gpu: bool, start: Tree):
        """Builds the twin from the arrays in `start` and makes the first step."""
        torch.manual_seed(settings.seed)
        self._gpu, (self._where, device) = gpu, torch_arrays.set_up(cores=cores, gpu=gpu)
        of_stage = settings.data if stage == 1 else settings.stage2
        data = builders.dataset(settings, "train").data if stage == 1 else start["table"]
        self._table = channels_first(data)
        if data.nbytes <= settings.data.device_budget_gb * 1e9:
            self._table = self._table.to(self._where)
        self._batch_size, self._seed, self._next = of_stage.batch_size, settings.seed, 0
        self._twin = Twin(
            settings,
            stage=stage,
            shape=data.shape[1:],
            params=start["params"],
            stats=start["stats"],
            device=self._where,
        )
        for net in self._twin.nets.values():
            if gpu:
                net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            if self.compiled:
                net.compile()
        self._autocast = partial(
            torch.autocast, self._where, torch.bfloat16, enabled=settings.precision == "bfloat16"
        )
        draws = {n: torch.tensor(value).to(self._where) for n, value in start["draws"].items()}
        self.about = About(
            first={name: float(value) for name, value in self._step(draws).items()},
            device=device,
            threads=cores if gpu else self._choose_threads(cores),
            versions={"torch": torch.__version__},
        )

    def _choose_threads(self, most: int) -> int:
        """Sets the fastest number of threads; many threads may slow small steps down."""
        speed = {}
        for threads in {max(1, most >> halvings) for halvings in range(most.bit_length())}:
            torch.set_num_threads(threads)
            self.block(0)
            trials = [self.block(0.1) for _ in range(3)]
            speed[threads] = max(trial.units / trial.seconds for trial in trials)
        best = max(speed, key=lambda threads: speed[threads])
        torch.set_num_threads(best)
        return best

    def _step(self, draws: Tree | None = None) -> dict[str, Tensor]:
        rows = batch_indices(len(self._table), self._batch_size, self._next, seed=self._seed)
        self._next += 1
        at = torch.from_numpy(rows.astype(np.int64)).to(self._table.device)
        batch = self._table[at].to(self._where)
        if self._gpu and batch.ndim == 4:
            batch = batch.contiguous(memory_format=torch.channels_last)
        with self._autocast():
            return self._twin.step(batch, draws)

    def block(self, seconds: float) -> Block:
        """Makes steps for about this long."""
        return repeat(self._step, seconds, finish=torch.cuda.synchronize if self._gpu else None)


def channels_first(data: np.ndarray) -> Tensor:
    """Copies images [N, H, W, C] to a tensor [N, C, H, W], and other arrays unchanged."""
    data = np.moveaxis(data, -1, 1) if data.ndim == 4 else data
    return torch.from_numpy(np.array(data, order="C"))


def _only(key: str, name: str, *known: str) -> None:
    if name not in known:
        valid = ", ".join(known)
        raise UserError(f"The PyTorch peer has the {key} {valid}, not '{name}': omit --peer.")
