"""An autoregressive prior over discrete codes: one slot of the embedding after another.

It finds the codes again in the table of embeddings, of which each slot holds one of a codebook's
vectors. The density of the codes is NADE's: Larochelle and Murray, The Neural Autoregressive
Distribution Estimator (2011), with a hidden layer more.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from pmjax.errors import UserError
from pmjax.priors.base import FittedPrior

Array = jax.Array

_MOST_CODES = 4096
_LOOKED_AT = 5000  # embeddings, for the slots' size
_CHECKS = 20  # how often the likelihood of held-out codes is looked at
_HELD_OUT = 10  # one code in so many
_BATCH = 128


def find_codes(z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the codebook [K, c] and each slot's code [N, d/c] of embeddings z [N, d].

    The slots' size c is the one with which codes and codebook take the fewest bits: with a smaller
    one there are more codes to write, with a larger one the codebook has their combinations.

    Raises:
      UserError: if no size gives a codebook.
    """

    def distinct(z, size):
        slots = np.ascontiguousarray(z, np.float32).reshape(-1, size)
        rows = slots.view(np.dtype((np.void, slots.itemsize * size)))[:, 0]
        _, first, codes = np.unique(rows, return_index=True, return_inverse=True)
        return slots[first], codes.reshape(len(z), -1)

    def bits(size):
        book, codes = distinct(z[:_LOOKED_AT], size)
        return codes.size * np.log2(len(book)) + 32 * book.size

    sizes = [size for size in range(1, z.shape[1] + 1) if z.shape[1] % size == 0]
    book, codes = distinct(z, min(sizes, key=bits))
    if len(book) > min(_MOST_CODES, codes.size / 2):
        raise UserError(
            f"prior 'code_prior' is for embeddings made of codes, but {codes.size} parts of "
            f"{len(z)} embeddings are {len(book)} different vectors. Take another prior."
        )
    return book, codes.astype(np.int32)


def _start(key: Array, slots: int, codes: int, width: int) -> dict[str, Array]:
    keys = jax.random.split(key, 3)
    return {
        "embed": jax.random.normal(keys[0], (slots, codes, width)) / slots**0.5,
        "enter": jnp.zeros((slots, width)),
        "hidden": jax.random.normal(keys[1], (width, width)) * (2 / width) ** 0.5,
        "leave": jax.random.normal(keys[2], (slots, width, codes)) * 0.1 / width**0.5,
        "bias": jnp.zeros((slots, codes)),
    }


def _logits(net: dict[str, Array], before: Array, keep: Array | float = 1.0) -> Array:
    """Maps sums of the codes before each slot, [N, S, H], to log-odds [N, S, K]."""
    hidden = jax.nn.relu(before + net["enter"]) * keep
    hidden = hidden + jax.nn.relu(hidden @ net["hidden"])
    return jnp.einsum("nsh,shk->nsk", hidden, net["leave"]) + net["bias"]


def _nats(net: dict[str, Array], codes: Array, keep: Array | float = 1.0) -> Array:
    """Returns the mean of -log p(codes) over slots; codes [N, S]."""
    each = net["embed"][jnp.arange(codes.shape[1]), codes]
    logits = _logits(net, jnp.cumsum(each, 1) - each, keep)
    return optax.softmax_cross_entropy_with_integer_labels(logits, codes).mean()


@dataclasses.dataclass(frozen=True)
class Prior(FittedPrior):
    """The density's size and training; of its states the best on held-out codes is kept."""

    width: int = 128  # of the hidden layers
    steps: int = 2000
    learning_rate: float = 2e-3
    dropout: float = 0.5

    def fit(self, z: np.ndarray, *, seed: int) -> dict[str, np.ndarray]:
        """Finds the codes of embeddings z [N, d] and fits their density."""
        book, codes = find_codes(z)
        order = np.random.default_rng(seed).permutation(len(codes))
        cut = len(codes) // _HELD_OUT
        held, data = codes[order[:cut]], jnp.asarray(codes[order[cut:]])
        optimizer = optax.adam(optax.linear_schedule(self.learning_rate, 0.0, self.steps))
        key, start_key = jax.random.split(jax.random.key(seed))
        net = _start(start_key, codes.shape[1], len(book), self.width)

        def step(carry, step_key):
            net, state = carry
            rows_key, drop_key = jax.random.split(step_key)
            rows = data[jax.random.randint(rows_key, (_BATCH,), 0, len(data))]
            shape = (_BATCH, codes.shape[1], self.width)
            keep = jax.random.bernoulli(drop_key, 1 - self.dropout, shape) / (1 - self.dropout)
            gradient = jax.grad(_nats)(net, rows, keep)
            updates, state = optimizer.update(gradient, state)
            return (optax.apply_updates(net, updates), state), None

        several = jax.jit(lambda carry, keys: lax.scan(step, carry, keys)[0])
        check = jax.jit(partial(_nats, codes=held)) if cut else lambda net: 0.0
        carry, best = (net, optimizer.init(net)), (np.inf, net)
        for turn in range(_CHECKS):
            keys = jax.random.split(jax.random.fold_in(key, turn), -(-self.steps // _CHECKS))
            carry = several(carry, keys)
            nats = float(check(carry[0]))
            if nats <= best[0]:
                best = nats, carry[0]
        return jax.tree.map(np.asarray, best[1] | {"book": book})

    def sample(self, params: dict[str, Array], key: Array, num: int) -> Array:
        """Draws [num, d]: each slot's code given those before it."""
        net = jax.tree.map(jnp.asarray, params)
        slots = len(net["bias"])

        def draw(before, slot):
            index, slot_key = slot
            one = {name: net[name][index][None] for name in ("enter", "leave", "bias")}
            logits = _logits(net | one, before[:, None])[:, 0]
            code = jax.random.categorical(slot_key, logits)
            return before + net["embed"][index, code], code

        start = jnp.zeros((num, net["hidden"].shape[0]))
        _, codes = lax.scan(draw, start, (jnp.arange(slots), jax.random.split(key, slots)))
        return net["book"][codes.T].reshape(num, -1)
