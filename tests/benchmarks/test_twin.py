"""The training step against its twin in PyTorch: losses, gradients, statistics, whole runs.

`train_step` itself runs here, with an optimizer that keeps the gradients it is given. Gradients
agree if the norm of the difference is below 1e-4 of the norm in every array (1e-9 in double
precision, where no ReLU falls to the other side by round-off); where the mathematics gives zero
(biases before a BatchNorm, D's last bias while no margin is reached), it is below 1e-5 of the
net's largest.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from pmjax import builders, config
from pmjax.benchmarks import ours
from pmjax.benchmarks.peers import torch_arrays
from pmjax.benchmarks.peers.torch import Twin, channels_first
from pmjax.training.optimizers import for_objective, stage1_optimizer, stage2_optimizer
from pmjax.training.step import init_state, train_step

DIGITS = "configs/digits.py"
BATCH = 16
STEPS = 4
RATE = 1e-4
QUICK_COMPILE = {"xla_backend_optimization_level": 0}  # the same operations, for tests of seconds
SMALL = {
    "data.batch_size": BATCH,
    "stage2.batch_size": BATCH,
    "latent_dim": 12,
    "prior_args.width": 24,
    "nets_args.width": 6,
}
CASES = {
    "paper": {},
    "author": {},
    "no batch norm": {"method_args.batch_norm": False, "method_args.dispersion": 4.0},
    "no regularizer": {"nets": "mlp", "method_args.regularizer": False},
    "perceptrons": {"nets": "mlp", "batch_norm.affine": True},
    "repeats": {
        "nets": "mlp",
        "method_args.critic_repeats": 2,
        "method_args.omega1": 1.0,
        "method_args.autoencoder_repeats": 2,
        "prior_args.critic_repeats": 3,
        "prior_args.generator_repeats": 2,
        "prior_args.base_prior": "sphere",
    },
    "mimicry": {"nets": "mimicry", "nets_args.width": None, "nets_args.scale": 1 / 16},
    "no spectral norm": {
        "prior_args.spectral_norm": False,
        "prior_args.base_prior": "gaussian",
        "prior_args.base_dim": 5,
    },
    "fitted base": {"prior_args.base_prior": "gmm"},
}
COLORED = ("no batch norm", "perceptrons")  # channels have an order only if there are several


@pytest.fixture(scope="module")
def digits():
    images = builders.dataset(config.load(DIGITS), "train").data[: STEPS * BATCH]
    return np.asarray(images).reshape(STEPS, BATCH, *images.shape[1:])


def settings_of(case, **more):
    path = f"{DIGITS}:author" if case == "author" else f"{DIGITS}:paper"
    values = SMALL | CASES[case] | more
    return config.load(path, {n: str(v) for n, v in values.items() if v is not None})


def batches_of(case, stage, digits, *, double):
    """Returns the batches as JAX has them: digits, or embeddings that are not centered."""
    if stage == 2:
        shape = (STEPS, BATCH, SMALL["latent_dim"])
        batches = np.random.default_rng(0).normal(0.3, 1.2, shape)
        return batches if double else batches.astype(np.float32)
    if case == "mimicry":
        digits = np.pad(digits, [(0, 0), (0, 0), (2, 2), (2, 2), (0, 0)])
    if case in COLORED:
        digits = np.concatenate([digits, 255 - digits, np.roll(digits, 3, 2)], -1)
    return digits / 127.5 - 1 if double else digits


class Pair:
    """The same step in JAX and in PyTorch, from the same state."""

    def __init__(self, settings, stage, shape, *, sgd=True, double=False):
        self.settings, self.stage = settings, stage
        if double:
            settings = settings.copy_and_resolve_references()
            settings.precision = "float64"
        if stage == 1:
            spec, optimizer = (
                builders.stage1_spec(settings, shape),
                stage1_optimizer(settings),
            )
        else:
            z = np.random.default_rng(1).normal(size=(STEPS * BATCH, *shape))
            spec = builders.stage2_spec(settings, z=z)
            optimizer = stage2_optimizer(settings)
        optimizer = _keeping if sgd else optimizer
        self.spec = spec
        key = jax.random.key(3)
        shapes = jax.eval_shape(partial(init_state, spec, optimizer), key)
        params = _filled(shapes.params, double=double)
        stats = _filled(shapes.stats, double=double)
        self.state = shapes.replace(
            step=jnp.zeros((), jnp.int32),
            params=params,
            stats=stats,
            opt={
                o.name: for_objective(optimizer, o).init({n: params[n] for n in o.nets})
                for o in spec.objectives
            },
            ema={name: params[name] for name in spec.averaged},
            key=key,
        )
        self._step = jax.jit(
            partial(train_step, spec=spec, optimizer=optimizer, ema_decay=settings.ema_decay),
            compiler_options=QUICK_COMPILE,
        )
        optimizer = (lambda moved, repeats: _Sgd(moved)) if sgd else None
        self.twin = Twin(
            settings, stage=stage, shape=shape, params=params, stats=stats, optimizer=optimizer
        )

    def step(self, batch):
        """Makes a step on both sides; returns the metrics of both."""
        drawn = ours.draws(self.settings, self.stage, self.state, int(self.state.step))
        drawn = {
            n: torch.tensor(np.asarray(v)).to(_dtype(self.state.params)) for n, v in drawn.items()
        }
        self.state, expected = self._step(self.state, batch)
        found = self.twin.step(channels_first(batch), drawn)
        expected = {n: float(v) for n, v in expected.items() if not n.startswith("grad_norm")}
        return {name: float(value) for name, value in found.items()}, expected


def _dtype(tree):
    double = any(leaf.dtype == np.float64 for leaf in jax.tree.leaves(tree))
    return torch.float64 if double else torch.float32


def _filled(shapes, *, double):
    """Draws arrays; no vector is constant, which could hide a wrong order."""
    rng = np.random.default_rng(8)

    def draw(leaf):
        if len(leaf.shape) < 2:
            array = rng.uniform(0.01, 0.2, leaf.shape)
        else:
            array = rng.normal(size=leaf.shape) / np.prod(leaf.shape[:-1]) ** 0.5
        return array.astype(np.float64 if double else np.float32)

    return jax.tree.map(draw, shapes)


def _keeping(updates_per_step):
    """SGD whose state is the gradient that it was given last."""
    return optax.GradientTransformation(
        lambda params: jax.tree.map(jnp.zeros_like, params),
        lambda grads, state, params: (jax.tree.map(lambda g: -RATE * g, grads), grads),
    )


class _Sgd:
    def __init__(self, moved):
        self.moved = moved

    def differentiate(self, loss, *, keep_graph=False):
        grads = torch.autograd.grad(loss, self.moved, retain_graph=keep_graph)
        for parameter, grad in zip(self.moved, grads, strict=True):
            parameter.grad = grad

    def move(self):
        torch.optim.SGD(self.moved, lr=RATE).step()


def flat(tree):
    return {
        jax.tree_util.keystr(path): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def assert_gradients_agree(found, expected, *, rtol, vanishing=()):
    found, expected = flat(found), flat(expected)
    assert found.keys() == expected.keys()
    largest = max(np.linalg.norm(value) for value in expected.values())
    for name, value in expected.items():
        bound = rtol * np.linalg.norm(value)
        if name in vanishing:
            bound = max(bound, 1e-5 * largest)
        assert np.linalg.norm(found[name] - value) < bound, name


def assert_stats_agree(twin, stats, *, rtol):
    for name, net in twin.nets.items():
        if name not in stats:
            continue
        expected = {k: v for k, v in flat(stats[name]).items() if "sigma" not in k}
        found = flat(torch_arrays.statistics(net))
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            np.testing.assert_allclose(found[key], value, rtol=rtol, atol=rtol, err_msg=key)


def assert_losses_agree(found, expected, *, rtol):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert 1e-6 < abs(value) < np.inf, (name, value)
        np.testing.assert_allclose(found[name], value, rtol=rtol, atol=rtol / 100, err_msg=name)


def assert_params_agree(pair, *, rtol):
    for name, net in pair.twin.nets.items():
        if name in pair.state.params:
            expected, found = flat(pair.state.params[name]), flat(torch_arrays.parameters(net))
            for key, value in expected.items():
                np.testing.assert_allclose(
                    found[key], value, rtol=rtol, atol=rtol * np.abs(value).max(), err_msg=key
                )


@pytest.mark.parametrize("case, stage, double", [
    pytest.param("paper", 1, True, marks=pytest.mark.slow),
    pytest.param("author", 1, True, marks=pytest.mark.slow),
    pytest.param("no batch norm", 1, True, marks=pytest.mark.slow),
    ("no regularizer", 1, False),
    ("perceptrons", 1, True),
    ("repeats", 1, True),
    pytest.param("mimicry", 1, True, marks=pytest.mark.slow),
    ("paper", 2, False),
    ("no spectral norm", 2, False),
    ("repeats", 2, True),
    ("fitted base", 2, False),
])  # fmt: skip
def test_losses_gradients_statistics_and_updates_agree(case, stage, double, digits):
    settings = settings_of(case)
    batches = batches_of(case, stage, digits, double=double)
    vanishing = {"D": ["['Dense_5']['bias']"]}
    if stage == 1 and settings.method_args.batch_norm:
        last = "['MLP_0']['Dense_2']" if settings.nets == "mlp" else "['Dense_0']"
        vanishing["E"] = [f"['trunk']{last}['bias']"]
    if case == "mimicry":  # BatchNorm takes away whatever is constant over an image
        vanishing["G"] = [f"['GBlock_{i}']['Conv_{j}']['bias']" for i in range(3) for j in range(3)]
    with jax.enable_x64(double):
        pair = Pair(settings, stage, batches.shape[2:], double=double)
        assert_losses_agree(*pair.step(batches[0]), rtol=1e-5)
        for objective in pair.spec.objectives:
            expected = jax.device_get(pair.state.opt[objective.name])
            for net in objective.nets:
                found = torch_arrays.gradients(pair.twin.nets[net])
                assert_gradients_agree(
                    found,
                    expected[net],
                    rtol=1e-9 if double else 1e-4,
                    vanishing=vanishing.get(net, ()),
                )
        assert_stats_agree(pair.twin, pair.state.stats, rtol=1e-5)

        for batch in batches[1:]:
            assert_losses_agree(*pair.step(batch), rtol=1e-4)
        assert_params_agree(pair, rtol=1e-4)
        assert_stats_agree(pair.twin, pair.state.stats, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("case, stage, optimizer", [
    ("author", 1, {"nets": "mlp", "optimizer.schedule": "cosine", "optimizer.warmup": 2,
                   "steps": 6}),
    ("repeats", 2, {"stage2.optimizer.schedule": "linear", "stage2.optimizer.clip": 0.5,
                    "stage2.steps": 6}),
])  # fmt: skip
def test_whole_runs_with_adam_agree_in_double_precision(case, stage, optimizer, digits):
    settings = settings_of(case, **optimizer, ema_decay=0.3)
    batches = batches_of(case, stage, digits, double=True)
    with jax.enable_x64(True):
        pair = Pair(settings, stage, batches.shape[2:], sgd=False, double=True)
        for batch in batches:
            assert_losses_agree(*pair.step(batch), rtol=1e-6)
        assert_params_agree(pair, rtol=1e-6)
        assert_stats_agree(pair.twin, pair.state.stats, rtol=1e-6)
        for name, net in pair.twin.average.nets.items():
            found, expected = flat(torch_arrays.parameters(net)), flat(pair.state.ema[name])
            for key, value in expected.items():
                np.testing.assert_allclose(found[key], value, rtol=1e-6, atol=1e-6, err_msg=key)


def test_both_sides_draw_a_fitted_base_from_its_mixture():
    rng = np.random.default_rng(2)
    weights, means = np.array([0.2, 0.8]), np.array([[-2.0, 0.0, 1.0], [1.0, 3.0, 0.0]])
    roots = np.tril(rng.uniform(0.3, 1.0, (2, 3, 3)))
    arrays = {"weights": weights, "means": means, "roots": roots}
    arrays = {name: array.astype(np.float32) for name, array in arrays.items()}
    settings = config.load(DIGITS, {"latent_dim": "3", "prior_args.width": "4"})
    spec, optimizer = builders.stage2_spec(settings), stage2_optimizer(settings)
    state = init_state(spec, optimizer, jax.random.key(0))
    twin = Twin(
        settings,
        stage=2,
        shape=(3,),
        params=state.params,
        stats=state.stats | {"base": {"base": arrays}},
    )
    torch.manual_seed(0)
    count = 20_000
    theirs = next(twin.gan._draws(torch.zeros(count, 3))).numpy()
    ours = builders.prior(settings).sampler(arrays)(jax.random.key(0), (count, 3))
    mean = weights @ means
    apart = means - mean
    wanted = np.einsum("k,kij->ij", weights, roots @ roots.mT + apart[:, :, None] * apart[:, None])
    for drawn in (theirs, ours):
        np.testing.assert_allclose(np.mean(drawn, 0), mean, atol=0.05)
        np.testing.assert_allclose(np.cov(drawn.T), wanted, atol=0.1)
