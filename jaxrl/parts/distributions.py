"""Action distributions as plain pytrees. Batch axes lead; an action's own axis is the last."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.special import betaln, digamma

from jaxrl import masks


class Categorical(NamedTuple):
    """Categorical over the last axis of `logits` (..., A); actions are integers (...).

    >>> dist = Categorical(jnp.log(jnp.array([0.25, 0.75])))
    >>> int(dist.mode()), float(dist.log_prob(jnp.array(1))), float(dist.entropy())
    (1, -0.288, 0.562)
    """

    logits: jax.Array

    @staticmethod
    def noise(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """What `sample_by` takes, for logits of this shape: Gumbel's."""
        return jax.random.gumbel(key, shape, jnp.float32)

    def sample_by(self, noise: jax.Array) -> jax.Array:
        """The sample that noise drawn before makes of these logits."""
        return jnp.argmax(self.logits + noise, axis=-1)

    def sample(self, key: jax.Array) -> jax.Array:
        return jax.random.categorical(key, self.logits)

    def mode(self) -> jax.Array:
        return jnp.argmax(self.logits, axis=-1)

    def log_prob(self, action: jax.Array) -> jax.Array:
        log_probs = jax.nn.log_softmax(self.logits)
        return jnp.take_along_axis(log_probs, action[..., None], axis=-1)[..., 0]

    def entropy(self) -> jax.Array:
        log_probs = jax.nn.log_softmax(self.logits)
        return -jnp.sum(jnp.exp(log_probs) * log_probs, axis=-1)

    def kl(self, other: Categorical) -> jax.Array:
        """KL(self || other) (...).

        >>> uniform = Categorical(jnp.zeros(2))
        >>> float(uniform.kl(Categorical(jnp.log(jnp.array([0.25, 0.75])))))
        0.144
        """
        log_probs, others = jax.nn.log_softmax(self.logits), jax.nn.log_softmax(other.logits)
        return jnp.sum(jnp.exp(log_probs) * (log_probs - others), axis=-1)


def epsilon_greedy(
    key: jax.Array, q: jax.Array, epsilon: jax.Array | float, mask: jax.Array | None = None
) -> jax.Array:
    """Greedy actions for q (..., A), each replaced by a uniform one with probability epsilon.

    Args:
        mask: where actions are masked (`masks.Masked`), also in q (`masks.masked`).
    """
    return explored(q, exploration(key, q.shape, epsilon, mask is not None), mask)


def exploration(
    key: jax.Array, shape: tuple[int, ...], epsilon: jax.Array | float, masked: bool = False
) -> tuple[jax.Array, jax.Array]:
    """Where to explore (with probability epsilon), and uniform actions, for q of shape (..., A).

    Where actions are `masked`, in the actions' place numbers (..., A) of which the largest wins.
    """
    explore_key, action_key = jax.random.split(key)
    explore = jax.random.uniform(explore_key, shape[:-1]) < epsilon
    if masked:
        return explore, jax.random.uniform(action_key, shape)
    return explore, jax.random.randint(action_key, shape[:-1], 0, shape[-1])


def explored(
    q: jax.Array, noise: tuple[jax.Array, jax.Array], mask: jax.Array | None = None
) -> jax.Array:
    """The actions that `exploration` makes of q (..., A)."""
    explore, random = noise
    if mask is not None:
        random = masks.masked(random, mask).argmax(-1)
    return jnp.where(explore, random, q.argmax(-1))


def epsilon_greedy_log_prob(
    q: jax.Array,
    action: jax.Array,
    epsilon: jax.Array | float,
    mask: jax.Array | None = None,
) -> jax.Array:
    """Log-probability of actions (...) that `epsilon_greedy` takes for q (..., A).

    >>> q = jnp.array([1.0, 3.0])
    >>> [round(float(jnp.exp(epsilon_greedy_log_prob(q, a, 0.1))), 3) for a in (0, 1)]
    [0.05, 0.95]
    """
    greedy = (action == q.argmax(-1)).astype(q.dtype)
    if mask is None:
        return jnp.log(epsilon / q.shape[-1] + (1 - epsilon) * greedy)
    allowed = masks.allowed(mask)
    may = jnp.take_along_axis(allowed, action[..., None], axis=-1)[..., 0]
    return jnp.log(may * epsilon / allowed.sum(-1) + (1 - epsilon) * greedy)


