"""Methods of related work: each one's equations and signature, against something independent."""

from functools import partial
from types import SimpleNamespace

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import integrate, special, stats

from pmjax import plugins
from pmjax.datasets.batches import to_float
from pmjax.errors import UserError
from pmjax.methods import mi_ae
from pmjax.methods import von_mises_fisher as vmf
from pmjax.methods.base import NetBuilder
from pmjax.methods.losses import imq, mmd, rbf
from pmjax.nets import base as nets
from pmjax.nets.quantizer import Quantizer
from pmjax.training.step import init_state

SHAPE, LATENT, BATCH = (4, 4, 1), 6, 16
KEY = jax.random.key(3)


def make(name, latent_dim=LATENT, **args):
    build = NetBuilder(
        shape=SHAPE,
        latent_dim=latent_dim,
        family="mlp",
        net_args={"width": 8, "layers": 1},
        batch_norm={},
    )
    return plugins.load("methods", name).Method(**args).spec(build)


def loss(spec, objective, shared):
    (found,) = [o for o in spec.objectives if o.name == objective]
    return found.loss(None, SimpleNamespace(**shared), KEY)[0]


def started(spec):
    return jax.jit(partial(init_state, spec, lambda updates_per_step: optax.sgd(0.1)))(
        jax.random.key(0)
    )


def forward(spec, state, images):
    def run(params, stats, images):
        return spec.forward(nets.Nets(spec.nets, params, stats), to_float(images), KEY)

    return jax.jit(run)(state.params, state.stats, images)


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (BATCH, *SHAPE), dtype=np.uint8)


