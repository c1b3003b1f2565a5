"""Values of prefixes: causality to the bit, the choice of one, and the operator's fixed point."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl.parts.losses import prefix_targets
from jaxrl.parts.prefixes import PrefixCritic, best_prefix

KEY = jax.random.key(0)
H, D = 4, 2


# The critic -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def critic():
    """A jitted critic of which no parameter is 0, at five observations and three chunks each."""
    network = PrefixCritic(obs_ndim=1, width=8, layers=2, heads=2)
    obs = jax.random.normal(jax.random.key(1), (5, 3))
    chunks = jax.random.normal(jax.random.key(2), (5, 3, H, D))
    params = network.init(KEY, obs, chunks)
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(KEY, len(leaves))
    leaves = [x + 0.3 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    apply = jax.jit(
        lambda obs, chunks: network.apply(jax.tree.unflatten(tree, leaves), obs, chunks)
    )
    return apply, obs, chunks


def test_later_actions_change_no_value_of_a_prefix_to_the_bit(critic):
    apply, obs, chunks = critic
    q = np.asarray(apply(obs, chunks))
    for h in range(1, H):
        changed = np.asarray(apply(obs, chunks.at[..., h:, :].set(100.0)))
        np.testing.assert_array_equal(changed[..., :h], q[..., :h])
        assert (changed[..., h:] != q[..., h:]).all()


def test_every_action_of_a_prefix_and_the_state_count(critic):
    apply, obs, chunks = critic
    q = np.asarray(apply(obs, chunks))
    for i in range(H):
        changed = np.asarray(apply(obs, chunks.at[..., i, :].add(1.0)))
        assert (np.abs(changed - q)[..., i:] > 1e-5).all()
    assert (np.asarray(apply(obs + 1.0, chunks)) != q).all()


def test_the_order_of_actions_counts(critic):
    """Without places, attention would see a set."""
    apply, obs, chunks = critic
    turned = chunks[..., jnp.array([1, 0, 2, 3]), :]
    gap = np.abs(np.asarray(apply(obs, turned)) - np.asarray(apply(obs, chunks)))
    assert (gap[..., -1] > 1e-5).all()


def test_chunks_and_states_are_valued_one_by_one(critic):
    apply, obs, chunks = critic
    q = np.asarray(apply(obs, chunks))
    for b, n in ((0, 2), (4, 1)):
        alone = apply(
            jnp.broadcast_to(obs[b], obs.shape), jnp.broadcast_to(chunks[b, n], chunks.shape)
        )
        np.testing.assert_allclose(alone, np.broadcast_to(q[b, n], q.shape), rtol=1e-4, atol=1e-5)


# The choice -------------------------------------------------------------------------------------


@pytest.mark.parametrize("by_advantage", [False, True])
def test_the_choice_is_that_of_a_loop(by_advantage):
    q = np.random.default_rng(0).normal(size=(6, 5, 3)) + np.array([0.0, 5.0, 1.0])
    baseline = q.mean(axis=1, keepdims=True) if by_advantage else 0.0
    chosen = best_prefix(jnp.asarray(q, jnp.float32), jnp.asarray(baseline, jnp.float32))
    for b in range(6):
        scores = {
            (i, h): q[b, i, h] - (q[b, :, h].mean() if by_advantage else 0.0)
            for i, h in itertools.product(range(5), range(3))
        }
        i, h = max(scores, key=scores.get)
        assert (int(chosen.chunk[b]), int(chosen.length[b])) == (i, h)
        assert float(chosen.value[b]) == pytest.approx(q[b, i, h], rel=1e-5)
    # An offset that one length has decides by value, and not by advantage.
    assert ((np.asarray(chosen.length) == 1).all()) != by_advantage


# The operator -----------------------------------------------------------------------------------

S, A, LENGTH, GAMMA = 4, 2, 3, 0.9
SEQUENCES = list(itertools.product(range(A), repeat=LENGTH))


class Mdp:
    """Transitions (A, S, S), rewards (S, A), the last state terminal; N chunks proposed at each."""

    def __init__(self, seed=0, num_chunks=3):
        rng = np.random.default_rng(seed)
        self.transition = rng.dirichlet(np.full(S, 0.5), size=(A, S))
        self.reward = rng.normal(size=(S, A))
        self.terminal = S - 1
        self.transition[:, self.terminal] = np.eye(S)[self.terminal]
        self.reward[self.terminal] = 0.0
        self.proposed = [
            [SEQUENCES[i] for i in rng.choice(len(SEQUENCES), num_chunks, replace=False)]
            for _ in range(S)
        ]

    def model(self, s, actions):
        """Expected discounted rewards, and discounted chances (S,) of the state after."""
        chance, total = np.eye(S)[s], 0.0
        for j, a in enumerate(actions):
            total += GAMMA**j * chance @ self.reward[:, a]
            chance = chance @ self.transition[a]
        return total, GAMMA ** len(actions) * chance * (np.arange(S) != self.terminal)

    def operator(self):
        """The backup of Q (S, N, LENGTH), by the functions that the agent has.

        Every path of states under every proposed chunk is a window of one batch; means over paths
        by their chances are the operator.
        """
        paths = np.array(list(itertools.product(range(S), repeat=LENGTH)))
        rows = []
        for s, chunks in enumerate(self.proposed[:-1]):
            for actions in chunks:
                before = np.column_stack([np.full(len(paths), s), paths[:, :-1]])
                steps = np.asarray(actions)[None]
                rows.append(
                    (self.transition[steps, before, paths].prod(1), self.reward[before, steps])
                )
        chance, reward = (np.stack(x) for x in zip(*rows, strict=True))  # (S - 1) N first
        ended = paths == self.terminal
        count = np.where(ended.any(axis=1), ended.argmax(axis=1) + 1, LENGTH)
        reward = np.where(np.arange(LENGTH) < count[:, None], reward, 1e9)  # must not be read

        def many(x):
            return jnp.asarray(np.broadcast_to(x, (len(rows), *x.shape)).reshape(-1, *x.shape[1:]))

        @jax.jit
        def back_up(q):
            value = best_prefix(q).value.at[-1].set(jnp.nan)  # of the terminal state, as well
            window = reward.reshape(-1, LENGTH), many(count), many(ended)
            target = prefix_targets(*window, jnp.tile(value[paths], (len(rows), 1)), GAMMA)
            mean = jnp.einsum("cp,cph->ch", chance, target.reshape(*chance.shape, LENGTH))
            return jnp.zeros_like(q).at[:-1].set(mean.reshape(S - 1, -1, LENGTH))

        return back_up


def test_the_operator_is_a_contraction_and_its_fixed_point_the_best_adaptive_policy():
    """Against all 9^3 stationary policies that execute some prefix of a proposal at each state."""
    with jax.enable_x64(True):
        mdp, rng = Mdp(), np.random.default_rng(1)
        back_up, shape = mdp.operator(), (S, 3, LENGTH)
        for _ in range(5):
            one, other = (jnp.asarray(10 * rng.normal(size=shape)) for _ in range(2))
            gap = jnp.abs(back_up(one) - back_up(other)).max()
            assert 0 < gap <= GAMMA * jnp.abs(one - other).max()
        q = jnp.zeros(shape)
        for _ in range(250):
            q = back_up(q)
        found = np.asarray(q).reshape(S, -1).max(axis=1)

    options = [
        [mdp.model(s, actions[:h]) for actions in mdp.proposed[s] for h in range(1, LENGTH + 1)]
        for s in range(S - 1)
    ]
    best = np.full(S, -np.inf)
    for policy in itertools.product(*options):
        rewards = np.array([r for r, _ in policy] + [0.0])
        chances = np.array([p for _, p in policy] + [np.zeros(S)])
        best = np.maximum(best, np.linalg.solve(np.eye(S) - chances, rewards))
    np.testing.assert_allclose(found[:-1], best[:-1], atol=1e-8)


def corridor(slip):
    """Lengths chosen at the fixed point in a corridor with its goal at the end, and Q there.

    Where a step slips, it goes the other way; neighbours of a state want different actions, so
    that what a slip did has to be seen. All sequences are proposed everywhere.
    """
    forth = (0, 1, 1, 0, 0)  # the action that leads to the goal, of each state
    size, gamma = 6, 0.5
    move = np.zeros((A, size, size))
    move[:, -1, -1] = 1.0
    for s in range(size - 1):
        for a in range(A):
            to, other = (s + 1, max(s - 1, 0)) if a == forth[s] else (max(s - 1, 0), s + 1)
            move[a, s, to] += 1 - slip
            move[a, s, other] += slip
    value = np.zeros(size)
    for _ in range(60):
        q = np.zeros((size - 1, len(SEQUENCES), LENGTH))
        for (n, actions), s in itertools.product(enumerate(SEQUENCES), range(size - 1)):
            chance, total = np.eye(size)[s], 0.0
            for h, a in enumerate(actions):
                after = chance @ move[a]
                total += gamma**h * (after[-1] - chance[-1])  # 1 for reaching the goal
                chance = after
                q[s, n, h] = total + gamma ** (h + 1) * chance[:-1] @ value[:-1]
        value[:-1] = q.reshape(size - 1, -1).max(axis=1)
    return np.asarray(best_prefix(jnp.asarray(q, jnp.float32)).length) + 1, q


def test_chosen_prefixes_shrink_as_the_dynamics_become_noisy():
    """Without noise all lengths are worth the same; with it, every step unseen costs."""
    lengths, q = corridor(0.0)
    np.testing.assert_array_equal(lengths, LENGTH)
    by_length = q.max(axis=1)
    np.testing.assert_array_equal(by_length, by_length[:, :1].repeat(LENGTH, axis=1))
    for slip in (0.05, 0.2):
        lengths, q = corridor(slip)
        assert lengths.max() < LENGTH
        assert lengths.mean() < 0.6 * LENGTH
        assert (q.max(axis=1)[:, -1] < (1 - 1e-6) * q.max(axis=1)[:, 0]).all()
