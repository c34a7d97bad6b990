"""Every method: which nets it updates, the same result on any devices, and the papers' losses."""

import dataclasses
from functools import cache, partial
from types import SimpleNamespace

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats
import torch
import torch.nn.functional as F

from pmjax import plugins
from pmjax.distributed.compile import compile_step
from pmjax.distributed.mesh import make_mesh, replicate
from pmjax.errors import UserError
from pmjax.methods import age, losses
from pmjax.methods.base import NetBuilder
from pmjax.nets import base as nets
from pmjax.training.step import init_state, train_step

METHODS = plugins.names("methods")
BATCH, LATENT, SHAPE = 16, 4, (4, 4, 1)
RATE = 0.02


def sgd(updates_per_step, **own):
    return optax.inject_hyperparams(optax.sgd)(learning_rate=RATE)


def builder(**changes):
    defaults = dict(
        shape=SHAPE,
        latent_dim=LATENT,
        family="mlp",
        net_args={"width": 8, "layers": 1},
        batch_norm={"momentum": 0.9},
    )
    return NetBuilder(**(defaults | changes))


def method(name, **args):
    """Makes a method; nets that have a size of their own get a small one."""
    cls = plugins.load("methods", name).Method
    fields = {field.name for field in dataclasses.fields(cls)}
    return cls(**{n: v for n, v in {"width": 8, "blocks": 0}.items() if n in fields}, **args)


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (1, BATCH, *SHAPE), dtype=np.uint8)


def filled_state(spec):
    """Draws a state, with no array constant and positive vectors, without compiling anything."""
    rng = np.random.default_rng(1)
    key = jax.random.key(2)
    shapes = jax.eval_shape(partial(init_state, spec, sgd), key)

    def draw(leaf):
        if len(leaf.shape) < 2:
            return rng.uniform(0.05, 0.3, leaf.shape).astype(leaf.dtype)
        array = rng.normal(size=leaf.shape) / np.prod(leaf.shape[:-1]) ** 0.5
        return array.astype(leaf.dtype)

    return shapes.replace(
        step=np.zeros((), np.int32),
        key=np.asarray(jax.random.key_data(key)),
        **{name: jax.tree.map(draw, getattr(shapes, name)) for name in ("params", "stats", "ema")},
    )


@pytest.fixture(scope="module")
def compiled(images):
    """Compiles a method's step once for each way to divide it."""

    @cache
    def step(name, mode="jit", devices=1):
        spec, mesh = method(name).spec(builder()), make_mesh(devices)
        one = partial(train_step, spec=spec, optimizer=sgd, ema_decay=0.9)
        compiled = compile_step(one, mode=mode, mesh=mesh, gather=False)
        first = filled_state(spec)

        def run(rates=None):
            """Makes a step; `rates` are the objectives' learning rates, if not all the same."""
            rates = rates or {objective.name: RATE for objective in spec.objectives}
            opt = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), first.opt)
            for objective, rate in rates.items():
                opt[objective] = optax.tree.set(opt[objective], learning_rate=np.float32(rate))
            key = jax.random.wrap_key_data(jnp.asarray(first.key))
            state = replicate(first.replace(opt=opt, key=key), mesh)
            state, metrics = compiled(state, None, images)
            return jax.device_get((state.replace(key=None), metrics))

        return spec, first, run

    return step


@pytest.mark.parametrize("name", METHODS)
def test_each_objective_updates_its_own_nets_and_no_others(name, compiled):
    spec, first, run = compiled(name)
    for objective in spec.objectives:
        after, metrics = run({o.name: RATE * (o is objective) for o in spec.objectives})
        assert all(np.isfinite(value).all() for value in metrics.values()), metrics
        for net in spec.nets:
            same = jax.tree.map(np.array_equal, first.params[net], after.params[net])
            assert jax.tree.all(same) == (net not in objective.nets), (objective.name, net)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("mode, devices", [("jit", 4), ("pmap", 4)])
def test_division_over_devices_changes_nothing(name, mode, devices, compiled):
    one, metrics = compiled(name)[2]()
    many, metrics_of_many = compiled(name, mode, devices)[2]()
    chex.assert_trees_all_close(metrics_of_many, metrics, rtol=2e-4, atol=2e-5)
    for part in ("params", "stats"):
        chex.assert_trees_all_close(getattr(many, part), getattr(one, part), rtol=2e-4, atol=1e-5)


