"""The agent contract: declared hyper-parameters, validation, the pytree."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import agents
from agents.on_policy.ppo import PPO
from envs_jax import datasets
from envs_jax.diffusion import Ring
from envs_jax.sequences import Dsl, Router, Sum
from jaxrl import Agent, static, traced
from jaxrl.agent import Tag, derive
from jaxrl.loops.sequence import Sequence
from jaxrl.training.sweep import override
from tests.helpers import Toy
from tests.probes import ActionChoice

# Agents that take no discrete actions.
CONTINUOUS = ["sac", "td3", "mixturesac", "softgac", "wpo", "qed", "xqc", "xqcfd", "cql", "td3bc"]
CONTINUOUS += ["acsac"]
ENV = ActionChoice()
PARAMS = ENV.default_params


def ppo(**changes):
    return PPO(ENV, PARAMS, **{"num_envs": 2, "num_steps": 4, "num_minibatches": 2, **changes})


def test_hyperparameters_say_what_was_declared():
    declared = {h.name: h for h in PPO.hyperparameters()}
    assert "env" not in declared
    assert "env_params" not in declared
    rate = declared["learning_rate"]
    assert (rate.kind, rate.type, rate.default, rate.valid) == ("traced", float, 3e-4, "(0, inf)")
    envs = declared["num_envs"]
    assert (envs.kind, envs.type, envs.valid) == ("static", int, "[1, inf)")
    assert declared["hidden_sizes"].type is tuple
    assert declared["network"].valid == ("mlp", "cnn", "module:NAME")
    assert declared["normalize_rewards"].type is bool
    assert next(iter(declared)) == "total_steps"


@pytest.mark.parametrize("name", agents.AGENTS)
def test_every_default_is_valid_and_documented(name):
    cls = agents.get(name)
    assert cls.name == name
    for hyperparameter in cls.hyperparameters():
        hyperparameter.check(hyperparameter.default, name)
        assert hyperparameter.doc
        assert hyperparameter.kind in ("traced", "static")
        if hyperparameter.kind == "traced":
            assert hyperparameter.type is float
    env = ActionChoice(continuous=name in CONTINUOUS)
    if issubclass(cls, Sequence):
        env = {"selfplay": Dsl(), "maestro": Router()}.get(name, Sum())
    if name == "guidance":
        env = Ring()
    data = datasets.blank(env, env.default_params).dataset(env, env.default_params)
    options = {"data": data} if hasattr(cls, "data") else {}
    cls(env, env.default_params, **options)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"learning_rate": -1.0}, "ppo: learning_rate=-1.0 is outside (0, inf)"),
        ({"learning_rate": 0}, "ppo: learning_rate=0 is outside (0, inf)"),
        ({"learning_rate": float("inf")}, "ppo: learning_rate=inf is outside (0, inf)"),
        ({"gamma": float("nan")}, "ppo: gamma=nan is outside [0, 1]"),
        ({"gamma": 1.01}, "ppo: gamma=1.01 is outside [0, 1]"),
        ({"gamma": "high"}, "ppo: gamma='high' must be of type float"),
        ({"gamma": True}, "ppo: gamma=True must be of type float"),
        ({"gamma": (0.9,)}, "ppo: gamma=(0.9,) must be of type float"),
        ({"num_envs": 0}, "ppo: num_envs=0 is outside [1, inf)"),
        ({"num_envs": 2.0}, "ppo: num_envs=2.0 must be of type int"),
        ({"num_envs": True}, "ppo: num_envs=True must be of type int"),
        ({"network": "rnn"}, "ppo: network='rnn' is not one of mlp, cnn"),
        ({"network": 1}, "ppo: network=1 must be of type str"),
        ({"normalize_rewards": 1}, "ppo: normalize_rewards=1 must be of type bool"),
        ({"hidden_sizes": (64, 0)}, "ppo: hidden_sizes=(64, 0) is outside [1, inf)"),
        ({"hidden_sizes": 64}, "ppo: hidden_sizes=64 must be of type tuple of int"),
        ({"hidden_sizes": (6.5,)}, "ppo: hidden_sizes=(6.5,) must be of type tuple of int"),
        ({"total_steps": 2**31}, "ppo: total_steps=2147483648 is outside [1, 2147483647]"),
        ({"total_steps": 7}, "ppo: total_steps=7 is smaller than one iteration of 8 environment"),
        ({"num_minibatches": 3}, "ppo: num_minibatches=3 does not divide the batch of 8 = num_e"),
        ({"network": "cnn"}, "ppo: network='cnn' needs (H, W, C) observations, not (1,)"),
    ],
)
def test_bad_values_are_refused_in_one_line(changes, line):
    for construct in (ppo, ppo().replace):
        with pytest.raises(ValueError, match="^" + re.escape(line)) as error:
            construct(**changes)
        assert "\n" not in str(error.value)


def test_ends_of_closed_intervals_are_accepted():
    agent = ppo(gamma=1.0, gae_lambda=0, value_clip_range=float("inf"), max_grad_norm=float("inf"))
    assert agent.gae_lambda == 0
    assert ppo(hidden_sizes=()).hidden_sizes == ()


def test_unknown_fields_are_refused_with_the_nearest_names():
    with pytest.raises(ValueError, match=r"ppo has no hyper-parameter 'learning_rat'; did you mea"):
        override(ppo(), {"learning_rat": 1.0})
    with pytest.raises(ValueError, match=r"has no parameter 'bonu'; did you mean bonus\?"):
        override(ppo(), {"env.bonu": 1.0})
    with pytest.raises(ValueError, match=r"unknown agent 'pqm'; did you mean pqn\?"):
        agents.get("pqm")


def test_environment_parameters_keep_their_type():
    agent = override(ppo(), {"env.bonus": 2, "env.max_steps_in_episode": 7})
    assert agent.env_params.bonus.dtype == jnp.float32
    assert agent.env_params.max_steps_in_episode.dtype == jnp.int32
    assert agent.env_params.bonus == 2
    for value in (0.5, "long", (1, 2)):
        with pytest.raises(ValueError, match=r"^env.max_steps_in_episode=.* must be int32"):
            override(ppo(), {"env.max_steps_in_episode": value})


def test_agents_are_pytrees_of_their_traced_fields():
    agent = ppo(gamma=0.5)
    leaves = jax.tree_util.tree_leaves_with_path(agent)
    names = [jax.tree_util.keystr(path) for path, _ in leaves]
    assert ".gamma" in names
    assert ".env_params.bonus" in names
    assert ".num_envs" not in names
    again = jax.tree.unflatten(jax.tree.structure(agent), jax.tree.leaves(agent))
    assert type(again) is PPO
    assert again == agent
    assert hash(jax.tree.structure(agent)) == hash(jax.tree.structure(ppo(gamma=0.9)))
    assert jax.tree.structure(agent) == jax.tree.structure(ppo(gamma=0.9))
    assert jax.tree.structure(agent) != jax.tree.structure(ppo(num_envs=4))


def test_rebuilding_does_not_check_but_replace_does():
    agent = ppo()
    negative = jax.tree.map(lambda x: -jnp.ones(3), agent)  # shapes and values are out of range
    assert negative.gamma.shape == (3,)
    assert jax.tree.map(lambda x: "anything", agent).gamma == "anything"
    with pytest.raises(ValueError, match="gamma=2 is outside"):
        agent.replace(gamma=2)
    assert agent.replace(gamma=0.25).gamma == 0.25
    assert agent.gamma == 0.99


def test_agents_are_frozen():
    with pytest.raises(AttributeError):
        ppo().gamma = 0.5


def test_traced_values_are_tracers_and_static_ones_are_not():
    @jax.jit
    def f(agent):
        assert isinstance(agent.gamma, jax.core.Tracer)
        assert isinstance(agent.num_envs, int)
        return agent.replace(gamma=agent.gamma * 2).gamma * agent.num_envs

    assert f(ppo(gamma=0.5)) == 2
    np.testing.assert_allclose(
        jax.vmap(lambda g: f(ppo().replace(gamma=g)))(jnp.array([0.1, 0.2])), [0.4, 0.8], rtol=1e-6
    )


def test_a_new_agent_is_a_class_with_declared_fields():
    class Mine(Agent):
        speed: float = traced(1.0, "[0, 1]", "of it")
        size: int = static(2, None, "of it")

        @property
        def steps_per_iteration(self) -> int:
            return 10

    agent = Mine(ENV, PARAMS, total_steps=95)
    assert Mine.name == "mine"
    assert agent.num_iterations == 9
    assert [h.name for h in Mine.hyperparameters()] == ["total_steps", "speed", "size"]
    with pytest.raises(ValueError, match=r"^mine: speed=2 is outside \[0, 1\]$"):
        Mine(ENV, PARAMS, speed=2)


def test_progress_is_the_share_of_steps_taken():
    agent = Toy(ENV, PARAMS, total_steps=84)  # 10 iterations of 8 steps, and 4 that remain
    assert agent.num_iterations == 10
    np.testing.assert_allclose(agent.progress(None, jnp.arange(3)), [0, 8 / 84, 16 / 84])
    longest = Toy(ENV, PARAMS, total_steps=2**31 - 1)
    share = longest.progress(None, jnp.asarray(longest.num_iterations - 1))
    assert 0.99 < share <= 1


def test_keys_differ_by_purpose_and_iteration():
    key = jax.random.key(0)
    keys = [derive(key, tag, t) for tag in Tag for t in range(3)]
    words = {tuple(np.asarray(jax.random.key_data(k))) for k in keys}
    assert len(words) == len(keys)


@pytest.mark.parametrize("wrong", [{"hidden_sizes": [8, 8]}, {"num_envs": None}, {"gamma": None}])
def test_lists_and_none_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        PPO(ENV, PARAMS, **wrong)


class Careful(Toy):
    """Has no use for `size` unless it is `big`; learns in rounds."""

    big: bool = static(False, None, "whether `size` matters")
    size: int = static(3, "[1, inf)", "of it")
    weight: float = traced(1.0, "[0, 1]", "of it")

    def unused(self):
        return {} if self.big else {"size": "without big=True", "weight": "without big=True"}

    @property
    def unit(self):
        return "rounds"


def test_what_has_no_effect_is_refused_when_changed():
    line = r"^careful: size=4 has no effect without big=True; leave it out$"
    for refused in (lambda: Careful(ENV, PARAMS, size=4), lambda: careful().replace(size=4)):
        with pytest.raises(ValueError, match=line):
            refused()
    assert careful(size=3).size == 3  # its default
    assert careful(big=True, size=4).size == 4
    with pytest.raises(ValueError, match=r"^careful: weight=0.5 has no effect without big=True"):
        careful(weight=0.5)
    # What a program passes through is not known, nor looked at.
    jax.eval_shape(lambda weight: careful().replace(weight=weight).weight, jnp.ones(()))


def careful(**changes):
    return Careful(ENV, PARAMS, **changes)


def test_the_unit_of_steps_is_named():
    with pytest.raises(ValueError, match=r"is smaller than one iteration of 8 rounds$"):
        careful(total_steps=7)
    assert ppo().unit == "environment steps"


def test_what_the_engine_asks_of_a_state():
    agent = Toy(ENV, PARAMS)
    state = agent.init(jax.random.key(0))
    assert agent.actors(state) is state.actors
    other = agent.with_actors(state, "others")
    assert (other.actors, other.weight) == ("others", state.weight)
    assert agent.without_replay(state) is state
    assert agent.actors(()) is None
    assert Agent.learned(agent, state) == ()  # it has no `params`
    trained = jax.eval_shape(ppo().init, jax.random.key(0))
    assert ppo().learned(trained).keys() == {"actor", "critic"}
