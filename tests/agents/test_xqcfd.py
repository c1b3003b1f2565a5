"""XQCfD: cloning, a deviation that rises off the demonstrations, the divergence from the clone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agents.off_policy.xqcfd import XQCfD
from jaxrl.loops.sources import Mixed
from jaxrl.parts.replay import Batch
from tests.helpers import assert_same
from tests.probes import Match
from tests.records import data_of

KEY = jax.random.key(0)
ENV = Match(continuous=True)
SMALL = {
    "num_envs": 4,
    "num_updates": 2,
    "batch_size": 32,
    "total_steps": 400,
    "buffer_size": 64,
    "hidden_sizes": (6, 5),
    "actor_hidden_sizes": (16, 16),
    "num_atoms": 7,
    "clone_steps": 1000,
    "learning_rate": 3e-3,
    "min_std": 0.02,
}
HEAD = {"num_features": 256, "bottleneck": 4, "length_scale": 20.0}


def demonstrations(size=400):
    """Observations near -1 and 1, actions near half of their sign, with some noise."""
    rng = np.random.default_rng(0)
    obs = rng.choice([-1.0, 1.0], size) + 0.1 * rng.normal(size=size)
    action = 0.5 * np.sign(obs) + 0.1 * rng.normal(size=size)
    return data_of(ENV, obs[:, None], action[:, None], rng.normal(size=size))


def make(**changes):
    head = HEAD if changes.get("stationary_head", True) else {}
    options = {"data": demonstrations()} | SMALL | head | changes
    return XQCfD(ENV, ENV.default_params, **options)


@pytest.fixture(scope="module")
def cloned():
    agent = make()
    return agent, jax.jit(agent.init_learner)(KEY, jnp.ones(1))


def steps(size=8, seed=0):
    rng = np.random.default_rng(seed)
    return Batch(
        obs=jnp.asarray(rng.normal(size=(size, 1)), jnp.float32),
        action=jnp.asarray(rng.uniform(-1, 1, (size, 1)), jnp.float32),
        reward=jnp.asarray(rng.normal(size=size), jnp.float32),
        terminated=jnp.zeros(size, bool),
        next_obs=jnp.asarray(rng.normal(size=(size, 1)), jnp.float32),
        valid=jnp.ones(size, bool),
    )


@pytest.fixture(scope="module")
def learnt(cloned):
    """Learners before and after gradient steps 0 to 3."""
    agent, learner = cloned
    learners, update = [learner], jax.jit(agent.update)
    for n in range(4):
        key = jax.random.fold_in(KEY, n)
        learners.append(update(learners[-1], steps(8, n), key, jnp.int32(n))[0])
    return learners


# Cloning ------------------------------------------------------------------------------------------


def test_the_clone_does_what_was_demonstrated(cloned):
    """Of [-2, 2] half the sign is a quarter within [-1, 1]; its noise there is 0.05."""
    agent, learner = cloned
    dist = agent.unsquashed(learner, learner.actor, jnp.array([[-1.0], [1.0]]))
    np.testing.assert_allclose(jnp.tanh(dist.mean[:, 0]), [-0.25, 0.25], atol=0.03)
    assert (jnp.exp(dist.log_std) < 0.09).all()


def test_the_deviation_rises_off_the_demonstrations(cloned):
    agent, learner = cloned
    near = agent.unsquashed(learner, learner.actor, jnp.array([[-1.0], [1.0]]))
    far = agent.unsquashed(learner, learner.actor, jnp.array([[-60.0], [-30.0], [30.0], [60.0]]))
    assert jnp.exp(far.log_std).min() > 1.4 * jnp.exp(near.log_std).max()
    at_first = agent.init_actor(KEY, 1)[0]
    assert (at_first["log_variance"] == 2 * np.log(agent.max_std)).all()  # the greatest


def test_the_fixed_features_and_the_clone_stay(cloned, learnt):
    _, learner = cloned
    for name in ("features", "prior", "moments"):
        assert_same(getattr(learnt[-1], name), getattr(learner, name))
    assert_same(learner.actor, learner.prior)
    with pytest.raises(AssertionError):
        assert_same(learnt[-1].actor, learner.actor)


def test_columns_have_unit_length_after_every_step(learnt):
    for learner in learnt:
        for params in (learner.actor["network"], learner.critic["params"]):
            for layer in params.values():
                if "kernel" in layer:
                    lengths = jnp.linalg.norm(layer["kernel"], axis=0)
                    np.testing.assert_allclose(lengths, 1, rtol=1e-5)


# Learning -----------------------------------------------------------------------------------------


def test_half_of_each_batch_is_demonstrated(cloned):
    agent, _ = cloned
    source = agent.source()
    assert isinstance(source, Mixed)
    assert source.share == 0.5
    assert agent.collects
    assert not source.collected.learning_starts  # it acts by the clone from the start


def loss_of(agent, learner, batch):
    return float(jax.jit(agent.critic_step)(learner, batch, KEY, jnp.int32(1))[1]["critic_loss"])


def test_the_clone_itself_pays_nothing_and_what_departs_from_it_does(cloned):
    """The divergence takes the entropy's place in the target, at the temperature's weight."""
    agent, learner = cloned
    hot = learner._replace(log_temperature=learner.log_temperature + 3)
    assert loss_of(agent, learner, steps()) == pytest.approx(loss_of(agent, hot, steps()), rel=1e-5)
    shifted = learner.actor | {"mean": learner.actor["mean"] + 0.05}
    losses = [loss_of(agent, x._replace(actor=shifted), steps()) for x in (learner, hot)]
    assert abs(losses[0] - losses[1]) > 1e-3


def test_the_temperature_follows_the_budget(cloned):
    """Down at the clone, where the divergence is 0; up where it is above the budget."""
    agent, learner = cloned
    step = jax.jit(agent.actor_step)
    after, metrics = step(learner, steps(), KEY, jnp.int32(0))
    assert metrics["prior_kl"] == pytest.approx(0, abs=1e-5)
    assert after.log_temperature < learner.log_temperature
    shifted = learner._replace(actor=learner.actor | {"mean": learner.actor["mean"] + 0.5})
    after, metrics = step(shifted, steps(), KEY, jnp.int32(0))
    assert metrics["prior_kl"] > agent.kl_budget
    assert after.log_temperature > learner.log_temperature


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"data": None}, "xqcfd: learns from demonstrations: give it --data FILE"),
        ({"stationary_head": False, "max_std": 0.5}, "max_std=0.5 has no effect with stationary"),
        ({"data_share": 1.0}, r"data_share=1.0 is outside \(0, 1\)"),
    ],
)
def test_refused(changes, line):
    with pytest.raises(ValueError, match=line):
        make(**changes)
