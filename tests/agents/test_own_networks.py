"""Networks of the user's own: what they are applied to, that they learn, what does not fit."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from gymnax.environments import spaces

import agents
from agents.off_policy.sac import SAC
from agents.offline.fqe import FQE
from agents.on_policy.ppo import PPO
from agents.value_based.dqn import DQN
from agents.value_based.pqn import PQN
from jaxrl.agent import OWN
from jaxrl.training.identity import identity
from tests import configurations
from tests.probes import Match, Probe

KEY = jax.random.key(0)


class Body(nn.Module):
    """Of pixels (B, 4, 4, 2) or vectors (B, D), features (B, width)."""

    width: int = 5

    @nn.compact
    def __call__(self, obs):
        return nn.tanh(nn.Dense(self.width)(obs.reshape(len(obs), -1)))


def body(obs):
    """The same as a function."""
    return nn.tanh(nn.Dense(5)(obs.reshape(len(obs), -1)))


class Image(Probe):
    def see(self, state):
        return state.sign * jnp.ones((4, 4, 2))

    def observation_space(self, params):
        return spaces.Box(-10.0, 10.0, (4, 4, 2))


IMAGE, MATCH = Image(), Match(continuous=True)
TINY = {"num_envs": 2, "hidden_sizes": (3,), "network": Body()}
AGENTS = {
    PPO: PPO(IMAGE, IMAGE.default_params, **TINY),
    PQN: PQN(IMAGE, IMAGE.default_params, **TINY, layer_norm=False),
    DQN: DQN(IMAGE, IMAGE.default_params, **TINY),
    SAC: SAC(MATCH, MATCH.default_params, **TINY),
}


def dense(layer, x):
    return x @ np.asarray(layer["kernel"], np.float64) + np.asarray(layer["bias"], np.float64)


def test_a_body_stands_before_the_hidden_layers():
    agent = AGENTS[PPO]
    obs = jax.random.normal(KEY, (6, 2, 4, 4, 2))  # two axes of a batch
    params = agent.init_params(KEY, obs[0, 0])
    assert params["actor"]["params"].keys() == {"body", "Dense_0", "Dense_1"}
    layers = params["critic"]["params"]
    features = np.tanh(dense(layers["body"]["Dense_0"], np.asarray(obs).reshape(6, 2, -1)))
    value = dense(layers["Dense_1"], np.tanh(dense(layers["Dense_0"], features)))[..., 0]
    np.testing.assert_allclose(agent.value(params, obs), value, rtol=1e-5, atol=1e-6)


def test_sac_gives_its_critics_actions_beside_the_features():
    agent = AGENTS[SAC]
    learner = agent.init_learner(KEY, jnp.ones(1))
    obs, action = np.array([[-1.0], [2.0]], np.float32), np.array([[0.3], [-0.7]], np.float32)
    for q, critic in zip(
        agent.q_values(learner.critics, obs, action), learner.critics, strict=True
    ):
        layers = critic["params"]
        features = np.tanh(dense(layers["body"]["Dense_0"], obs))
        hidden = np.maximum(dense(layers["Dense_0"], np.hstack([features, action])), 0)
        np.testing.assert_allclose(q, dense(layers["Dense_1"], hidden)[:, 0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("cls", AGENTS)
def test_every_network_of_an_agent_has_one(cls):
    agent = AGENTS[cls].replace(total_steps=4096)
    state = jax.eval_shape(agent.init, KEY)
    networks = {PPO: 2, PQN: 1, DQN: 2, SAC: 5}[cls]  # those of targets too
    parameters = agent.learned(state)
    if cls in (DQN, SAC):
        parameters = [x for name, x in parameters._asdict().items() if not name.endswith("opt")]
    if cls is DQN:
        parameters = parameters[:2]
    paths = jax.tree_util.tree_leaves_with_path(parameters)
    bodies = [path for path, _ in paths if "'body'" in jax.tree_util.keystr(path)]
    assert len(bodies) == 2 * networks  # a kernel and a bias each


# Every agent --------------------------------------------------------------------------------------

# Agents of the registry that take no body, and why.
WITHOUT = {
    "sft": "its network reads tokens, not observations",
    "grpo": "its network reads tokens, not observations",
    **dict.fromkeys(("opd", "poise", "vpo", "gdpo", "selfplay", "maestro"), "as grpo's"),
    "xqc": "batch norm stands in every layer",
    "xqcfd": "batch norm stands in every layer",
}
WITH = [*(name for name in configurations.NAMES if name not in WITHOUT), "fqe"]


def own_network(name, network, env="continuous actions"):
    """A tiny agent with this network; FQE, which values a policy, is not in the registry."""
    if name == "fqe":
        data, probe = configurations.dataset(configurations.ENVS[env]), configurations.ENVS[env]
        discrete = env == "discrete actions"
        target = lambda obs, key: jnp.int32(1) if discrete else 0.5 * obs  # noqa: E731
        sizes = {"hidden_sizes": (4,), "batch_size": 8, "num_updates": 2}
        return FQE(probe, probe.default_params, data=data, target=target, network=network, **sizes)
    kinds = configurations.configurations(name)
    chosen = [agent for kind, agent in kinds.items() if kind.startswith(env)]
    return next(iter([*chosen, *kinds.values()])).replace(network=network)


def test_who_takes_a_body():
    for name in configurations.NAMES:
        declared = {h.name: h for h in agents.get(name).hyperparameters()}
        takes = "network" in declared and OWN in declared["network"].valid
        assert takes != (name in WITHOUT), f"{name}: let it take network=, or say why not above"


def moved(before, after):
    """Which of a state's own bodies were learnt: whether each leaf changed, by its path."""
    pairs = zip(*(jax.tree_util.tree_leaves_with_path(x) for x in (before, after)), strict=True)
    found = {jax.tree_util.keystr(path): bool((x != y).any()) for (path, x), (_, y) in pairs}
    kernels = {path: x for path, x in found.items() if "'body'" in path and "'kernel'" in path}
    return {path: x for path, x in kernels.items() if "opt" not in path and "target" not in path}