class Pass:
    """A method's forward pass, with everything that its losses see."""

    def __init__(self, name, changes=None, **args):
        self.spec = method(name, **args).spec(builder(**(changes or {})))
        self.params, self.stats = {}, {}
        for index, (name, net) in enumerate(self.spec.nets.items()):
            self.params[name], self.stats[name] = nets.init(
                net.module, jax.random.key(index), jnp.zeros((2, *net.input_shape))
            )
        rng = np.random.default_rng(0)
        self.params = jax.tree.map(  # no bias is zero
            lambda leaf: leaf + rng.uniform(0, 0.2, leaf.shape), self.params
        )
        x = rng.uniform(-1, 1, (BATCH, *self.spec.nets["E"].input_shape)).astype(np.float32)
        self.key = jax.random.key(3)
        self.shared = self.spec.forward(self.bound(), x, self.key)
        self.noise = np.asarray(jax.random.normal(self.key, (BATCH, LATENT)))

    def bound(self):
        return nets.Nets(self.spec.nets, self.params, self.stats)

    def loss(self, objective):
        (objective,) = [o for o in self.spec.objectives if o.name == objective]
        return float(objective.loss(self.bound(), SimpleNamespace(**self.shared), self.key)[0])

    def call(self, net, x, **args):
        return jax.tree.map(np.asarray, getattr(self.bound(), net)(x, **args))

    def __getattr__(self, name):
        return np.asarray(self.shared[name])

    @property
    def recon(self):
        return np.mean((self.x - self.x_hat) ** 2)


def kl(mean, log_variance):
    return 0.5 * (mean**2 + np.exp(log_variance) - log_variance - 1).sum(-1)


def softplus(x):
    return np.log1p(np.exp(x)).mean()


def relu(x):
    return np.maximum(x, 0).mean()


def double_loop(a, b, kernel):
    """The unbiased estimate, pair by pair."""
    n, total = len(a), 0
    for i in range(n):
        for j in range(n):
            if i != j:
                total += (kernel(a[i], a[j]) + kernel(b[i], b[j])) / (n * (n - 1))
            total -= 2 * kernel(a[i], b[j]) / n**2
    return total


KERNELS = {
    "imq": lambda a, b, c: c / (c + ((a - b) ** 2).sum()),
    "rbf": lambda a, b, c: np.exp(-((a - b) ** 2).sum() / c),
}


def test_plain_autoencoder_minimizes_the_squared_error():
    run = Pass("ae")
    np.testing.assert_allclose(run.loss("autoencoder"), run.recon, rtol=1e-5)


def test_dispersion_widens_the_embedding_and_changes_nothing_else():
    narrow, wide = (
        Pass("pm", batch_norm=False, regularizer=False, dispersion=factor) for factor in (1, 16)
    )
    chex.assert_trees_all_equal(wide.params, narrow.params)
    np.testing.assert_array_equal(wide.z, 16 * narrow.z)
    np.testing.assert_array_equal(wide.x_hat, narrow.x_hat)


def test_vae_of_variance_one_half_is_squared_error_and_weighted_kl():
    run = Pass("vae", beta=3.0)
    size = np.prod(SHAPE)
    expected = size * run.recon + 3 * kl(run.z, run.log_variance).mean()
    found = size * (run.loss("autoencoder") - np.log(np.pi) / 2)
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_bernoulli_is_torch_s_cross_entropy():
    run = Pass("vae", likelihood="bernoulli")
    run.shared["x_hat"] *= 0.9  # off the ends, where float32 has no digits left
    to_unit = lambda x: torch.tensor((x + 1) / 2)  # noqa: E731
    nll = F.binary_cross_entropy(to_unit(run.x_hat), to_unit(run.x))
    expected = float(nll) + kl(run.z, run.log_variance).mean() / np.prod(SHAPE)
    np.testing.assert_allclose(run.loss("autoencoder"), expected, rtol=1e-5)


