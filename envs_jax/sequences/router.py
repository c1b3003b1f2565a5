"""Routing: which expert to ask, how often, and when to stop."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from gymnax.environments import spaces

from envs_jax.sequences.base import SequenceEnv, drawn, number
from jaxrl.parts.sequences import Verdict
from jaxrl.spaces import parts_of


@struct.dataclass
class Params:
    """E experts, D domains.

    Attributes:
        accuracy: (E, D), how often an expert is right in a domain.
        features: (E, D), a noisy profile of its skill, which is what a policy sees of it.
        present: (E,) bool, whether it can be asked; one that cannot says nothing and costs as much.
        cost: of each question.
        task_noise: standard deviation of a task's embedding about its domain.
        last: 1: the last answer counts, 0: that of the majority (of two the later one).
        max_steps_in_episode: actions.
    """

    accuracy: jax.Array
    features: jax.Array
    present: jax.Array
    cost: jax.Array
    task_noise: jax.Array
    last: jax.Array
    max_steps_in_episode: jax.Array


@struct.dataclass
class Task:
    """What stands for a prompt; a policy sees of `said` only what it has asked for."""

    embedding: jax.Array  # (D,), of its domain
    said: jax.Array  # int32 (L, E), what each expert answers when asked in that turn; -1 is nothing
    truth: jax.Array  # int32 ()


class Router(SequenceEnv):
    """A task -> up to L calls of experts, each of which answers; then stop.

    Token e asks expert e, token E stops, and so does the last call. Reward 1 where the majority of
    the answers (or the last) is right, minus `cost` for each call.

    Rewards of the channels: right or not; minus the costs.

    Args:
        experts: E. Each of the default ones is best in one domain.
        domains: D.
        choices: an expert who is wrong gives one of the other answers.
        turns: L.
    """

    id = "sequences/router"
    prompt_length = 0

    def __init__(self, experts: int = 6, domains: int = 4, choices: int = 4, turns: int = 4):
        for what, count, least in (
            ("experts", experts, 1),
            ("domains", domains, 1),
            ("choices", choices, 2),
            ("turns", turns, 1),
        ):
            if count < least:
                raise ValueError(f"{self.id}: {what}={count} is less than {least}")
        self.experts, self.domains, self.choices, self.turns = experts, domains, choices, turns
        self.vocabulary, self.answer_length, self.end_token = experts + 1, turns, experts

    @property
    def default_params(self) -> Params:
        expert, domain = jnp.arange(self.experts)[:, None], jnp.arange(self.domains)
        is_home = expert % self.domains == domain
        accuracy = jnp.where(is_home, 0.9, 0.3).astype(jnp.float32)
        noise = jax.random.normal(jax.random.key(0), accuracy.shape, jnp.float32)
        return Params(
            accuracy=accuracy,
            features=accuracy + 0.05 * noise,
            present=jnp.ones(self.experts, bool),
            cost=jnp.float32(0.02),
            task_noise=jnp.float32(0.1),
            last=jnp.float32(0),
            max_steps_in_episode=jnp.int32(self.turns),
        )

    def prompt(self, key: jax.Array, params: Params) -> Task:
        domain_key, noise_key, truth_key, right_key, wrong_key = jax.random.split(key, 5)
        domain = drawn(domain_key, (), 0, self.domains)
        noise = jax.random.normal(noise_key, (self.domains,), jnp.float32)
        embedding = jax.nn.one_hot(domain, self.domains, dtype=jnp.float32)
        truth = drawn(truth_key, (), 0, self.choices)
        shape = self.turns, self.experts
        chance = jax.random.uniform(right_key, shape, jnp.float32)
        is_right = chance < params.accuracy[:, domain]
        wrong = (truth + drawn(wrong_key, shape, 1, self.choices)) % self.choices
        said = jnp.where(params.present, jnp.where(is_right, truth, wrong), -1)
        return Task(embedding + params.task_noise * noise, said.astype(jnp.int32), truth)

    def history(self, task: Task, tokens: jax.Array, time: jax.Array) -> dict[str, jax.Array]:
        """What has been asked and answered in the first `time` turns.

        Returns "asked" (L, E) and "said" (L, choices), one-hot rows of the turns that were calls;
        "votes" (choices,), and "last" (choices,), one-hot.
        """
        turns = jnp.arange(self.turns)
        is_call = (turns < time) & (jnp.cumsum(tokens == self.end_token) == 0)
        asked = jax.nn.one_hot(tokens, self.experts, dtype=jnp.float32) * is_call[:, None]
        answers = task.said[turns, jnp.minimum(tokens, self.experts - 1)]
        said = jax.nn.one_hot(answers, self.choices, dtype=jnp.float32) * is_call[:, None]
        newest = jnp.where(said.sum(-1) > 0, turns, -1).argmax()
        return {"asked": asked, "said": said, "votes": said.sum(0), "last": said[newest]}

    def verify(self, prompt: Task, answer: jax.Array, params: Params) -> Verdict:
        seen = self.history(prompt, answer, jnp.int32(self.turns))
        weight = (1 - params.last) * seen["votes"] + 0.5 * seen["last"]
        decided = jnp.where(weight.max() > 0, weight.argmax(), -1).astype(jnp.int32)
        correct = number(decided == prompt.truth)
        costs = params.cost * seen["asked"].sum()
        rewards = jnp.stack([correct, -costs])
        return Verdict(correct - costs, correct, rewards, decided)

    def demonstration(self, key: jax.Array, prompt: Task, params: Params) -> jax.Array:
        """One call of the expert who is most often right where the task seems to belong, then stop.

        As any router, it may be wrong.
        """
        skill = jnp.where(params.present, params.accuracy[:, prompt.embedding.argmax()], -1)
        stop = jnp.full(self.turns, self.end_token, jnp.int32)
        return stop.at[0].set(skill.argmax().astype(jnp.int32))

    def observe(self, prompt: Task, tokens: jax.Array, time: jax.Array, params: Params) -> Any:
        """One vector: see `parts_of`, which takes it apart."""
        seen = self.history(prompt, tokens, time)
        parts = {
            "embedding": prompt.embedding,
            "turn": jax.nn.one_hot(time, self.turns + 1, dtype=jnp.float32),
            **seen,
            "features": params.features,
            "present": params.present.astype(jnp.float32),
        }
        return jnp.concatenate([parts[name].reshape(-1) for name in self.parts])

    @property
    def parts(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the parts of an observation, in their order."""
        return {
            "embedding": (self.domains,),
            "turn": (self.turns + 1,),
            "asked": (self.turns, self.experts),
            "said": (self.turns, self.choices),
            "votes": (self.choices,),
            "last": (self.choices,),
            "features": (self.experts, self.domains),
            "present": (self.experts,),
        }

    def parts_of(self, obs: jax.Array) -> dict[str, jax.Array]:
        """The parts of observations (..., D) by name, each in its shape."""
        return parts_of(self, obs)

    def observation_space(self, params: Any) -> spaces.Box:
        size = sum(map(math.prod, self.parts.values()))
        return spaces.Box(-jnp.inf, jnp.inf, (size,))