@pytest.mark.slow
@pytest.mark.usefixtures("compiled_quickly")
@pytest.mark.parametrize("name", WITH)
def test_every_agent_learns_with_a_body(name):
    agent = own_network(name, Body())
    before = jax.jit(agent.init)(KEY)

    @jax.jit
    def train(agent, state):
        return jax.lax.fori_loop(0, 4, lambda t, state: agent.step(state, t)[0], state)

    after = train(agent, before)
    bodies = moved(agent.learned(before), agent.learned(after))
    assert bodies
    assert all(bodies.values()), bodies


BOTH = ("iql", "awac", "bc", "fqe", "recurrentppo")  # kinds of actions
DISCRETE: dict[str, Any] = {}


def doubled(obs):
    return 2 * obs


def networks_of(agent, state, obs, action, noise):
    """What all networks of an agent give at observations (5, 1): actor's first, critics'."""
    learner = getattr(state, "learner", None)
    if agent.name == "recurrentppo":
        starts = jnp.zeros((1, 5), bool)
        memory = agent.make_network().initial(5)
        network = agent.make_network()
        return network.apply(state.params["network"], memory, obs[None], starts)
    if agent.name == "bc":
        return agent.make_network().apply(learner.params, obs)
    if agent.name == "fqe":
        return agent.q_value(learner.params, obs, action)
    if agent.name == "softgac":
        actor = agent.path(learner.actor, obs, noise)
    elif agent.name == "td3bc":
        actor = agent.act(learner.actor, obs)
    else:
        actor = agent.distribution(learner.actor, obs)
    values = [agent.state_values(learner.value, obs)] if agent.name == "iql" else []
    return actor, agent.q_values(learner.critics, obs, action), *values


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        *((name, {}) for name in ("mixturesac", "softgac", "cql", "td3bc")),
        ("softgac", {"critic": "twin"}),
        *((name, {}) for name in BOTH),
        *((name, DISCRETE) for name in BOTH),
    ],
)
def test_every_network_sees_what_the_body_makes(name, changes):
    """A body without parameters: the same parameters at transformed observations."""
    discrete = changes is DISCRETE
    env = "discrete actions" if discrete else "continuous actions"
    plain = own_network(name, "mlp", env).replace(**changes)
    agent = plain.replace(network=doubled)
    state = jax.jit(plain.init)(KEY)
    obs = jnp.linspace(-1.0, 2.0, 5)[:, None]
    action = jnp.arange(5) % 2 if discrete else 0.3 * obs
    noise = plain.noise(KEY, (5, 1)) if name == "softgac" else None
    compute = jax.jit(networks_of)
    actual = compute(agent, state, obs, action, noise)
    expected = compute(plain, state, 2 * obs, action, noise)
    other = compute(plain, state, obs, action, noise)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5), actual, expected)
    assert any((x != y).any() for x, y in zip(*map(jax.tree.leaves, (actual, other)), strict=True))