def test_learned_variance_maximizes_the_likelihood():
    learned = Pass("vae", likelihood="gaussian_learned").loss("autoencoder")
    recon = float(Pass("vae").recon)
    fixed = {v: Pass("vae", variance=v * recon).loss("autoencoder") for v in (0.8, 1.0, 1.25)}
    np.testing.assert_allclose(learned, fixed[1.0], rtol=1e-5)
    assert fixed[1.0] < min(fixed[0.8], fixed[1.25])


def test_elbo_of_a_linear_gaussian_model_is_the_log_evidence():
    """With orthogonal columns of W the exact posterior is one that E can express."""
    W, b, variance = np.array([[0.8, 0.0], [0.0, 0.5], [0.0, 0.5]]), np.array([0.1, 0.2, 0.3]), 0.3
    precision = 1 + (W**2).sum(0) / variance
    to_mean = W / variance / precision  # [3, 2], for rows x
    changes = dict(shape=(3,), latent_dim=2, net_args={"width": 1, "layers": 0})
    spec = method("vae", variance=variance).spec(builder(**changes))
    kernel = np.concatenate([to_mean, np.zeros((3, 2))], 1)
    bias = np.concatenate([-b @ to_mean, -np.log(precision)])
    params = {
        "E": {"trunk": {"MLP_0": {"Dense_0": {"kernel": kernel, "bias": bias}}}},
        "G": {"MLP_0": {"Dense_0": {"kernel": W.T, "bias": b}}},
    }
    x = np.array([0.4, -0.7, 0.9])
    rows = np.tile(x, (50_000, 1)).astype(np.float32)
    empty = {name: {} for name in params}
    bound = nets.Nets(spec.nets, params, empty)
    shared = spec.forward(bound, rows, jax.random.key(0))
    _, metrics = spec.objectives[0].loss(bound, SimpleNamespace(**shared), jax.random.key(1))
    covariance = W @ W.T + variance * np.eye(3)
    evidence = scipy.stats.multivariate_normal(b, covariance).logpdf(x)
    np.testing.assert_allclose(metrics["elbo"], evidence, atol=0.02)


@pytest.mark.parametrize("kernel", ["imq", "rbf"])
def test_wae_mmd_is_a_double_loop_over_pairs(kernel):
    scales = (0.5, 2.0)
    run = Pass("wae_mmd", kernel=kernel, weight=0.7, scales=scales)
    z = run.z.astype(np.float64)

    def similarity(a, b):
        return sum(KERNELS[kernel](a, b, 2 * LATENT * scale) for scale in scales)

    expected = run.recon + 0.7 * double_loop(z, run.noise, similarity)
    np.testing.assert_allclose(run.loss("autoencoder"), expected, rtol=1e-4)


@pytest.mark.parametrize("name, adversarial, tell, deceive", [
    ("aae", "hinge", lambda p, q: relu(1 - p) + relu(1 + q), lambda q: -q.mean()),
    ("wae_gan", "logistic", lambda p, q: softplus(-p) + softplus(q), lambda q: softplus(-q)),
])  # fmt: skip
def test_latent_critic_tells_prior_from_posterior(name, adversarial, tell, deceive):
    run = Pass(name, weight=0.3, spectral_norm=False, adversarial=adversarial)
    p, q = run.call("D_z", run.noise), run.call("D_z", run.z)
    np.testing.assert_allclose(run.loss("critic"), tell(p, q), rtol=1e-4)
    expected = run.recon + 0.3 * deceive(q)
    np.testing.assert_allclose(run.loss("autoencoder"), expected, rtol=1e-4)


@pytest.mark.parametrize("mean_margin", [False, True])
def test_introvae_follows_its_algorithm(mean_margin):
    run = Pass("introvae", kl_weight=2.0, alpha=0.3, margin=4.0, mean_margin=mean_margin)
    made = [run.x_hat, run.call("G", run.noise)]
    kl_made = [kl(*run.call("E", x, method="posterior")) for x in made]
    kl_x = kl(run.z, run.log_variance).mean()
    values = [value.mean() if mean_margin else value for value in kl_made]
    push = sum(relu(4.0 - value) for value in values)
    scale = 2.0 / np.prod(SHAPE)
    encoder = run.recon + scale * (kl_x + 0.3 * push)
    decoder = run.recon + scale * 0.3 * sum(value.mean() for value in kl_made)
    np.testing.assert_allclose(run.loss("encoder"), encoder, rtol=1e-4)
    np.testing.assert_allclose(run.loss("decoder"), decoder, rtol=1e-4)