def project_to_atoms(probs: jax.Array, places: jax.Array, atoms: jax.Array) -> jax.Array:
    """Mass `probs` (B, M) at `places` (B, M) moved to the evenly spaced `atoms` (A,) around it.

    Returns (B, A). Mass and mean stay, but of what lies outside, which goes to the outermost atom
    (Bellemare, Dabney & Munos 2017, arXiv:1707.06887, algorithm 1).
    """
    gap = atoms[1] - atoms[0]
    places = jnp.clip(places, atoms[0], atoms[-1])
    share = 1 - jnp.abs(places[:, None, :] - atoms[None, :, None]) / gap  # (B, to, from)
    return (jnp.clip(share, 0, 1) * probs[:, None, :]).sum(axis=-1)


class Normal(NamedTuple):
    """Diagonal normal over the last axis; `mean`, `log_std` and actions are (..., D).

    >>> dist = Normal(mean=jnp.zeros(2), log_std=jnp.zeros(2))
    >>> float(dist.log_prob(jnp.zeros(2))), float(dist.entropy())
    (-1.838, 2.838)
    """

    mean: jax.Array
    log_std: jax.Array

    @staticmethod
    def noise(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """What `sample_by` takes, for means of this shape: standard normal."""
        return jax.random.normal(key, shape, jnp.float32)

    def sample_by(self, noise: jax.Array) -> jax.Array:
        """The sample that noise drawn before makes of this mean and deviation."""
        return self.mean + jnp.exp(self.log_std) * noise

    def sample(self, key: jax.Array) -> jax.Array:
        return self.sample_by(jax.random.normal(key, self.mean.shape, self.mean.dtype))

    def mode(self) -> jax.Array:
        return self.mean

    def log_prob(self, action: jax.Array) -> jax.Array:
        z = (action - self.mean) * jnp.exp(-self.log_std)
        return jnp.sum(-0.5 * z**2 - self.log_std - 0.5 * math.log(2 * math.pi), axis=-1)

    def entropy(self) -> jax.Array:
        per_dim = self.log_std + 0.5 * math.log(2 * math.pi * math.e)
        return jnp.sum(jnp.broadcast_to(per_dim, self.mean.shape), axis=-1)

    def kl(self, other: Normal) -> jax.Array:
        """KL(self || other) (...).

        >>> float(Normal(jnp.zeros(2), jnp.zeros(2)).kl(Normal(jnp.ones(2), jnp.zeros(2))))
        1.0
        """
        log_ratio = self.log_std - other.log_std
        distance = (self.mean - other.mean) * jnp.exp(-other.log_std)
        return 0.5 * jnp.sum(jnp.expm1(2 * log_ratio) - 2 * log_ratio + distance**2, axis=-1)


class Beta(NamedTuple):
    """Independent beta distributions on [-1, 1]; `alpha`, `beta` and actions are (..., D).

    (Chou, Maturana & Scherer 2017, "Improving stochastic policy gradients in continuous control
    with deep reinforcement learning using the beta distribution"): an action never has to be
    clipped to its box, so none of its probability is lost there. With alpha and beta above 1 there
    is one mode, inside.

    >>> dist = Beta(alpha=jnp.array([3.0]), beta=jnp.array([2.0]))
    >>> dist.mode().tolist(), float(dist.log_prob(jnp.array([0.0]))), float(dist.entropy())
    ([0.333], -0.288, 0.458)
    """

    alpha: jax.Array
    beta: jax.Array

    @classmethod
    def of_outputs(cls, outputs: jax.Array) -> Beta:
        """That of a network's outputs (..., 2 D): 1 + softplus of each (section 4)."""
        return cls(*jnp.split(1 + jax.nn.softplus(outputs), 2, axis=-1))

    @staticmethod
    def noise(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """What `sample_by` takes: a key for each batch, for parameters of shape (..., N, D).

        Samples are drawn by rejection, so that no number drawn before makes them.
        """
        return jax.random.split(key, shape[:-2])

    def sample_by(self, noise: jax.Array) -> jax.Array:
        """The sample that one key of `noise` makes of these parameters."""
        return self.sample(noise)

    def sample(self, key: jax.Array) -> jax.Array:
        share = jax.random.beta(key, self.alpha, self.beta, dtype=self.alpha.dtype)
        return 2 * self._inside(share) - 1

    def mode(self) -> jax.Array:
        tiny = jnp.finfo(self.alpha.dtype).tiny  # uniform: the middle
        left, right = self.alpha - 1 + tiny, self.beta - 1 + tiny
        return 2 * left / (left + right) - 1

    def log_prob(self, action: jax.Array) -> jax.Array:
        share = self._inside((action + 1) / 2)
        powers = (self.alpha - 1) * jnp.log(share) + (self.beta - 1) * jnp.log1p(-share)
        return jnp.sum(powers - self._log_norm() - math.log(2), axis=-1)

    def entropy(self) -> jax.Array:
        a, b = self.alpha, self.beta
        per_dim = self._log_norm() + (a + b - 2) * digamma(a + b)
        per_dim -= (a - 1) * digamma(a) + (b - 1) * digamma(b)
        return jnp.sum(per_dim + math.log(2), axis=-1)

    def kl(self, other: Beta) -> jax.Array:
        """KL(self || other) (...).

        >>> float(Beta(jnp.ones(1), jnp.ones(1)).kl(Beta(jnp.full(1, 2.0), jnp.ones(1))))
        0.307
        """
        left, right = self.alpha - other.alpha, self.beta - other.beta
        per_dim = (
            other._log_norm() - self._log_norm() - (left + right) * digamma(self.alpha + self.beta)
        )
        per_dim += left * digamma(self.alpha) + right * digamma(self.beta)
        return jnp.sum(per_dim, axis=-1)

    def _log_norm(self) -> jax.Array:
        """log B(alpha, beta)."""
        return betaln(self.alpha, self.beta)

    @staticmethod
    def _inside(share: jax.Array) -> jax.Array:
        """Shares of the box, off its edges, where a rounded one has density 0 or infinity."""
        edge = jnp.finfo(share.dtype).eps
        return jnp.clip(share, edge, 1 - edge)


class TanhNormal(NamedTuple):
    """tanh of a diagonal normal: actions (..., D) in (-1, 1) (Haarnoja et al. 2018, app. C).

    >>> dist = TanhNormal(mean=jnp.array([0.5]), log_std=jnp.array([0.0]))
    >>> dist.mode().tolist(), float(dist.log_prob(jnp.array([0.5])))
    ([0.462], -0.632)
    """

    mean: jax.Array
    log_std: jax.Array

    def sample_and_log_prob(self, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        """A sample and its log-probability; exact where `log_prob` would have to invert tanh."""
        normal = Normal(self.mean, self.log_std)
        u = normal.sample(key)
        return jnp.tanh(u), normal.log_prob(u) - jnp.sum(_log_tanh_slope(u), axis=-1)

    def sample(self, key: jax.Array) -> jax.Array:
        return jnp.tanh(Normal(self.mean, self.log_std).sample(key))

    def mode(self) -> jax.Array:
        """tanh of the normal's mode: what SAC acts with when deterministic."""
        return jnp.tanh(self.mean)

    def log_prob(self, action: jax.Array) -> jax.Array:
        # Actions at the very edge of the box came from a rounded tanh; keep their inverse finite.
        edge = 1 - jnp.finfo(action.dtype).eps
        u = jnp.arctanh(jnp.clip(action, -edge, edge))
        normal = Normal(self.mean, self.log_std)
        return normal.log_prob(u) - jnp.sum(_log_tanh_slope(u), axis=-1)


def _log_tanh_slope(u: jax.Array) -> jax.Array:
    """log(1 - tanh(u)^2) without cancellation at large |u|."""
    return 2 * (math.log(2) - u - jax.nn.softplus(-2 * u))


class TanhMixture(NamedTuple):
    """tanh of a mixture of K diagonal normals; `logits` (..., K), mean and log_std (..., K, D).

    tanh squashes all components alike, so its slope stands outside their sum.

    >>> mean = jnp.array([[-1.0], [1.0]])
    >>> TanhMixture(jnp.array([0.0, 1.0]), mean, log_std=jnp.zeros((2, 1))).mode().tolist()
    [0.762]
    """

    logits: jax.Array
    mean: jax.Array
    log_std: jax.Array

    def sample_components(self, key: jax.Array) -> jax.Array:
        """One sample of each component before tanh, (..., K, D)."""
        return Normal(self.mean, self.log_std).sample(key)

    def unsquashed_log_prob(self, u: jax.Array) -> jax.Array:
        """Log-density of the whole mixture before tanh, at u (..., D)."""
        components = Normal(self.mean, self.log_std).log_prob(u[..., None, :])
        return jax.nn.logsumexp(jax.nn.log_softmax(self.logits) + components, axis=-1)

    def pre_tanh_log_prob(self, u: jax.Array) -> jax.Array:
        """Log-density at a = tanh(u) of the whole mixture, for u (..., D)."""
        return self.unsquashed_log_prob(u) - jnp.sum(_log_tanh_slope(u), axis=-1)

    def sample_and_log_prob(self, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        """A sample (..., D) and its log-probability under the whole mixture."""
        u = self.pre_tanh_sample(key)
        return jnp.tanh(u), self.pre_tanh_log_prob(u)

    def pre_tanh_sample(self, key: jax.Array) -> jax.Array:
        """A sample of the whole mixture before tanh (..., D)."""
        component_key, noise_key = jax.random.split(key)
        k = jax.random.categorical(component_key, self.logits)
        return take_component(self.sample_components(noise_key), k)

    def sample(self, key: jax.Array) -> jax.Array:
        return jnp.tanh(self.pre_tanh_sample(key))

    def mode(self) -> jax.Array:
        """tanh of the mean of the heaviest component."""
        return jnp.tanh(take_component(self.mean, self.logits.argmax(axis=-1)))

    def densest_mean(self) -> jax.Array:
        """tanh of the component's mean at which the mixture is densest.

        Density is taken before tanh, as in `mode` and in that of `TanhNormal`: after it, density
        piles up at the edges of the box, and a wide component would win by its tails.

        >>> mean, log_std = jnp.array([[-1.0], [1.0]]), jnp.array([[-3.0], [0.0]])
        >>> TanhMixture(jnp.array([0.0, 1.0]), mean, log_std).densest_mean().tolist()
        [-0.762]
        """
        means = jnp.moveaxis(self.mean, -2, 0)
        density = jax.vmap(self.unsquashed_log_prob)(means)
        return jnp.tanh(take_component(self.mean, density.argmax(axis=0)))

    def log_prob(self, action: jax.Array) -> jax.Array:
        edge = 1 - jnp.finfo(action.dtype).eps
        return self.pre_tanh_log_prob(jnp.arctanh(jnp.clip(action, -edge, edge)))

    def joint_kl(self, other: TanhMixture) -> tuple[jax.Array, jax.Array]:
        """KL(self || other) of component and action in two parts (...), as trust regions hold them.

        First that by weights and means, with the deviations of `self`; then that by deviations,
        with its weights and means. Where but one of these has changed it is exact; for actions
        alone, whose component is not seen, it is no less than KL (the data-processing inequality).

        >>> start = TanhMixture(jnp.zeros(1), jnp.zeros((1, 1)), jnp.zeros((1, 1)))
        >>> [float(x) for x in start.joint_kl(start._replace(mean=jnp.ones((1, 1))))]
        [0.5, 0.0]
        """
        log_weights = jax.nn.log_softmax(self.logits)
        weights = jnp.exp(log_weights)
        normals = Normal(self.mean, self.log_std)
        by_weights = log_weights - jax.nn.log_softmax(other.logits)
        by_means = normals.kl(Normal(other.mean, self.log_std))
        by_stds = normals.kl(Normal(self.mean, other.log_std))
        return (weights * (by_weights + by_means)).sum(axis=-1), (weights * by_stds).sum(axis=-1)


def take_component(x: jax.Array, k: jax.Array) -> jax.Array:
    """Row k (...) of x (..., K, D), shape (..., D).

    >>> take_component(jnp.array([[1.0, 2.0], [3.0, 4.0]]), jnp.array(1)).tolist()
    [3.0, 4.0]
    """
    return jnp.take_along_axis(x, k[..., None, None], axis=-2)[..., 0, :]
