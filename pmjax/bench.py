"""Measures the training step: python -m pmjax.bench --config=configs/digits.py --peer=torch.

Each side runs in a process of its own, so that thread pools do not disturb each other, and only
one works at any moment: blocks of ours and of the peer's alternate.
"""

import argparse
import datetime
import importlib.util
import json
import multiprocessing
import os
import platform
import statistics
import sys
import time
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from pmjax import build, cli, config, datasets, errors, nets, parallel, plugins, priors
from pmjax.errors import UserError
from pmjax.priors.latent_gan import BASES
from pmjax.step import Game, init_state, train_step

BLOCKS = 8  # in which a side's seconds are spent
_PAUSE = 0.2  # seconds after a block: idle threads spin for a while
_PACKAGES = ("pmjax", "jax", "jaxlib", "flax", "optax", "numpy")


class Ours:
    """Our side: the compiled step as `pmjax.train` runs it.

    Attributes:
      start: what the peer starts from: first weights, first random draws, embeddings (stage 2).
      first: {metric: value} of the first step.
      compile_s: seconds of the first dispatch less a later one's: tracing and compilation.
    """

    def __init__(self, settings: ConfigDict, *, stage: int):
        """Builds a stage's game, compiles its step and makes the first dispatch."""
        chosen = settings if stage == 1 else settings.stage2
        self._batch_size = settings.data.batch_size if stage == 1 else chosen.batch_size
        self._per_dispatch, self._seed, self._next = chosen.steps_per_dispatch, settings.seed, 0
        mesh = parallel.make_mesh(chosen.devices)
        where = "config.data.batch_size" if stage == 1 else "config.stage2.batch_size"
        parallel.check_batch(self._batch_size, mesh, where)
        data = build.dataset(settings, "train").data
        game = build.stage1_game(settings, data.shape[1:])
        self.start = {}
        if stage == 2:
            data = self.start["table"] = _embeddings(game, data, settings.seed)
            game = build.stage2_game(settings)
        state = jax.jit(partial(init_state, game))(jax.random.key(settings.seed))
        drawn = draws(settings, stage, state.key, 0)
        params, stats, drawn = jax.device_get((state.params, state.stats, drawn))
        self.start |= {"params": params, "stats": stats, "draws": drawn}

        on_device = datasets.fits(data, settings.data.device_budget_gb * 1e9)
        self._table = parallel.replicate(np.asarray(data), mesh) if on_device else None
        self._rows = partial(
            datasets.batch_indices, len(data), self._batch_size, seed=settings.seed
        )
        self._stream = (
            None
            if on_device
            else datasets.stream(
                data, batch_size=self._batch_size, seed=settings.seed, start=0, stop=2**40
            )
        )
        self._run = parallel.compile_step(
            partial(
                train_step,
                game=game,
                ema_decay=settings.ema_decay,
                axis=parallel.axis_of(settings.parallel),
            ),
            mode=settings.parallel,
            mesh=mesh,
            gather=on_device,
        )
        self._state = parallel.replicate(state, mesh)
        began = time.perf_counter()
        self._state, metrics = self._run(self._state, self._table, self._batches())
        self.first = {name: float(values[0]) for name, values in _read(metrics).items()}
        first_s = time.perf_counter() - began
        self.block(0)
        self.compile_s = max(0.0, first_s - self.block(0)[1])

        device = mesh.devices.flat[0]
        self.gpu = device.platform in ("gpu", "cuda", "rocm")
        self.device = f"{mesh.size} × {device.device_kind}"
        one_thread_each = device.platform == "cpu" and mesh.size > 1
        self.threads = mesh.size if one_thread_each else os.cpu_count()
        self.versions = {name: metadata.version(name) for name in _PACKAGES}

    def _batches(self) -> np.ndarray:
        steps = range(self._next, self._next + self._per_dispatch)
        self._next = steps.stop
        if self._stream is not None:
            return np.stack([next(self._stream) for _ in steps])
        return np.stack([self._rows(step=step) for step in steps])

    def block(self, seconds: float) -> tuple[int, float]:
        """Makes steps for about so long; returns how many, and the seconds that they took."""
        began, count, pending = time.perf_counter(), 0, None
        with jax.transfer_guard("disallow"):
            while not count or time.perf_counter() - began < seconds:
                self._state, metrics = self._run(self._state, self._table, self._batches())
                if pending is not None:
                    _read(pending)
                pending = metrics
                count += self._per_dispatch
            _read(pending)
        return count, time.perf_counter() - began


