"""The loop of sequence policies: prompts, answers to each, a verifier, advantages, a lesson."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax
from jax import lax

from jaxrl import spaces
from jaxrl.agent import Agent, Policy, Tag, derive, memoryless, static, traced
from jaxrl.parts.distributions import Categorical
from jaxrl.parts.optimize import clipped_adam, copy_of, minibatch_epochs
from jaxrl.parts.sequence_networks import (
    MOST_ROWS,
    Gru,
    Outputs,
    Table,
    Transformer,
    number_of_rows,
)
from jaxrl.parts.sequences import (
    Verdict,
    answer_mask,
    best_of,
    distinct,
    kl_estimate,
    masked_mean,
    repeated,
)

TASK = ("prompt", "verify", "demonstration", "prompt_length", "answer_length", "end_token")
PRETRAINING = ("pretraining_accuracy", "pretraining_learning_rate")


class Task(Protocol):
    """What the loop asks of an environment, beside the interface that all agents need.

    Observations are one-hot rows of the P prompt tokens and of the answer so far (P + L, V), zeros
    where nothing is written yet; actions are tokens.
    """

    prompt_length: int  # P
    answer_length: int  # L
    end_token: int  # that ends an answer before L tokens; -1 where none does

    def prompt(self, key: jax.Array, params: Any) -> Any:
        """Draw a prompt, int32 (P,)."""

    def verify(self, prompt: Any, answer: jax.Array, params: Any) -> Verdict:
        """What an answer, int32 (L,), is worth."""

    def demonstration(self, key: jax.Array, prompt: Any, params: Any) -> jax.Array:
        """A right answer, int32 (L,)."""


class SequenceState(NamedTuple):
    key: jax.Array  # the run's root key; never changes
    params: Any
    opt_state: Any
    reference: Any  # the parameters at the start, which `reference_kl` is measured to
    memory: Any  # what a method keeps between iterations: a probe, a pool; () without


class Answers(NamedTuple):
    """Answers (N, G, ...) to N prompts, or flattened (B, ...).

    Attributes:
        prompt: int32 (..., P).
        tokens: int32 (..., L); after the end of an answer they are all the end token.
        mask: (..., L), 1 for the tokens that were chosen, with the end token, 0 after it.
        log_prob, entropy: (..., L), of the policy that wrote them.
        reference_log_prob: (..., L), of the policy at the start.
        verdict: of the verifier, (...).
    """

    prompt: Any
    tokens: jax.Array
    mask: jax.Array
    log_prob: jax.Array
    entropy: jax.Array
    reference_log_prob: jax.Array
    verdict: Verdict


class Batch(NamedTuple):
    """Answers (B, ...) and the advantages of their tokens (B, L)."""

    answers: Answers
    advantage: jax.Array


class Sequence(Agent):
    """Each iteration writes `group_size` answers to each of `num_prompts` prompts and learns.

    A subclass implements `advantages` and `loss`; one that does not learn from advantages overrides
    `batch` instead of the former.
    """

    num_prompts: int = static(64, "[1, inf)", "prompts per iteration")
    group_size: int = static(8, "[2, inf)", "answers to each prompt")
    num_epochs: int = static(1, "[1, inf)", "passes over the answers of an iteration")
    num_minibatches: int = static(1, "[1, inf)", "gradient steps per pass; divides the answers")
    learning_rate: float = traced(3e-3, "(0, inf)", "Adam's step size")
    max_grad_norm: float = traced(1.0, "(0, inf]", "global norm that gradients are clipped to")
    temperature: float = traced(1.0, "(0, inf)", "logits are divided by it, also where it learns")
    network: str = static(
        "gru",
        ("gru", "transformer", "tabular"),
        "tabular: a row of logits for each context, of short answers with few tokens",
    )
    width: int = static(64, "[1, inf)", "of the embedding and all layers")
    layers: int = static(2, "[1, inf)", "of the transformer")
    heads: int = static(2, "[1, inf)", "of its attention; divides the width")
    pretraining_steps: int = static(
        0, "[0, inf)", "gradient steps on demonstrations before training, at most"
    )
    pretraining_accuracy: float = traced(
        0.5, "(0, 1]", "share of right answers, sampled, at which pre-training ends"
    )
    pretraining_learning_rate: float = traced(3e-3, "(0, inf)", "Adam's step size in it")

    # What a subclass provides -----------------------------------------------------------------

    def advantages(
        self, state: SequenceState, answers: Answers, key: jax.Array
    ) -> tuple[jax.Array, Any, dict[str, jax.Array]]:
        """Advantages (N, G) or, of each token, (N, G, L); the new `memory`; scalar metrics."""
        raise NotImplementedError

    def loss(
        self, params: Any, batch: Any, key: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """What a gradient step descends on a minibatch (B, ...) of `batch`, and scalar metrics."""
        raise NotImplementedError

    # What a subclass may change ---------------------------------------------------------------

    def init_memory(self, key: jax.Array) -> Any:
        """The first `memory`."""
        return ()

    def prompts(self, state: SequenceState, key: jax.Array) -> Any:
        """The prompts (N, ...) of an iteration."""
        return self.fresh_prompts(key)

    def batch(
        self, state: SequenceState, answers: Answers, key: jax.Array
    ) -> tuple[Any, Any, dict[str, jax.Array]]:
        """What to learn from: arrays (B, ...); the new `memory`; scalar metrics."""
        advantage, memory, metrics = self.advantages(state, answers, key)
        if advantage.ndim == 2:
            advantage = jnp.broadcast_to(advantage[..., None], answers.tokens.shape)
        batch = Batch(answers, lax.stop_gradient(advantage))
        flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), batch)
        return flat, memory, metrics

    def optimizer(self) -> optax.GradientTransformation:
        return clipped_adam(self.learning_rate, self.max_grad_norm)

    # Networks ---------------------------------------------------------------------------------

    def check(self) -> None:
        super().check()
        # What an exported policy has in its environment's place has spaces only: it just acts.
        is_standin = getattr(self.env, "acts_only", False)
        missing = [name for name in TASK if not hasattr(self.env, name)]
        if missing and not is_standin:
            raise ValueError(
                f"{self.name}: {spaces.name_of(self.env)} has no {missing[0]}: it learns from "
                "prompts and a verifier, as the environments sequences/... have them"
            )
        if self.steps_per_iteration % self.num_minibatches:
            raise ValueError(
                f"{self.name}: num_minibatches={self.num_minibatches} does not divide the "
                f"{self.steps_per_iteration} answers of num_prompts {self.num_prompts} x "
                f"group_size {self.group_size}"
            )
        if self.network == "transformer" and self.width % self.heads:
            raise ValueError(f"{self.name}: heads={self.heads} does not divide width={self.width}")
        if self.network == "tabular":
            rows = number_of_rows(self.vocabulary, self.length)
            if rows > MOST_ROWS:
                raise ValueError(
                    f"{self.name}: network='tabular' would have {rows:,} rows for "
                    f"{spaces.name_of(self.env)}; at most {MOST_ROWS:,} are accepted"
                )

    def unused(self) -> dict[str, str]:
        why = super().unused()
        if self.network != "transformer":
            why |= dict.fromkeys(("layers", "heads"), f"with network={self.network}")
        if self.network == "tabular":
            why["width"] = "with network=tabular"
        if not self.pretraining_steps:
            why |= dict.fromkeys(PRETRAINING, "with pretraining_steps=0")
        return why

    @property
    def vocabulary(self) -> int:
        """Tokens there are, V."""
        return spaces.action_size(self.action_space)

    @property
    def length(self) -> int:
        """Tokens of prompt and answer, P + L."""
        return self.obs_shape[0]

    def make_network(self) -> Gru | Transformer | Table:
        if self.network == "tabular":
            return Table(self.vocabulary, self.length)
        if self.network == "gru":
            return Gru(self.vocabulary, self.length, self.width)
        return Transformer(self.vocabulary, self.length, self.width, self.layers, self.heads)

    def init_params(self, key: jax.Array) -> Any:
        return self.make_network().init(key, jnp.zeros((1, self.length), jnp.int32))

    def outputs(
        self, params: Any, prompts: Any, tokens: jax.Array, read_last: bool = False
    ) -> Outputs:
        """Of given answers (B, L): logits (B, L, V) of their tokens, and hidden states.

        The hidden states (B, P + L - 1, W) are those after each token; with `read_last` also after
        the last one, (B, P + L, W).
        """
        whole = jnp.concatenate([prompts, tokens], axis=-1)
        outputs = self.make_network().apply(params, whole if read_last else whole[:, :-1])
        first = prompts.shape[-1] - 1
        logits = outputs.logits[:, first : first + tokens.shape[-1]]
        return Outputs(logits, outputs.hidden)

    def distribution(self, params: Any, prompts: Any, tokens: jax.Array) -> Categorical:
        """The policy at each token of given answers (B, L)."""
        return self.tempered(self.outputs(params, prompts, tokens).logits)

    def begin(self, params: Any, prompts: Any) -> tuple[Any, jax.Array]:
        """Read prompts (N, P): the network's memory, and the logits (N, V) of the first token."""
        network, size = self.make_network(), prompts.shape[1]

        def read(memory, token_and_place):
            return network.apply(params, memory, *token_and_place, method="read")

        places = jnp.arange(size, dtype=jnp.int32)
        memory, hidden = lax.scan(read, network.initial(len(prompts)), (prompts.T, places))
        return memory, network.apply(params, hidden[-1], method="logits")

    def advance(
        self, params: Any, memory: Any, prompts: Any, token: jax.Array, t: jax.Array
    ) -> tuple[Any, jax.Array]:
        """Read token (B,) number t of answers: the memory, and the logits (B, V) of the next."""
        network, place = self.make_network(), prompts.shape[1] + t
        memory, hidden = network.apply(params, memory, token, place, method="read")
        return memory, network.apply(params, hidden, method="logits")

    def tempered(self, logits: jax.Array) -> Categorical:
        return Categorical(logits / self.temperature)

    # Prompts and answers ----------------------------------------------------------------------

    def fresh_prompts(self, key: jax.Array, number: int | None = None) -> Any:
        """Prompts (N, ...) that the environment draws, by default `num_prompts` of them."""
        keys = jax.random.split(key, self.num_prompts if number is None else number)
        return jax.vmap(self.env.prompt, (0, None))(keys, self.env_params)

    def demonstrations(self, key: jax.Array, prompts: Any) -> jax.Array:
        """Right answers (N, L) to prompts (N, ...)."""
        keys = jax.random.split(key, len(jax.tree.leaves(prompts)[0]))
        return jax.vmap(self.env.demonstration, (0, 0, None))(keys, prompts, self.env_params)

    def verify(self, prompts: Any, tokens: jax.Array) -> Verdict:
        """The verdicts (B, ...) on answers (B, L)."""
        return jax.vmap(self.env.verify, (0, 0, None))(prompts, tokens, self.env_params)

    def sample(
        self,
        params: Any,
        prompts: Any,
        key: jax.Array | None,
        group_size: int = 1,
        length: int | None = None,
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Have `group_size` answers written to each of N prompts.

        Args:
            key: None for the likeliest token each time (greedy).
            length: of the answers; by default the environment's L.

        Returns tokens, log-probabilities and entropies (N x group_size, L), those of one prompt in
        a row. After an answer's end its tokens are the end token, and nothing else counts.
        """
        length = self.env.answer_length if length is None else length
        memory, logits = repeated(self.begin(params, prompts), group_size)
        prompts = repeated(prompts, group_size)
        shape = length, *logits.shape
        # Random numbers of all tokens at once: on a CPU, those of one cost more than the token.
        noise = jnp.zeros(shape) if key is None else Categorical.noise(key, shape)
        end = self.env.end_token

        def choose(logits, noise, ended):
            dist = self.tempered(logits)
            token = jnp.where(ended, end, dist.sample_by(noise)).astype(jnp.int32)
            chosen = token, dist.log_prob(jnp.maximum(token, 0)), dist.entropy()
            return chosen, ended | (token == end)

        def write(carry, row):
            memory, token, ended = carry
            noise, t = row
            memory, logits = self.advance(params, memory, prompts, token, t)
            chosen, ended = choose(logits, noise, ended)
            return (memory, chosen[0], ended), chosen

        first, ended = choose(logits, noise[0], jnp.zeros(logits.shape[0], bool))
        places = jnp.arange(length - 1, dtype=jnp.int32)
        rest = lax.scan(write, (memory, first[0], ended), (noise[1:], places))[1]
        joined = jax.tree.map(lambda x, xs: jnp.concatenate([x[None], xs]).T, first, rest)
        return joined

    def answers(self, state: SequenceState, prompts: Any, key: jax.Array) -> Answers:
        """`group_size` answers to each prompt, with the verdicts on them, (N, G, ...)."""
        tokens, log_prob, entropy = self.sample(state.params, prompts, key, self.group_size)
        prompts = repeated(prompts, self.group_size)
        reference = self.distribution(state.reference, prompts, tokens).log_prob(tokens)
        answers = Answers(
            prompts,
            tokens,
            answer_mask(tokens, self.env.end_token),
            log_prob,
            entropy,
            reference,
            self.verify(prompts, tokens),
        )
        return jax.tree.map(lambda x: x.reshape(-1, self.group_size, *x.shape[1:]), answers)

    # The loop ---------------------------------------------------------------------------------

    @property
    def unit(self) -> str:
        return "answers"

    @property
    def steps_per_iteration(self) -> int:
        return self.num_prompts * self.group_size

    @property
    def first_updates(self) -> int:
        return self.pretraining_steps

    def init(self, key: jax.Array) -> SequenceState:
        params = self.init_params(derive(key, Tag.INIT))
        if self.pretraining_steps and hasattr(self.env, "prompt"):
            params = self.pretrained(params, derive(key, Tag.INIT, 1))
        return self.begun(key, params)

    def begun(self, key: jax.Array, params: Any) -> SequenceState:
        """The state at the start of a run from these parameters, which are its reference too."""
        memory = self.init_memory(derive(key, Tag.INIT, 2))
        return SequenceState(key, params, self.optimizer().init(params), copy_of(params), memory)

    def step(
        self, state: SequenceState, t: jax.Array
    ) -> tuple[SequenceState, dict[str, jax.Array]]:
        prompt_key, answer_key = jax.random.split(derive(state.key, Tag.ROLLOUT, t))
        batch_key, learn_key = jax.random.split(derive(state.key, Tag.LEARN, t))
        prompts = self.prompts(state, prompt_key)
        answers = self.answers(state, prompts, answer_key)
        batch, memory, of_batch = self.batch(state, answers, batch_key)
        metrics = self.measures(state, prompts, answers) | of_batch
        params, opt_state, of_loss = self.learn(state.params, state.opt_state, batch, learn_key)
        state = SequenceState(state.key, params, opt_state, state.reference, memory)
        return state, metrics | of_loss

    def learn(
        self, params: Any, opt_state: Any, batch: Any, key: jax.Array
    ) -> tuple[Any, Any, dict[str, jax.Array]]:
        """Passes of gradient steps over a batch (B, ...): parameters, optimiser, mean metrics."""
        gradient, optimizer = jax.grad(self.loss, has_aux=True), self.optimizer()

        def update(learner, minibatch, key):
            params, opt_state = learner
            grads, metrics = gradient(params, minibatch, key)
            updates, opt_state = optimizer.update(grads, opt_state)
            return (optax.apply_updates(params, updates), opt_state), metrics

        (params, opt_state), metrics = minibatch_epochs(
            key,
            update,
            (params, opt_state),
            batch,
            self.num_epochs,
            self.num_minibatches,
            keyed=True,
        )
        return params, opt_state, jax.tree.map(jnp.mean, metrics)

    def measures(
        self, state: SequenceState, prompts: Any, answers: Answers
    ) -> dict[str, jax.Array]:
        """Metrics of an iteration's answers; every one is an episode of the environment."""
        greedy = self.verify(prompts, self.sample(state.params, prompts, None)[0])
        log_ratio = answers.log_prob - answers.reference_log_prob
        verdict = answers.verdict
        return {
            "episode_return": verdict.reward.mean(),
            "episode_length": answers.mask.sum(-1).mean(),
            "episodes": jnp.float32(verdict.reward.size),
            "accuracy": verdict.correct.mean(),
            "greedy_accuracy": greedy.correct.mean(),
            "best_of_group": verdict.reward.max(-1).mean(),
            "distinct_answers": distinct(verdict.answer).mean(dtype=jnp.float32),
            "entropy": masked_mean(answers.entropy, answers.mask),
            "reference_kl": masked_mean(kl_estimate(log_ratio, "k3"), answers.mask),
        }

    def pretrained(self, params: Any, key: jax.Array) -> Any:
        """Parameters after cross-entropy on demonstrations, up to `pretraining_accuracy`."""
        optimizer = clipped_adam(self.pretraining_learning_rate, self.max_grad_norm)

        keys = jax.random.split(key, self.pretraining_steps)

        def update(carry):
            i, params, opt_state, _ = carry
            prompt_key, right_key, answer_key = jax.random.split(keys[i], 3)
            prompts = self.fresh_prompts(prompt_key)
            tokens = self.sample(params, prompts, answer_key, self.group_size)[0]
            verdict = self.verify(repeated(prompts, self.group_size), tokens)
            going = verdict.correct.mean() < self.pretraining_accuracy
            right = self.demonstrations(right_key, prompts)
            grads = jax.grad(self.cross_entropy)(params, prompts, right)
            updates, after = optimizer.update(grads, opt_state)
            new = optax.apply_updates(params, updates), after
            old = params, opt_state
            return i + 1, *jax.tree.map(lambda x, y: jnp.where(going, x, y), new, old), going

        start = jnp.int32(0), params, optimizer.init(params), jnp.bool_(True)
        return lax.while_loop(lambda x: (x[0] < len(keys)) & x[3], update, start)[1]

    def cross_entropy(self, params: Any, prompts: Any, tokens: jax.Array) -> jax.Array:
        """Mean over the tokens of given answers (B, L), with their end, of -log pi."""
        log_prob = self.distribution(params, prompts, tokens).log_prob(tokens)
        return -masked_mean(log_prob, answer_mask(tokens, self.env.end_token))

    def adopt(self, state: Any) -> SequenceState:
        """The policy of another method's state, also as the reference; all else is fresh."""
        key = derive(getattr(state, "key", jax.random.key(0)), Tag.ADOPT)
        learnt, fresh = getattr(state, "params", None), jax.eval_shape(self.init_params, key)
        same = [
            (str(jax.tree.structure(tree)), [(x.shape, x.dtype) for x in jax.tree.leaves(tree)])
            for tree in (learnt, fresh)
        ]
        if same[0] != same[1]:
            return super().adopt(state)
        return self.begun(key, learnt)

    def evaluated(
        self, state: SequenceState, key: jax.Array, number: int = 256, k: int = 8
    ) -> dict[str, jax.Array]:
        """How good the policy is on `number` fresh prompts, of k sampled answers to each.

        Returns "greedy_accuracy" and "sampled_accuracy"; "best_at_k", the mean of the best reward
        of the k; "right_at_k", how often one of them is right; and "distinct_answers" among them.
        """
        prompt_key, answer_key = jax.random.split(key)
        prompts = self.fresh_prompts(prompt_key, number)
        greedy = self.verify(prompts, self.sample(state.params, prompts, None)[0])
        tokens = self.sample(state.params, prompts, answer_key, k)[0]
        verdict = self.verify(repeated(prompts, k), tokens)
        rewards, correct, answers = (
            x.reshape(number, k) for x in (verdict.reward, verdict.correct, verdict.answer)
        )
        return {
            "greedy_accuracy": greedy.correct.mean(),
            "sampled_accuracy": correct.mean(),
            "best_at_k": best_of(rewards, k).mean(),
            "right_at_k": best_of(correct, k).mean(),
            "distinct_answers": distinct(answers).mean(dtype=jnp.float32),
        }

    # Acting -----------------------------------------------------------------------------------

    def next_token(self, params: Any, obs: jax.Array) -> Categorical:
        """The policy at one observation (P + L, V): after what is written."""
        written = jnp.clip((obs.max(axis=-1) > 0.5).sum(), 1, self.length)
        outputs = self.make_network().apply(params, obs.argmax(axis=-1).astype(jnp.int32)[None])
        return self.tempered(outputs.logits[0, written - 1])

    def log_prob(self, state: SequenceState, obs: jax.Array, action: jax.Array) -> Any:
        return self.next_token(state.params, obs).log_prob(action)

    def policy(self, state: SequenceState, deterministic: bool = True) -> Policy:
        """The likeliest next token, or a sample."""

        @memoryless
        def policy(obs: jax.Array, key: jax.Array) -> jax.Array:
            dist = self.next_token(state.params, obs)
            return dist.mode() if deterministic else dist.sample(key)

        return policy