def test_functions_classes_and_names_are_bodies_too():
    obs = jax.random.normal(KEY, (3, 4, 4, 2))
    params, values = [], []
    for network in (Body(), Body, body, f"{__name__}:Body", f"{__name__}:body"):
        agent = AGENTS[PPO].replace(network=network)
        params.append(agent.init_params(KEY, obs[0]))
        values.append(agent.value(params[-1], obs))
    shapes = [sorted(x.shape for x in jax.tree.leaves(tree)) for tree in params]
    assert all(x == shapes[0] for x in shapes)
    for a, b in ((0, 1), (0, 3), (2, 4)):  # what is inside of a function has other names, and keys
        np.testing.assert_array_equal(values[a], values[b])


def test_modules_are_compared_by_value():
    env = Probe()
    agents = [PPO(env, env.default_params, network=Body(width)) for width in (5, 5, 6)]
    structures = [jax.tree.structure(agent) for agent in agents]
    assert structures[0] == structures[1] != structures[2]
    names = [identity(agent, [0])["network"] for agent in agents]
    assert names[0] == names[1] != names[2]
    assert "width = 5" in names[0]
    module = __name__
    assert identity(agents[0].replace(network=body), [0])["network"] == f"{module}:body"
    assert identity(agents[0].replace(network=f"{module}:body"), [0])["network"] == f"{module}:body"


class WithStatistics(nn.Module):
    @nn.compact
    def __call__(self, obs):
        return nn.BatchNorm(use_running_average=True)(obs)


class WithNoise(nn.Module):
    @nn.compact
    def __call__(self, obs):
        return nn.Dropout(0.5, deterministic=False)(obs)


class WithList(nn.Module):
    sizes: object = None

    def __call__(self, obs):
        return obs


class NeedsWidth(nn.Module):
    width: int


@pytest.mark.parametrize(
    ("network", "line"),
    [
        (lambda obs: obs @ jnp.ones((3, 2)), "fails on observations ('B', 1): TypeError: "),
        (lambda obs: obs.sum(), "makes () of three observations: features of each, (3, ...), are"),
        (lambda obs: {"a": obs}, "makes dict of three observations"),
        (
            WithStatistics(),
            "WithStatistics() holds batch_stats beside its parameters",
        ),
        (WithNoise(), "fails on observations ('B', 1): InvalidRngError: "),
        (
            WithList(np.zeros(2)),
            "WithList( sizes = array([0., 0.]) ) cannot be hashed, as a part of",
        ),
        (NeedsWidth, "is a class that NeedsWidth.__init__() missing 1 required"),
        (3, "network=3 must be of type"),
    ],
)
def test_what_does_not_fit_is_one_line(network, line):
    env = Probe()
    with pytest.raises(ValueError, match=re.escape(line)) as error:
        PPO(env, env.default_params, network=network)
    assert str(error.value).startswith("ppo: network=")
    assert "\n" not in str(error.value)