def draws(settings: ConfigDict, stage: int, key: jax.Array, step: int) -> dict[str, jax.Array]:
    """Returns the random numbers of a step of `pmjax.step.train_step`, for the peer's.

    Args:
      settings: the config.
      stage: 1 or 2.
      key: of the training state.
      step: its number.

    Returns:
      'mu' [B] (method pm, stage 1), and 'bases' [turns, B, p], the draws z' of the latent GAN's
      players (stage 2, or joint schedule).
    """
    key, drawn, turn = jax.random.fold_in(key, step), {}, 1
    size = settings.data.batch_size if stage == 1 else settings.stage2.batch_size
    if stage == 1 and settings.method == "pm":
        args = settings.method_args
        drawn["mu"] = jax.random.uniform(jax.random.fold_in(key, 0), (size,)) / 2
        turn += args.autoencoder_repeats + args.critic_repeats * args.regularizer
    if settings.prior == "latent_gan" and (stage == 2 or settings.schedule == "joint"):
        args = settings.prior_args
        shape = (size, args.base_dim or settings.latent_dim)
        turns = range(turn, turn + args.critic_repeats + args.generator_repeats)
        keys = [jax.random.fold_in(key, turn) for turn in turns]
        drawn["bases"] = jnp.stack([BASES[args.base_prior](key, shape) for key in keys])
    return drawn


def _embeddings(game: Game, data: np.ndarray, seed: int) -> np.ndarray:
    """Encodes the data by the first weights; a step takes the same time on any embeddings."""
    state = jax.jit(partial(init_state, game))(jax.random.key(seed))
    params, stats, (E, _) = state.params["E"], state.stats["E"], game.nets["E"]
    encode = jax.jit(lambda x: nets.apply(E, params, stats, datasets.to_float(x), train=True))
    return np.concatenate([np.asarray(encode(data[i : i + 256])) for i in range(0, len(data), 256)])


def _read(metrics) -> dict[str, np.ndarray]:
    """Fetches a dispatch's metrics and stops at one that is not finite, as the training does."""
    metrics = jax.device_get(metrics)
    for name, values in metrics.items():
        if not np.isfinite(values).all():
            raise UserError(
                f"{name} is not finite: such steps are not worth measuring. Lower "
                f"the learning rate."
            )
    return metrics


class _Process:
    """A side in a process of its own, which works only while it is asked to."""

    def __init__(self, side: str, settings: dict, stage: int, **args):
        spawn = multiprocessing.get_context("spawn")
        self._pipe, theirs = spawn.Pipe()
        self._process = spawn.Process(
            target=_serve, args=(theirs, side, settings, stage, args), daemon=True
        )
        self._process.start()
        theirs.close()
        self.about = self._receive()

    def block(self, seconds: float) -> tuple[int, float]:
        """Lets the side make steps for about so long."""
        self._pipe.send(seconds)
        answer = self._receive()
        time.sleep(_PAUSE)
        return answer

    def _receive(self):
        try:
            kind, value = self._pipe.recv()
        except EOFError:
            self._process.join()
            raise UserError(
                f"A measuring process ended with status {self._process.exitcode}; "
                f"its message is above."
            ) from None
        if kind == "error":
            raise UserError(value)
        return value

    def close(self) -> None:
        """Ends the process."""
        self._pipe.close()
        self._process.join()


def _serve(pipe, side: str, settings: dict, stage: int, args: dict) -> None:
    """Is the process of a side: 'ours', or a file of `pmjax/peers`."""
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # leaves the peer some memory
    cli.run(partial(_work, pipe, side, ConfigDict(settings).lock(), stage, args))


def _work(pipe, side: str, settings: ConfigDict, stage: int, args: dict) -> None:
    try:
        if side == "ours":
            parallel.use_all_cores(settings.data.batch_size, settings.devices)
            made = Ours(settings, stage=stage)
        else:
            made = plugins.load("peers", side, provides="Side").Side(settings, stage=stage, **args)
        names = ("first", "compile_s", "start", "device", "gpu", "threads", "versions")
        pipe.send(("ready", {name: getattr(made, name, None) for name in names}))
        while True:
            pipe.send(("block", made.block(pipe.recv())))
    except UserError as error:
        pipe.send(("error", str(error)))
    except (EOFError, KeyboardInterrupt):
        return  # the parent is gone


