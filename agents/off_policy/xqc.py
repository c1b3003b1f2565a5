"""XQC: Well-conditioned Optimization Accelerates Deep Reinforcement Learning (Palenicek, Vogt,
Watson, Posner, Peters, ICLR 2026, arXiv:2509.25174), with the released code's numbers.

CrossQ (Bhatt et al. 2024, arXiv:1902.05605) and CrossQ + WN (Palenicek et al. 2025,
arXiv:2502.07523) are its choices `CROSSQ` and `CROSSQ_WN`. Batch norm is plain in all of them, and
weight decay is that of the critics alone.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from jaxrl import spaces
from jaxrl.agent import Policy, memoryless, static, traced
from jaxrl.loops.learner import Learner, LearnerState
from jaxrl.parts.categorical import (
    categorical_target,
    cross_entropy,
    evenly_spaced,
    mean_of_atoms,
)
from jaxrl.parts.curvature import hessian_condition
from jaxrl.parts.distributions import TanhNormal
from jaxrl.parts.losses import td_target
from jaxrl.parts.normalize import RewardScale
from jaxrl.parts.normalized_networks import (
    NormalizedNetwork,
    decayed,
    init_network,
    joined,
    params_of,
    train_batch,
    unit_columns,
)
from jaxrl.parts.optimize import MISSING, copy_of, descend, learn_if, linear_schedule, polyak
from jaxrl.parts.replay import Batch, valid_mean
from jaxrl.parts.returns import episode_discount
from jaxrl.parts.rollout import Transition

LOG_STD_RANGE = (-10.0, 2.0)  # that the policy's log-deviation is clipped to
CROSSQ_WN: dict[str, Any] = {
    "critic": "squared",
    "batch_norm": "after",
    "weight_norm": "hidden",
    "weight_decay": 0.01,
    "normalize_rewards": False,
    "hidden_sizes": (512, 512),
    "actor_hidden_sizes": (256, 256),
}
CROSSQ = CROSSQ_WN | {
    "weight_norm": "none",
    "weight_decay": 0.0,
    "target_critics": False,
    "critic_momentum": 0.5,
}


class XQCLearner(NamedTuple):
    actor: Any  # "params", and the running moments "batch_stats"
    critics: Any  # two, likewise
    target_critics: Any  # their parameters, as targets only see batches; () without
    log_temperature: jax.Array
    actor_opt: Any
    critic_opt: Any
    temperature_opt: Any
    reward_scale: Any  # RewardScale of what was collected; () without normalize_rewards


class XQC(Learner):
    """Soft actor-critic with batch norm, unit weights and a categorical critic; continuous actions.

    Rewards are divided by the standard deviation of the discounted returns of training episodes, so
    Q, losses and temperature are in units of it.
    """

    num_updates: int = static(16, "[1, inf)", "gradient steps per iteration")
    learning_starts: int = static(5_000, "[1, inf)", "random environment steps before learning")
    learning_rate: float = traced(3e-4, "(0, inf)", "Adam's step size at the start, of all")
    learning_rate_end: float = traced(0.1, "[0, inf)", "its fraction left at the end (linear)")
    discount: str = static(
        "episode", ("episode", "fixed"), "1 - 5 / episode length within [0.95, 0.995]; or gamma"
    )
    gamma: float = traced(0.99, "[0, 1]", "discount")
    tau: float = traced(0.005, "(0, 1]", "how far the target critics move at each gradient step")
    target_critics: bool = static(
        True, None, "else the critics are their own targets, as in CrossQ"
    )
    temperature: float = traced(0.01, "(0, inf)", "weight of the entropy, at the start if learnt")
    temperature_learning_rate: float = traced(3e-4, "[0, inf)", "as learning_rate; 0: fixed")
    target_entropy: float = traced(-0.5, "(-inf, inf)", "of the policy, per action dimension")
    policy_delay: int = static(3, "[1, inf)", "gradient steps of the critic to one of the actor")
    normalize_rewards: bool = static(True, None, "by the standard deviation of discounted returns")
    critic: str = static("categorical", ("categorical", "squared"), "C51, or squared errors of Q")
    num_atoms: int = static(101, "[2, inf)", "of the categorical critic's distribution")
    value_bound: float = traced(5.0, "(0, inf)", "its returns are within +-this")
    batch_norm: str = static("before", ("before", "after"), "the activation, in each layer")
    weight_norm: str = static(
        "all", ("all", "hidden", "none"), "layers whose output columns are held at unit length"
    )
    weight_decay: float = traced(0.0, "[0, inf)", "of the critics' heads and batch norms (AdamW)")
    critic_momentum: float = traced(0.9, "[0, 1)", "Adam's b1 of the critics")
    hidden_sizes: tuple[int, ...] = static((512,) * 4, "[1, inf)", "widths of each critic")
    actor_hidden_sizes: tuple[int, ...] = static((256,) * 4, "[1, inf)", "widths of the actor")
    hessian_iterations: int = static(
        0, "[0, inf)", "of Lanczos, for the condition number of a critic's Hessian; 0: not measured"
    )
    hessian_every: int = static(1_000, "[1, inf)", "gradient steps between two measurements of it")

    # Networks ---------------------------------------------------------------------------------

    def check(self) -> None:
        super().check()
        spaces.require(self.action_space, "continuous", self.name, self.env)
        if self.discount == "episode" and not hasattr(self.env_params, "max_steps_in_episode"):
            raise ValueError(
                f"xqc: {spaces.name_of(self.env)} has no time limit, which discount='episode' "
                "follows: set discount='fixed'"
            )

    def unused(self) -> dict[str, str]:
        why = super().unused()
        if self.discount == "episode":
            why["gamma"] = "with discount=episode"
        if not self.target_critics:
            why["tau"] = "with target_critics=False"
        if self.critic == "squared":
            why |= dict.fromkeys(("num_atoms", "value_bound"), "with critic=squared")
        if not self.hessian_iterations:
            why["hessian_every"] = "with hessian_iterations=0"
        return why

    @property
    def step_discount(self) -> float | jax.Array:
        """The discount of one step of the agent."""
        if self.discount == "fixed":
            return self.gamma
        repeat = getattr(self.env, "action_repeat", 1)
        return episode_discount(self.env_params.max_steps_in_episode / repeat)

    @property
    def atoms(self) -> jax.Array:
        """The support of the categorical critic's distribution (A,)."""
        return evenly_spaced(self.value_bound, self.num_atoms)

    def make_actor(self) -> NormalizedNetwork:
        outputs = 2 * spaces.action_size(self.action_space)
        return NormalizedNetwork(
            outputs, self.actor_hidden_sizes, self.batch_norm, precision=self.precision
        )

    def make_critic(self) -> NormalizedNetwork:
        outputs = self.num_atoms if self.critic == "categorical" else 1
        return NormalizedNetwork(
            outputs, self.hidden_sizes, self.batch_norm, input_norm=True, precision=self.precision
        )

    def constrained(self, params: Any) -> Any:
        """Parameters of a network with its columns at unit length, as `weight_norm` says."""
        if self.weight_norm == "none":
            return params
        return unit_columns(params, head=self.weight_norm == "all")

    def distribution(self, actor: Any, obs: jax.Array) -> TanhNormal:
        """The policy at (normalised) observations (..., *obs), by running moments."""
        obs = obs.reshape(*obs.shape[: obs.ndim - len(self.obs_shape)], -1)
        return self.policy_of(self.make_actor().apply(actor, obs, False))

    def policy_of(self, output: jax.Array) -> TanhNormal:
        mean, log_std = jnp.split(output, 2, axis=-1)
        return TanhNormal(mean, jnp.clip(log_std, *LOG_STD_RANGE))

    def q_values(self, critics: Any, obs: jax.Array, action: jax.Array) -> jax.Array:
        """Both critics' values (2, B), by running moments."""
        inputs = critic_inputs(obs, action)
        outputs = jnp.stack([self.make_critic().apply(c, inputs, False) for c in critics])
        return self.values(outputs)

    def values(self, outputs: jax.Array) -> jax.Array:
        """Q (...) of a critic's outputs (..., A) or (..., 1)."""
        if self.critic == "squared":
            return outputs[..., 0]
        return mean_of_atoms(outputs, self.atoms)

    def rate(self, start: float | jax.Array, n: jax.Array | int) -> jax.Array:
        """A step size at gradient step n."""
        progress = jnp.asarray(n, jnp.float32) / (self.num_iterations * self.num_updates)
        return linear_schedule(start, self.learning_rate_end * start, progress)

    def optimizer(
        self, n: jax.Array | int, momentum: float | jax.Array = 0.9
    ) -> optax.GradientTransformation:
        return optax.adam(self.rate(self.learning_rate, n), b1=momentum)

    def temperature_optimizer(self, n: jax.Array | int) -> optax.GradientTransformation:
        return optax.adam(self.rate(self.temperature_learning_rate, n))

    # Init -------------------------------------------------------------------------------------

    def init_learner(self, key: jax.Array, obs: jax.Array) -> XQCLearner:
        actor_key, critic_key = jax.random.split(key)
        size = obs.size + spaces.action_size(self.action_space)
        networks = [
            init_network(self.make_actor(), actor_key, obs.size),
            *(init_network(self.make_critic(), k, size) for k in jax.random.split(critic_key)),
        ]
        actor, *critics = [x | {"params": self.constrained(x["params"])} for x in networks]
        params, scale = params_of(critics), RewardScale.of_envs(self.num_envs)
        if self.data is not None:
            done = self.data.terminated | self.data.truncated
            rewards, gamma = self.prepare(self.data.reward), self.step_discount
            scale = RewardScale.of_recorded(self.num_envs, rewards, done, gamma)
        log_temperature = jnp.log(jnp.asarray(self.temperature, jnp.float32))
        return XQCLearner(
            actor=actor,
            critics=tuple(critics),
            target_critics=copy_of(params) if self.target_critics else (),
            log_temperature=log_temperature,
            actor_opt=self.optimizer(0).init(actor["params"]),
            critic_opt=self.optimizer(0, self.critic_momentum).init(params),
            temperature_opt=self.temperature_optimizer(0).init(log_temperature),
            reward_scale=scale if self.normalize_rewards else (),
        )

    # Update -----------------------------------------------------------------------------------

    def observe(self, learner: XQCLearner, steps: Transition) -> XQCLearner:
        """Counts new rewards, which are stored as they are and scaled when they are drawn."""
        if not self.normalize_rewards:
            return learner
        done, rewards = steps.terminated | steps.truncated, self.prepare(steps.reward)
        scale = learner.reward_scale.update(rewards, done, self.step_discount)
        return learner._replace(reward_scale=scale)

    def update(
        self, learner: XQCLearner, batch: Batch, key: jax.Array, n: jax.Array
    ) -> tuple[XQCLearner, dict[str, jax.Array]]:
        critic_key, actor_key, hessian_key = jax.random.split(key, 3)
        if self.normalize_rewards:
            batch = batch._replace(reward=learner.reward_scale.scale(batch.reward))
        critic_loss, old = self.critic_loss(learner, batch, critic_key), params_of(learner.critics)
        metrics: dict[str, jax.Array] = {}
        if self.hessian_iterations:
            measure = partial(self.measure, critic_loss=critic_loss, key=hessian_key)
            _, metrics = learn_if(n % self.hessian_every == 0, measure, old, missing=MISSING)

        # Critics, each column of their weights at unit length after the step.
        params, critic_opt, loss, (moments, q_mean) = descend(
            self.optimizer(n, self.critic_momentum), critic_loss, old, learner.critic_opt
        )
        share = self.rate(self.learning_rate, n) * self.weight_decay
        params = tuple(
            self.constrained(decayed(p, o, share)) for p, o in zip(params, old, strict=True)
        )
        targets = learner.target_critics
        learner = learner._replace(
            critics=joined(params, moments),
            target_critics=polyak(targets, params, self.tau) if self.target_critics else (),
            critic_opt=critic_opt,
        )

        # Actor and temperature, at every policy_delay-th gradient step.
        def move(learner):
            return self.actor_step(learner, batch, actor_key, n)

        learner, actor_metrics = learn_if(n % self.policy_delay == 0, move, learner, MISSING)
        return learner, metrics | {"critic_loss": loss, "q_mean": q_mean} | actor_metrics

    def critic_loss(self, learner: XQCLearner, batch: Batch, key: jax.Array) -> Any:
        """The critics' loss as a function of their parameters: -> (loss, (moments, mean Q)).

        Both steps pass a network as one batch, so that its statistics are those of both.
        """
        size, temperature = len(batch.action), jnp.exp(learner.log_temperature)
        next_dist = self.distribution(learner.actor, batch.next_obs)
        next_action, next_log_prob = next_dist.sample_and_log_prob(key)
        step, next_step = (batch.obs, batch.action), (batch.next_obs, next_action)
        inputs = jnp.concatenate([critic_inputs(*step), critic_inputs(*next_step)])
        stats = [critic["batch_stats"] for critic in learner.critics]

        def joint_pass(params):
            pairs = zip(params, stats, strict=True)
            passes = [train_batch(self.make_critic(), p, m, inputs) for p, m in pairs]
            outputs = jnp.stack([outputs for outputs, _ in passes])
            return outputs[:, :size], outputs[:, size:], [moments for _, moments in passes]

        def target_of(next_outputs):
            penalty = temperature * next_log_prob
            return self.target(next_outputs, batch.reward, batch.terminated, penalty)

        fixed: Any = ()
        if self.target_critics:
            fixed = target_of(joint_pass(learner.target_critics)[1])

        def loss_fn(params):
            outputs, next_outputs, moments = joint_pass(params)
            target = fixed if self.target_critics else lax.stop_gradient(target_of(next_outputs))
            errors = self.errors(outputs, target).sum(axis=0)
            return valid_mean(errors, batch.valid), (moments, self.values(outputs).mean())

        return loss_fn

    def target(
        self, next_outputs: jax.Array, reward: jax.Array, terminated: jax.Array, penalty: jax.Array
    ) -> jax.Array:
        """Of r + gamma (1 - terminated) [min Z(s', a') - penalty], from outputs (2, B, A).

        Probabilities of atoms (B, A), or with squared errors the value (B,).
        """
        gamma = self.step_discount
        if self.critic == "categorical":
            step = reward, terminated, penalty
            return categorical_target(next_outputs, *step, gamma, self.atoms)
        next_value = self.values(next_outputs).min(axis=0) - penalty
        return td_target(reward, terminated, next_value, gamma)

    def errors(self, outputs: jax.Array, target: jax.Array) -> jax.Array:
        """Cross-entropies, or half squared errors (2, B)."""
        if self.critic == "categorical":
            return cross_entropy(outputs, target)
        return 0.5 * (self.values(outputs) - target) ** 2

    def measure(
        self, critics: Any, critic_loss: Any, key: jax.Array
    ) -> tuple[Any, dict[str, jax.Array]]:
        """The critics' parameters as they are, and the Hessian of the first one's loss."""
        first, *others = critics
        norm, condition = hessian_condition(
            lambda params: critic_loss((params, *others))[0], first, key, self.hessian_iterations
        )
        return critics, {"hessian_norm": norm, "hessian_condition": condition}

    def actor_step(
        self, learner: XQCLearner, batch: Batch, key: jax.Array, n: jax.Array
    ) -> tuple[XQCLearner, dict[str, jax.Array]]:
        """E[temperature log pi(a|s) - min Q(s, a)], and the temperature towards its entropy."""
        temperature, obs = (
            jnp.exp(learner.log_temperature),
            batch.obs.reshape(len(batch.action), -1),
        )

        def actor_loss(params):
            output, moments = train_batch(
                self.make_actor(), params, learner.actor["batch_stats"], obs
            )
            action, log_prob = self.policy_of(output).sample_and_log_prob(key)
            q = self.q_values(learner.critics, batch.obs, action).min(axis=0)
            return (temperature * log_prob - q).mean(), (moments, -log_prob.mean())

        params, actor_opt, loss, (moments, entropy) = descend(
            self.optimizer(n), actor_loss, learner.actor["params"], learner.actor_opt
        )
        target_entropy = self.target_entropy * spaces.action_size(self.action_space)
        change, temperature_opt = self.temperature_optimizer(n).update(
            entropy - target_entropy, learner.temperature_opt
        )
        learner = learner._replace(
            actor={"params": self.constrained(params), "batch_stats": moments},
            log_temperature=learner.log_temperature + change,
            actor_opt=actor_opt,
            temperature_opt=temperature_opt,
        )
        return learner, {"actor_loss": loss, "temperature": temperature, "entropy": entropy}

    # Acting -----------------------------------------------------------------------------------

    def explore(
        self, learner: XQCLearner, obs: jax.Array, key: jax.Array, progress: jax.Array
    ) -> jax.Array:
        return self.distribution(learner.actor, obs).sample(key)

    def log_prob(self, state: LearnerState, obs: jax.Array, action: jax.Array) -> jax.Array:
        obs = self.normalize(state.obs_moments, obs)
        return self.distribution(state.learner.actor, obs).log_prob(action)

    def policy(self, state: LearnerState, deterministic: bool = True) -> Policy:
        """The mode of the policy, or a sample."""

        @memoryless
        def policy(obs: jax.Array, key: jax.Array) -> jax.Array:
            dist = self.distribution(state.learner.actor, self.normalize(state.obs_moments, obs))
            return self.env_action(dist.mode() if deterministic else dist.sample(key))

        return policy


def critic_inputs(obs: jax.Array, action: jax.Array) -> jax.Array:
    """[obs, action] (B, ...) in a row."""
    return jnp.concatenate([obs.reshape(len(action), -1), action], axis=-1)