def test_age_follows_its_equations():
    run = Pass("age", mu=2.0, generator_mu=0.5, lambda_=5.0)
    z_p = run.noise / np.linalg.norm(run.noise, axis=1, keepdims=True)
    back = run.call("E", run.call("G", z_p))
    np.testing.assert_allclose(np.linalg.norm(back, axis=1), 1, rtol=1e-5)

    def delta(z):
        mean, spread = LATENT**0.5 * z.mean(0), LATENT**0.5 * z.std(0)
        return (-0.5 + (spread**2 + mean**2) / 2 - np.log(spread)).mean()

    absolute = np.abs(run.x - run.x_hat).mean()
    encoder = delta(run.z) - delta(back) + 2 * absolute
    cosine_of_the_authors = (z_p * back).mean()  # of weight 5·d: over coordinates, too
    assert LATENT * cosine_of_the_authors == pytest.approx((z_p * back).sum(1).mean())
    generator = delta(back) + 5 * (1 - (z_p * back).sum(1).mean()) + 0.5 * absolute
    np.testing.assert_allclose(run.loss("encoder"), encoder, rtol=1e-4)
    np.testing.assert_allclose(run.loss("generator"), generator, rtol=1e-4)


def test_divergence_vanishes_on_the_uniform_sphere():
    z = jax.random.normal(jax.random.key(0), (20_000, 8))
    z /= jnp.linalg.norm(z, axis=1, keepdims=True)
    assert age.divergence(z) < 1e-3
    assert age.divergence(z * jnp.array([0.3] + [1] * 7)) > 0.05


def test_alae_follows_its_algorithm():
    run = Pass("alae", {"net_args": {"width": 1, "layers": 0}}, gamma=3.0)

    def judge(x):
        return run.call("D_z", run.call("E", x))

    z = run.call("F", run.noise)
    made = run.call("G", z)
    enter, leave = (run.params["D_z"][f"Dense_{i}"] for i in range(2))
    active = run.z @ enter["kernel"] + enter["bias"] > 0
    slopes = (active * leave["kernel"][:, 0]) @ enter["kernel"].T  # of D, at each E(x)
    slopes = slopes @ run.params["E"]["trunk"]["MLP_0"]["Dense_0"]["kernel"].T
    critic = softplus(judge(made)) + softplus(-judge(run.x))
    critic += 1.5 * np.square(slopes).sum(1).mean()
    np.testing.assert_allclose(run.loss("critic"), critic, rtol=1e-4)
    np.testing.assert_allclose(run.loss("generator"), softplus(-judge(made)), rtol=1e-4)
    expected = np.mean((z - run.call("E", made)) ** 2)
    np.testing.assert_allclose(run.loss("reciprocity"), expected, rtol=1e-4)


def test_gradient_penalty_trains_through_convolutions():
    args = {"width": 4, "critic_width": 4, "blocks": 0}
    with jax.enable_x64(True):
        build = builder(family="resnet", shape=(8, 8, 1), net_args=args, precision="float64")
        d = build.critic().module
        x = jax.random.normal(jax.random.key(0), (3, 8, 8, 1))
        params, _ = nets.init(d, jax.random.key(1), x)
        params = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), params)

        def penalty(params):
            return losses.gradient_penalty(lambda x: nets.apply(d, params, {}, x) ** 2, x)

        @jax.jit
        def slopes():
            up, down = (penalty(optax.tree.scale(1 + h, params)) for h in (1e-5, -1e-5))
            return optax.tree.vdot(jax.grad(penalty)(params), params), (up - down) / 2e-5

        found, expected = slopes()
        np.testing.assert_allclose(found, expected, rtol=1e-6)
        assert abs(expected) > 1e-3