def measure(
    settings: ConfigDict, *, stage: int, peer: str | None, seconds: float
) -> dict[str, Any]:
    """Measures the step of a stage, ours and the peer's in turn.

    Args:
      settings: the config.
      stage: 1 or 2.
      peer: a file of `pmjax/peers`, or None.
      seconds: for which each side works.

    Returns:
      What bench's JSON has for a stage.
    """
    plain = settings.to_dict()
    ours = _Process("ours", plain, stage)
    sides = {"pmjax": ours}
    if peer:
        start, gpu = ours.about["start"], ours.about["gpu"]
        sides[peer] = _Process(peer, plain, stage, cores=cores(), gpu=gpu, start=start)
    for side in sides.values():
        side.block(0.1)
    blocks = {name: [] for name in sides}
    for _ in range(BLOCKS):
        for name, side in sides.items():
            blocks[name].append(side.block(seconds / BLOCKS))
    for side in sides.values():
        side.close()
    chosen = settings if stage == 1 else settings.stage2
    batch_size = settings.data.batch_size if stage == 1 else chosen.batch_size
    result = {"batch_size": batch_size, "steps_per_dispatch": chosen.steps_per_dispatch}
    for name, side in sides.items():
        step_ms = [1e3 * spent / count for count, spent in blocks[name]]
        about = side.about
        result[name] = {
            "step_ms": statistics.median(step_ms),
            "step_ms_low": min(step_ms),
            "step_ms_high": max(step_ms),
            "images_per_s": 1e3 * batch_size / statistics.median(step_ms),
            "steps": sum(count for count, _ in blocks[name]),
            "blocks_ms": step_ms,
            "compile_s": about["compile_s"],
            "first": about["first"],
            "device": about["device"],
            "threads": about["threads"],
            "versions": about["versions"],
        }
    if peer:
        pairs = zip(result[peer]["blocks_ms"], result["pmjax"]["blocks_ms"], strict=True)
        ratios = [theirs / ours for theirs, ours in pairs]
        result["ratio"] = {
            "median": statistics.median(ratios),
            "low": min(ratios),
            "high": max(ratios),
        }
        found, expected = result[peer]["first"], result["pmjax"]["first"]
        result["first_differs"] = max(abs(found[name] - expected[name]) for name in found)
    return result


def cores() -> int:
    """Returns how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def table(stage: int, result: dict[str, Any], peer: str | None) -> str:
    """Returns a stage's results as text."""
    lines = [
        f"stage {stage}: batch {result['batch_size']}, steps a dispatch "
        f"{result['steps_per_dispatch']}, on {result['pmjax']['device']}",
        f"  {'':8}{'ms a step':>10}  {'lowest-highest':>16}{'examples/s':>12}{'compile s':>11}",
    ]
    for name in ("pmjax", peer) if peer else ("pmjax",):
        side = result[name]
        spread = f"{side['step_ms_low']:.3g}-{side['step_ms_high']:.3g}"
        compiled = "" if side["compile_s"] is None else f"{side['compile_s']:.1f}"
        lines.append(
            f"  {name:8}{side['step_ms']:10.3f}  {spread:>16}"
            f"{side['images_per_s']:12.0f}{compiled:>11}"
        )
    if peer:
        ratio = result["ratio"]
        lines.append(
            f"  pmjax is {ratio['median']:.2f} times as fast as {peer} "
            f"(pairs of blocks: {ratio['low']:.2f}-{ratio['high']:.2f}); "
            f"the first step's losses differ by {result['first_differs']:.1g}"
        )
    return "\n".join(lines)


def _stages(wanted: str, settings: ConfigDict) -> list[int]:
    """Returns which stages to measure."""
    if wanted == "1":
        return [1]
    if settings.schedule == "joint":
        why = "with config.schedule='joint', stage 1 trains the prior, too"
    elif not priors.is_trained(build.prior(settings)):
        why = f"the prior '{settings.prior}' is fitted at once"
    else:
        return [2] if wanted == "2" else [1, 2]
    if wanted == "2":
        raise UserError(f"There is no stage 2 to measure: {why}. Take --stage=1.")
    return [1]


def _check_peer(peer: str | None) -> None:
    if peer is None:
        return
    if peer not in plugins.names("peers"):
        raise errors.unknown("peer", peer, plugins.names("peers"))
    if importlib.util.find_spec(peer) is None:
        raise UserError(f'--peer={peer} needs the package {peer}: pip install "pmjax[bench]".')


def main() -> None:
    """Reads the flags, measures, prints tables and writes JSON."""
    parser = argparse.ArgumentParser(
        prog="python -m pmjax.bench",
        description=__doc__,
        epilog="Single values: --config.name=value, such as --config.data.batch_size=128.",
    )
    parser.add_argument("--config", required=True, help="a Python file, and :variant or not")
    parser.add_argument("--peer", help="a framework to compare with: torch")
    parser.add_argument("--stage", choices=("1", "2", "both"), default="both")
    parser.add_argument("--seconds", type=float, default=20.0, help="for each side and stage")
    parser.add_argument("--json", type=Path, help="where to write the results")
    flags, overrides = cli.parse(parser)
    _check_peer(flags.peer)
    if flags.json and not flags.json.absolute().parent.is_dir():
        raise UserError(f"--json={flags.json}: there is no directory {flags.json.parent}.")
    settings = config.load(flags.config, overrides)
    report = {
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "arguments": sys.argv[1:],
        "config": settings.to_dict(),
        "python": platform.python_version(),
        "cpu": _cpu(),
        "cores": cores(),
        "stages": {},
    }
    for stage in _stages(flags.stage, settings):
        result = measure(settings, stage=stage, peer=flags.peer, seconds=flags.seconds)
        report["stages"][str(stage)] = result
        print(table(stage, result, flags.peer), flush=True)
    if flags.json:
        flags.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    cli.run(main)