def numbers(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


# ACAI


def test_acai_losses_are_the_papers():
    shared = {"alpha": jnp.array([0.1, 0.4]), "d_alpha": jnp.array([0.3, 0.0])}
    shared |= {"d_blend": jnp.array([0.1, -0.2]), "x": jnp.ones((2, 3)), "x_hat": jnp.zeros((2, 3))}
    spec = make("acai")
    np.testing.assert_allclose(loss(spec, "critic", shared), 0.1 + 0.025, rtol=1e-5)
    np.testing.assert_allclose(loss(spec, "autoencoder", shared), 1 + 0.5 * 0.045, rtol=1e-5)


def test_acai_critic_sees_blends_and_the_shares_that_it_must_tell(images):
    spec = make("acai")
    state = started(spec)
    shared = forward(spec, state, images)
    call = {
        name: partial(nets.apply, spec.nets[name].module, state.params[name], {}) for name in "EGd"
    }
    x, alpha = to_float(images), shared["alpha"][:, None]
    z = call["E"](x)
    x_alpha = call["G"](alpha * z + (1 - alpha) * np.roll(z, -1, 0))
    assert 0 <= alpha.min() < 0.1 < 0.4 < alpha.max() <= 0.5
    np.testing.assert_allclose(shared["d_alpha"], call["d"](x_alpha), atol=1e-5)
    blend = 0.2 * x + 0.8 * call["G"](z)
    np.testing.assert_allclose(shared["d_blend"], call["d"](blend), atol=1e-5)


# MI-AE


def test_mixing_keeps_each_coordinate_between_its_two_values():
    z, other = numbers(200, 5), numbers(200, 5, seed=1)
    alpha = jax.random.uniform(KEY, z.shape)
    mixed = mi_ae.mix(z, other, alpha)
    assert (mixed >= jnp.minimum(z, other) - 1e-6).all()
    assert (mixed <= jnp.maximum(z, other) + 1e-6).all()
    np.testing.assert_allclose((mixed - other) / (z - other), alpha, atol=1e-3)
    chosen = mi_ae.mix(z, other, (alpha < 0.5).astype(jnp.float32))
    np.testing.assert_array_equal(chosen, jnp.where(alpha < 0.5, z, other))


def test_mi_ae_losses_are_the_papers():
    shared = {"alpha": jnp.array([[0.1, 0.4]] * 2), "d_alpha": jnp.array([[0.3, 0.0]] * 2)}
    shared |= {"d_blend": jnp.array([[0.1, -0.2]] * 2), "d_h": jnp.array([[0.7, 0.1]] * 2)}
    shared |= {"x": jnp.ones((2, 3)), "x_hat": jnp.zeros((2, 3))}
    shared |= {"z": numbers(2, 2), "h": numbers(2, 2, seed=1)}
    spec = make("mi_ae", latent_dim=2)
    np.testing.assert_allclose(loss(spec, "critic", shared), 0.1 + 0.025 + 0.1, rtol=1e-5)
    distance = mmd(shared["z"], shared["h"], partial(imq, scale=4))
    expected = 1 + 0.5 * 0.045 + 0.1 * 0.25 + 0.1 * distance
    np.testing.assert_allclose(loss(spec, "autoencoder", shared), expected, rtol=1e-5)


def test_mi_ae_takes_the_authors_kernels_and_no_negative_estimate():
    def distance(z, h):
        loss_of = {
            weight: loss(make("mi_ae", latent_dim=3, mmd_kernel="six_rbf", mmd_weight=weight),
                         "autoencoder", shared | {"z": z, "h": h})
            for weight in (0.0, 1.0)
        }  # fmt: skip
        return loss_of[1.0] - loss_of[0.0]

    shared = {n: jnp.zeros((8, 3)) for n in ("x", "x_hat", "d_alpha", "d_h")}
    z, h = numbers(8, 3), 2 + numbers(8, 3, seed=1)
    expected = 0.0
    for width in (2, 5, 10, 20, 40, 80):
        zz, hh, zh = (
            np.exp(-np.square(a[:, None] - b[None]).sum(-1) / (2 * width**2))
            for a, b in ((z, z), (h, h), (z, h))
        )
        within = ((matrix.sum() - 8) / 56 for matrix in (zz, hh))
        expected += sum(within) - 2 * zh.mean()
    np.testing.assert_allclose(distance(z, h), expected, rtol=1e-4)
    assert distance(z, z) == 0


def test_mi_ae_mixes_every_coordinate_by_a_share_of_its_own(images):
    spec = make("mi_ae")
    state = started(spec)
    shared = forward(spec, state, images)
    assert shared["alpha"].shape == shared["d_alpha"].shape == (BATCH, LATENT)
    assert len(np.unique(shared["alpha"])) == BATCH * LATENT
    assert shared["alpha"].max() <= 0.5


# InfoVAE


@pytest.mark.parametrize("alpha, lambda_", [(0.0, 1.0), (1.0, 0.0), (1.0, 5.0)])
def test_infovae_reduces_to_its_special_cases(alpha, lambda_, images):
    spec = make("infovae", alpha=alpha, lambda_=lambda_)
    state = started(spec)
    shared = forward(spec, state, images)
    recon = np.mean(np.square(shared["x"] - shared["x_hat"]))
    posterior = stats.norm(shared["z"], np.exp(shared["log_variance"] / 2))
    # KL of Gaussians, from SciPy's entropy.
    second_moment = np.square(shared["z"]) + np.exp(shared["log_variance"])
    kl = (-posterior.entropy() + second_moment / 2 + np.log(2 * np.pi) / 2).sum(-1).mean()
    prior = jax.random.normal(KEY, (BATCH, LATENT))
    distance = mmd(shared["z_drawn"], prior, partial(rbf, scale=2 * LATENT))
    expected = recon + ((1 - alpha) * kl + (alpha + lambda_ - 1) * distance) / 16
    np.testing.assert_allclose(loss(spec, "autoencoder", shared), expected, rtol=1e-4)
    if (alpha, lambda_) == (0, 1):
        vae = make("vae", beta=1.0, variance=0.5)
        constant = np.log(np.pi) / 2
        ours = loss(spec, "autoencoder", shared)
        np.testing.assert_allclose(loss(vae, "autoencoder", shared) - constant, ours, rtol=1e-5)


# VAE/GAN


def test_vae_gan_losses_are_the_papers():
    shared = {"d_x": jnp.array([2.0, 0.0]), "d_hat": jnp.array([0.5, -1.0])}
    shared |= {"d_p": jnp.array([1.0, -2.0]), "x": jnp.ones((2, *SHAPE))}
    shared |= {"x_hat": jnp.zeros((2, *SHAPE))}
    shared |= {"f_x": jnp.array([[1.0, 2.0]] * 2), "f_hat": jnp.array([[0.0, 4.0]] * 2)}
    shared |= {"z": jnp.array([[3.0, 0.0]] * 2), "log_variance": jnp.zeros((2, 2))}
    spec = make("vae_gan", gamma=0.5, pixel_weight=2.0)
    probability = special.expit
    fakes = np.array([0.5, -1.0, 1.0, -2.0])
    said = -np.log(probability(np.array([2.0, 0.0]))).mean()
    critic = said - np.log(1 - probability(fakes)).mean()
    np.testing.assert_allclose(loss(spec, "critic", shared), critic, rtol=1e-5)
    np.testing.assert_allclose(loss(spec, "encoder", shared), 4.5 / 16 + 2.5 + 2, rtol=1e-5)
    decoder = 0.5 * (2.5 + 2) - np.log(probability(fakes)).mean()
    np.testing.assert_allclose(loss(spec, "decoder", shared), decoder, rtol=1e-5)
    # Algorithm 1 of Larsen et al., whose γ L - L_GAN is of d's loss: G descends what d ascends.
    gan = -said + 2 * np.log(1 - probability(fakes)).mean()
    spec = make("vae_gan", gamma=0.5, pixel_weight=2.0, minimax=True)
    np.testing.assert_allclose(loss(spec, "critic", shared), -gan, rtol=1e-5)
    np.testing.assert_allclose(loss(spec, "decoder", shared), 0.5 * (2.5 + 2) + gan, rtol=1e-5)


def test_vae_gans_minimax_game_is_of_logistic_losses():
    with pytest.raises(UserError, match="minimax=true needs method_args.adversarial=logistic"):
        make("vae_gan", adversarial="hinge", minimax=True)


# VQ-VAE


def quantizer(**changes):
    args = dict(codes=5, code_dim=2, decay=0.8, revive_below=0.0)
    return Quantizer(nets.family("mlp").Encoder(4, width=8, layers=1), **(args | changes))


def test_codebook_is_the_moving_average_of_a_plain_loop():
    net, x = quantizer(), numbers(3, 12, 4)
    params, kept = nets.init(net, KEY, x[0])
    book, counts = (np.array(kept["codebook"][n], np.float64) for n in ("vectors", "counts"))
    counts[:] = [1.0, 0.5, 0.2, 0.1, 0.3]
    kept = {"codebook": {"vectors": jnp.asarray(book), "counts": jnp.asarray(counts)}}
    total = book * counts[:, None]
    for batch in x:
        (z, z_q, perplexity), kept = nets.update(net, params, kept, batch, KEY, method="quantize")
        used, sums = np.zeros(5), np.zeros((5, 2))
        for row, row_q in zip(np.reshape(z, (-1, 2)), np.reshape(z_q, (-1, 2)), strict=True):
            nearest = int(np.argmin(((book - row) ** 2).sum(1)))
            used[nearest] += 1 / 24
            sums[nearest] += row / 24
            np.testing.assert_allclose(row_q, book[nearest], rtol=1e-5)
        counts, total = 0.8 * counts + 0.2 * used, 0.8 * total + 0.2 * sums
        book = total / counts[:, None]
        np.testing.assert_allclose(kept["codebook"]["counts"], counts, rtol=1e-5)
        np.testing.assert_allclose(kept["codebook"]["vectors"], book, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(perplexity, np.exp(stats.entropy(used)), rtol=1e-4)


@pytest.mark.parametrize("count", [0.0, 1e-15], ids=["so far", "for long"])
def test_unused_codes_stay_if_they_are_not_revived(count):
    net, x = quantizer(), numbers(12, 4)
    params, kept = nets.init(net, KEY, x)
    book = kept["codebook"]["vectors"].at[3:].set(100.0)  # far from everything
    counts = jnp.full_like(kept["codebook"]["counts"], count)
    kept = {"codebook": {"vectors": book, "counts": counts}}
    for _ in range(2):
        _, kept = nets.update(net, params, kept, x, KEY, method="quantize")
    np.testing.assert_array_equal(kept["codebook"]["vectors"][3:], book[3:])
    assert np.isfinite(kept["codebook"]["vectors"]).all()


def test_unused_codes_become_embeddings_of_the_batch():
    net, x = quantizer(revive_below=0.1), numbers(12, 4)
    params, kept = nets.init(net, KEY, x)
    book = kept["codebook"]["vectors"].at[3:].set(100.0)  # far from everything
    (z, _, _), after = nets.update(
        net, params, {"codebook": kept["codebook"] | {"vectors": book}}, x, KEY, method="quantize"
    )
    slots, vectors = np.reshape(z, (-1, 2)), np.asarray(after["codebook"]["vectors"])
    for revived in vectors[3:]:
        assert np.isclose(slots, revived).all(1).any()
    assert np.ptp(after["codebook"]["counts"][3:]) == 0


def test_codebook_stays_unless_a_step_trains_it(images):
    spec = make("vq_vae")
    state = started(spec)
    E = spec.nets["E"].module
    z, same = nets.update(E, state.params["E"], state.stats["E"], to_float(images), train=False)
    chex.assert_trees_all_equal(same, state.stats["E"])
    book = state.stats["E"]["codebook"]["vectors"]
    assert all((np.asarray(book) == slot).all(1).any() for slot in np.reshape(z, (-1, 2)))


def test_vq_vae_gradient_goes_straight_through(images):
    spec = make("vq_vae", commitment=0.25, codes=16)
    state = started(spec)
    shared = forward(spec, state, images)
    assert shared["perplexity"] > 1.5
    recon = np.mean(np.square(shared["x"] - shared["x_hat"]))
    commit = np.mean(np.square(shared["z_e"] - shared["z"]))
    total = loss(spec, "autoencoder", shared)
    np.testing.assert_allclose(total, recon + 0.25 * commit, rtol=1e-5)

    def reconstruct(e):
        x_hat = nets.apply(spec.nets["G"].module, state.params["G"], {}, e)
        return jnp.mean(jnp.square(shared["x"] - x_hat))

    wanted = jax.grad(reconstruct)(shared["z"]) + 0.5 * (shared["z_e"] - shared["z"]) / (16 * 6)
    trunk = spec.nets["E"].module.trunk
    _, back = jax.vjp(
        lambda p: trunk.apply({"params": p}, shared["x"], train=True), state.params["E"]["trunk"]
    )

    def whole(params):
        bound = nets.Nets(spec.nets, state.params | params, state.stats)
        shared = spec.forward(bound, to_float(images), KEY)
        return loss(spec, "autoencoder", shared)

    got = jax.jit(jax.grad(whole))({"E": state.params["E"]})["E"]["trunk"]
    chex.assert_trees_all_close(got, back(wanted)[0], rtol=1e-3, atol=1e-6)


def test_code_size_must_divide_the_latent_dimension():
    with pytest.raises(UserError, match="code_dim=4 must divide latent_dim=6"):
        make("vq_vae", code_dim=4)


# S-VAE and SAE


@pytest.mark.parametrize("name", ["s_vae", "sae"])
def test_embeddings_have_norm_one(name, images):
    spec = make(name)
    state = started(spec)
    shared = forward(spec, state, images)
    for z in (shared["z"], shared.get("z_drawn", shared["z"])):
        np.testing.assert_allclose(np.linalg.norm(z, axis=1), 1, rtol=1e-6)
    encoded = nets.apply(spec.nets["E"].module, state.params["E"], {}, to_float(images))
    np.testing.assert_allclose(np.linalg.norm(encoded, axis=1), 1, rtol=1e-6)


def test_sae_centers_embeddings_and_what_it_decodes(images):
    spec = make("sae")
    state = started(spec)
    shared = forward(spec, state, images)
    np.testing.assert_allclose(shared["z"].mean(1), 0, atol=1e-6)
    decode = partial(nets.apply, spec.nets["G"].module, state.params["G"], {})
    np.testing.assert_allclose(decode(7 * shared["z"] + 3), shared["x_hat"], atol=1e-5)
    with pytest.raises(UserError, match="latent_dim=2"):
        make("sae", latent_dim=2)


def test_s_vae_loss_is_the_papers(images):
    spec = make("s_vae", beta=2.0, variance=0.25)
    state = started(spec)
    shared = forward(spec, state, images)
    recon = np.mean(np.square(shared["x"] - shared["x_hat"]))
    kl = np.mean([kl_by_integration(LATENT, float(kappa)) for kappa in shared["kappa"]])
    total = loss(spec, "autoencoder", shared)
    np.testing.assert_allclose(total, recon + 0.5 * 2 * kl / 16, rtol=1e-4)


def density(dim, kappa, t):
    """The density of ⟨mean, z⟩, up to a constant."""
    return (1 - t**2) ** ((dim - 3) / 2) * np.exp(kappa * (t - 1))


def kl_by_integration(dim, kappa):
    """E[log vMF - log uniform] over the cosine t, of which alone both depend."""
    uniform, _, _ = moments(dim, 0)
    ours, mean, _ = moments(dim, kappa)
    return kappa * (mean - 1) - np.log(ours) + np.log(uniform)


def moments(dim, kappa):
    """The density's integral, and the cosine's mean and variance."""

    def integral(fn):
        limits = dict(points=[0.5, 0.9, 0.99], limit=200)
        return integrate.quad(lambda t: fn(t) * density(dim, kappa, t), -1, 1, **limits)[0]

    total = integral(lambda t: 1)
    mean = integral(lambda t: t) / total
    return total, mean, integral(lambda t: (t - mean) ** 2) / total


@pytest.mark.parametrize("dim", [2, 5, 64])
def test_von_mises_fisher_divergence_and_gradient_equal_integrals(dim):
    kappas = [0.1, 1.0, 7.0, 60.0, 300.0]
    slope_too = jax.jit(jax.vmap(jax.value_and_grad(partial(vmf.kl_from_uniform, dim))))
    for kappa, value, slope in zip(kappas, *slope_too(jnp.array(kappas)), strict=True):
        np.testing.assert_allclose(value, kl_by_integration(dim, kappa), rtol=1e-4, atol=3e-4)
        np.testing.assert_allclose(slope, kappa * moments(dim, kappa)[2], rtol=1e-3)


def test_mean_length_is_the_ratio_of_bessel_functions():
    kappas = np.array([0.05, 0.9, 8.0, 90.0, 2000.0])
    for dim in (3, 128):
        ratio = special.ive(dim / 2, kappas) / special.ive(dim / 2 - 1, kappas)
        np.testing.assert_allclose(vmf.mean_length(dim, jnp.array(kappas)), ratio, rtol=1e-6)


@pytest.mark.parametrize("dim, kappa", [(2, 2.0), (64, 200.0)])
def test_von_mises_fisher_draws_have_their_mean_and_its_gradient(dim, kappa):
    num = 4000
    mean = jnp.zeros((num, dim)).at[:, 0].set(0.6).at[:, 1].set(-0.8)

    def draw(kappa):
        return vmf.sample(mean, jnp.full(num, kappa), KEY)

    z, slope = jax.jit(lambda k: jax.jvp(draw, (k,), (1.0,)))(kappa)
    np.testing.assert_allclose(np.linalg.norm(z, axis=1), 1, rtol=1e-6)
    length = special.ive(dim / 2, kappa) / special.ive(dim / 2 - 1, kappa)
    error = 4 * z.std(0).max() / num**0.5
    np.testing.assert_allclose(z.mean(0), length * mean[0], atol=error)
    change = 1 - length**2 - (dim - 1) / kappa * length
    np.testing.assert_allclose(jnp.sum(slope * mean, 1).mean(), change, rtol=0.06)


def test_gradient_of_a_draw_is_that_of_its_quantile():
    dim, kappa = 5, 12.0
    grid = np.linspace(-1, 1, 200_001)

    def quantiles(kappa, at):
        cumulative = integrate.cumulative_trapezoid(density(dim, kappa, grid), grid, initial=0)
        return np.interp(at, cumulative / cumulative[-1], grid)

    at = np.array([0.001, 0.1, 0.5, 0.9, 0.999])
    t = jnp.asarray(quantiles(kappa, at), jnp.float32)
    expected = (quantiles(kappa + 0.05, at) - quantiles(kappa - 0.05, at)) / 0.1
    np.testing.assert_allclose(vmf._slope(dim, jnp.full(5, kappa), t), expected, rtol=2e-3)