def test_rae_penalizes_codes_and_weights():
    run = Pass("rae", embedding_weight=0.1, l2_weight=0.01)
    weights = sum(np.square(leaf).sum() for leaf in jax.tree.leaves(run.params["G"]))
    expected = run.recon + 0.05 * (run.z**2).sum(1).mean() + 0.01 * weights
    np.testing.assert_allclose(run.loss("autoencoder"), expected, rtol=1e-4)


def test_rae_s_gradient_penalty_is_the_jacobian_s_norm():
    changes = dict(shape=(3000,), net_args={"width": 1, "layers": 0})
    args = dict(regularizer="gradient_penalty", embedding_weight=0.0, gradient_weight=0.2)
    run = Pass("rae", changes, **args)
    jacobian = run.params["G"]["MLP_0"]["Dense_0"]["kernel"]
    expected = run.recon + 0.1 * np.square(jacobian).sum() / 3000
    np.testing.assert_allclose(run.loss("autoencoder"), expected, rtol=0.01)


def test_rae_s_spectral_norm_divides_by_singular_values():
    run = Pass("rae", regularizer="spectral_norm")
    z, stats = run.z, run.stats["G"]
    call = jax.jit(partial(nets.update, run.spec.nets["G"].module, run.params["G"]))
    for _ in range(50):
        out, stats = call(stats, z)
    (layers,) = run.params["G"]["decoder"].values()
    for index, layer in enumerate(layers.values()):
        z = z @ (layer["kernel"] / np.linalg.norm(layer["kernel"], 2)) + layer["bias"]
        z = np.maximum(z, 0) if index < len(layers) - 1 else np.tanh(z)
    np.testing.assert_allclose(out.reshape(z.shape), z, rtol=1e-3, atol=1e-4)


def test_losses_are_torch_s():
    real, fake = np.random.default_rng(0).normal(size=(2, 9)).astype(np.float32)
    ones, zeros = torch.ones(9), torch.zeros(9)
    bce = F.binary_cross_entropy_with_logits
    expected = bce(torch.tensor(real), ones) + bce(torch.tensor(fake), zeros)
    np.testing.assert_allclose(losses.logistic_critic(real, fake), expected, rtol=1e-5)
    expected = bce(torch.tensor(fake), ones)
    np.testing.assert_allclose(losses.logistic_generator(fake), expected, rtol=1e-5)
    q = torch.distributions.Normal(torch.tensor(real), torch.tensor(fake).exp().sqrt())
    expected = torch.distributions.kl_divergence(q, torch.distributions.Normal(0.0, 1.0)).sum()
    np.testing.assert_allclose(losses.gaussian_kl(real, fake), expected, rtol=1e-5)


@pytest.mark.parametrize("family, args", [
    ("mlp", {"width": 4}),
    ("resnet", {"width": 4, "critic_width": 4}),
    ("mimicry", {"scale": 1 / 32}),
])  # fmt: skip
def test_critics_offer_their_features(family, args):
    x = jnp.zeros((2, 32, 32, 1))
    critic = builder(family=family, net_args=args).critic().module

    def shapes():
        params, stats = nets.init(critic, jax.random.key(1), x)
        return nets.apply(critic, params, stats, x, method="features")

    features, said = jax.eval_shape(shapes)
    assert (features.ndim, len(features), said.shape) == (2, 2, (2,))


@pytest.mark.parametrize("name, args, message", [
    ("pm", {"dispersion": 0.0, "batch_norm": False}, "must be above 0"),
    ("pm", {"dispersion": 16.0}, "batch_norm=false"),
    ("ae", {"reconstruction": "square"}, "Did you mean 'squared'"),
    ("vae", {"likelihood": "bernouli"}, "Did you mean 'bernoulli'"),
    ("vae", {"variance": 0.0}, "must be above 0"),
    ("aae", {"adversarial": "logistics"}, "Did you mean 'logistic'"),
    ("wae_mmd", {"kernel": "rbf2"}, "Did you mean 'rbf'"),
    ("rae", {"regularizer": "l1"}, "Did you mean 'l2'"),
])  # fmt: skip
def test_invalid_arguments_are_rejected(name, args, message):
    with pytest.raises(UserError, match=message):
        method(name, **args)


def test_bernoulli_is_for_images():
    with pytest.raises(UserError, match="is for images"):
        method("vae", likelihood="bernoulli").spec(builder(shape=(3,)))
