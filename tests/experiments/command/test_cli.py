"""The `jaxrl` command: bad input, folders it leaves alone, how fast it answers."""

import runpy
import subprocess
import sys
import time

import pytest

import jaxrl
from experiments.command.cli import main

JAXRL = [sys.executable, "-m", "experiments.command.cli"]


def refuse(*args, **kwargs):
    raise AssertionError("bad input reached the engine")


BAD_INPUT = [
    ("train pp CartPole-v1", "unknown agent 'pp'; did you mean ppo"),
    ("train ppo CartPole", "unknown environment 'CartPole'; did you mean CartPole-v1"),
    ("train ppo CartPole-v1 learning_rat=1", "no hyper-parameter 'learning_rat'; did you mean lea"),
    ("train ppo CartPole-v1 lr=1", "no hyper-parameter 'lr'; did you mean learning_rate?"),
    ("train ppo CartPole-v1 zzz=1", "no hyper-parameter 'zzz'; `jaxrl list ppo` shows all"),
    ("train ppo CartPole-v1 env.gravty=1", "unknown option 'gravty'"),
    ("train ppo brax/reacher env.backend=sprin", "unknown backend 'sprin'; did you mean spring"),
    ("train ppo CartPole-v1 learning_rate=-1", "learning_rate=-1.0 is outside"),
    ("train ppo CartPole-v1 learning_rate=nan", "learning_rate=nan is outside"),
    ("train ppo CartPole-v1 learning_rate=fast", "learning_rate=fast is not a number"),
    ("train ppo CartPole-v1 num_envs=2.5", "num_envs=2.5 is not a whole number"),
    ("train ppo CartPole-v1 normalize_rewards=yes", "is not true or false"),
    ("train ppo CartPole-v1 hidden_sizes=64,64", "takes one value"),
    ("train ppo CartPole-v1 network=rnn", "network='rnn' is not one of"),
    ("train ppo CartPole-v1 env.gravity=down", "env.gravity=down is not a number"),
    ("train ppo CartPole-v1 gamma", "'gamma' is not of the form key=value"),
    ("train ppo CartPole-v1 gamma=1 gamma=0", "gamma is given twice"),
    ("train ppo CartPole-v1 total_steps=1e5 --steps 1e5", "are the same"),
    ("train ppo CartPole-v1 --steps 8", "total_steps=8 is smaller than one iteration"),
    ("train ppo CartPole-v1 --steps 0", "0 is too small"),
    ("train ppo CartPole-v1 --steps some", "some is not a whole number"),
    ("train ppo CartPole-v1 --seeds 0", "at least one seed"),
    ("train ppo CartPole-v1 --seed 1 --seeds 2", "not allowed with"),
    ("train ppo CartPole-v1 num_minibatches=7", "num_minibatches=7 does not divide"),
    ("train ppo CartPole-v1 --fast", "unrecognized arguments: --fast"),
    ("train pqn Pendulum-v1", "needs discrete actions"),
    ("sweep ppo CartPole-v1", "the grid is empty"),
    ("sweep ppo CartPole-v1 gamma=", "the grid is empty"),
    ("sweep ppo CartPole-v1 gamma=lin:0.9:0.99:0", "the grid is empty"),
    ("sweep ppo CartPole-v1 gamma=0.9,0.99 --random 0", "the grid is empty"),
    ("sweep ppo CartPole-v1 gamma=0.9,0.99 --search-seed 1", "only --random N draws settings"),
    ("train ppo CartPole-v1 --recipe none.toml", "--recipe none.toml: No such file"),
    ("recipe .", ". is not a run"),
    ("sweep ppo CartPole-v1 gamma=lin:0.9:0.99", "or lin:low:high:n"),
    ("sweep ppo CartPole-v1 gamma=lin:0.5:1.5:3", "gamma=1.5 is outside"),
    ("sweep ppo CartPole-v1 gamma=lin:0.9:2 --random 3", "gamma=2.0 is outside"),
    ("sweep ppo CartPole-v1 gamma=lin:1:0:3", "from low to high"),
    ("sweep ppo CartPole-v1 learning_rate=log:0:1:3", "ends above 0"),
    ("sweep ppo CartPole-v1 num_minibatches=4,7", "num_minibatches=7 does not divide"),
    ("train ppo CartPole-v1 --data a.hdf5", "ppo does not learn from recorded data"),
    ("train bc CartPole-v1 --data none.hdf5", "none.hdf5: no such file"),
    ("train bc CartPole-v1 --data-steps 9", "--data-steps has no effect without --data"),
    ("sweep --resume missing --data-steps 3", "--data-steps: --resume goes on with the settings"),
    ("train bc CartPole-v1", "bc: learns from recorded data only: give it --data FILE"),
    ("train cql Pendulum-v1 --evaluations 0", "0 is too small"),
    ("train ppo", "required: AGENT, ENV"),
    ("train ppo CartPole-v1 --keep 0", "0 is too small"),
    ("train ppo CartPole-v1 --checkpoint-every -1", "-1 is not a whole number"),
    ("train --resume missing", "missing is not a run: it has no config.json"),
    ("train ppo CartPole-v1 --resume missing", "ppo CartPole-v1: --resume goes on with the set"),
    ("sweep --resume missing --seeds 3", "--seeds: --resume goes on with the settings"),
    ("collect bc CartPole-v1", "bc: learns from recorded data only"),
    ("collect ppo CartPole-v1 gamma=2", "gamma=2.0 is outside"),
    ("collect ppo CartPole-v1 --size 0", "0 is too small"),
    ("eval .", "is not a run"),
    ("plot missing", "missing is not a run"),
    ("list qqq", "unknown agent 'qqq'; `jaxrl list agents` shows all"),
    ("train ppo CartPole-v1 --record cost,", "cost, is not a list of names"),
    ("train ppo CartPole-v1 --memory lots", "lots is not a number of bytes"),
    ("watch missing", "missing is not a run"),
    ("train ppo CartPole-v1 --seeds 5e9", "5e9 is too large, it must be at most 4,294,967,295"),
    ("train ppo CartPole-v1 --seeds 2e5", "200,000 members are too many for a sweep: at most 100,"),
    ("sweep ppo CartPole-v1 gamma=lin:0.1:0.9:1e12", "1,000,000,000,000 settings are too many"),
    (
        "sweep ppo CartPole-v1 gamma=lin:.1:.9:1e4 gae_lambda=lin:.1:.9:1e4",
        "100,000,000 settings are too many for a sweep",
    ),
    ("sweep ppo CartPole-v1 gamma=lin:.1:.9:9e4 --seeds 9", "810,000 members are too many"),
    ("sweep ppo CartPole-v1 gamma=lin:.1:.9 --random 1e9", "1,000,000,000 settings are too many"),
    ("train ppo CartPole-v1 num_epochs=1e18", "outside [1, 2147483647]"),
    ("train dqn CartPole-v1 buffer_size=1e18", "outside [1, 2147483647]"),
    ("train ppo CartPole-v1 hidden_sizes=64x1e12", "outside [1, 2147483647]"),
    (
        "train ppo CartPole-v1 learning_rate=1e300",
        "is no number in single precision, which",
    ),
    (
        "train ppo CartPole-v1 learning_rate=1e-60",
        "is no number in single precision, which",
    ),
    ("train ppo CartPole-v1 env.max_steps_in_episode=3e9", "must be int32 of shape ()"),
    ("train ppo CartPole-v1 env.gravity=1e300", "must be float32 of shape ()"),
    ("train ppo CartPole-v1 --episodes 1e15", "is too large"),
    ("train ppo CartPole-v1 --episodes 1e7", "1e7 is too large, it must be at most 1,000,000"),
    ("train ppo CartPole-v1 --evaluations 1e12", "is too large"),
    ("train ppo CartPole-v1 env.sticky=often", "sticky='often' is not a number"),
    ("train ppo CartPole-v1 env.sticky=inf", "sticky=inf is not a number"),
    ("train ppo brax/ant env.ctrl_cost_weight=much", "ctrl_cost_weight='much' is not a number"),
    ("train ppo brax/ant env.terminate_when_unhealthy=3", "=3 is not true or false"),
    ("train ppo DeepSea-bsuite env.size=0", "DeepSea-bsuite: {'size': 0} cannot be: "),
    ("train ppo DeepSea-bsuite env.size=1e9", "size=1000000000 is not a whole number from 0 to"),
    ("train ppo DeepSea-bsuite env.size=much", "size='much' is not a whole number from 0 to"),
    ("learn", "invalid choice: 'learn'"),
    ("", "required: COMMAND"),
    ("train ppo CartPole-v1 env.resets=often", "CartPole-v1: unknown resets 'often'; known:"),
    ("train ppo CartPole-v1 env.resets=pool env.pool_size=0", "CartPole-v1: pool_size=0 is not"),
    ("train ppo CartPole-v1 env.resets=pool env.pool_size=-3", "CartPole-v1: pool_size=-3 is"),
    ("train ppo brax/ant env.backend=3", "brax/ant: backend=3 is not a word"),
    ("train ppo brax/ant env.episode_length=0", "brax/ant: unknown option 'episode_length';"),
    ("train ppo brax/ant env.episode_length=-5", "brax/ant: unknown option 'episode_length';"),
    ("train ppo brax/ant env.episode_length=1e20", "brax/ant: unknown option 'episode_length';"),
    ("train ppo brax/ant env.healthy_z_range=3", "brax/ant: healthy_z_range=3 is not a word"),
    (
        "train ppo brax/ant env.nothing=3",
        "brax/ant: unknown option 'nothing'; known: action",
    ),
    ("train ppo brax/ant env.", "'env.' is not of the form key=value"),
    ("train ppo brax/ant env.=3", "brax/ant: unknown option ''; known: action_repeat,"),
    ("train ppo brax/ant =3", "'=3' is not of the form key=value"),
    ("train ppo brax/ant ==", "'==' is not of the form key=value"),
    ("train ppo CartPole-v1 env.max_steps_in_episode=2.5", "env.max_steps_in_episode=2.5 is"),
    ("train ppo CartPole-v1 env.max_steps_in_episode=inf", "env.max_steps_in_episode=inf is"),
    ("train ppo CartPole-v1 env.gravity=1,2", "env.gravity=1,2: `jaxrl train` takes one value;"),
    ("train ppo CartPole-v1 env.gravity=", "env.gravity=: the grid is empty"),
    ("train ppo CartPole-v1 env.gravity=None", "env.gravity=None is not a number"),
    ("train ppo CartPole-v1 env.gravity=true", "env.gravity=true is not a number"),
    ("train ppo CartPole-v1 gamma=true", "gamma=true is not a number"),
    ("train ppo CartPole-v1 gamma=", "gamma=: the grid is empty"),
    ("train ppo CartPole-v1 gamma=0x10", "gamma=0x10 is not a number"),
    ("train ppo CartPole-v1 gamma=1_000", "ppo: gamma=1000.0 is outside [0, 1]"),
    ("train ppo CartPole-v1 num_envs=1e400", "num_envs=1e400 is not a whole number"),
    ("train ppo CartPole-v1 num_envs=-1", "ppo: num_envs=-1 is outside [1, inf)"),
    ("train ppo CartPole-v1 num_envs=0", "ppo: num_envs=0 is outside [1, inf)"),
    ("train ppo CartPole-v1 num_envs=nan", "num_envs=nan is not a whole number"),
    ("train ppo CartPole-v1 num_envs=inf", "num_envs=inf is not a whole number"),
    ("train ppo CartPole-v1 num_envs=2147483647", "ppo: total_steps=500000 is smaller than one"),
    (
        "train ppo CartPole-v1 num_steps=2147483647 --steps 2147483647",
        "ppo: total_steps=2147483647",
    ),
    ("train ppo CartPole-v1 hidden_sizes=", "hidden_sizes=: the grid is empty"),
    ("train ppo CartPole-v1 hidden_sizes=0", "ppo: hidden_sizes=(0,) is outside [1, inf)"),
    ("train ppo CartPole-v1 hidden_sizes=64x", "hidden_sizes=64x is not whole numbers joined"),
    ("train ppo CartPole-v1 hidden_sizes=x", "hidden_sizes=x is not whole numbers joined by x,"),
    ("train ppo CartPole-v1 hidden_sizes=-64x64", "ppo: hidden_sizes=(-64, 64) is outside [1,"),
    ("train ppo CartPole-v1 hidden_sizes=1.5x2", "hidden_sizes=1.5x2 is not whole numbers"),
    ("train ppo CartPole-v1 activation=sigmoid", "ppo: activation='sigmoid' is not one of"),
    ("train ppo CartPole-v1 activation=", "activation=: the grid is empty"),
    ("train ppo CartPole-v1 network=cnn", "ppo: network='cnn' needs (H, W, C) observations,"),
    ("train ppo CartPole-v1 total_steps=1e30", "ppo:"),
    ("train ppo CartPole-v1 total_steps=-5", "ppo: total_steps=-5 is outside [1, 2147483647]"),
    ("train ppo CartPole-v1 --steps -5", "argument --steps: -5 is not a whole number from 0 up"),
    ("train ppo CartPole-v1 --steps 1e30", "argument --steps: 1e30 is too large, it must be at"),
    ("train ppo CartPole-v1 --steps 1.5", "argument --steps: 1.5 is not a whole number from 0"),
    ("train ppo CartPole-v1 --steps inf", "argument --steps: inf is not a whole number from 0"),
    ("train ppo CartPole-v1 --steps", "argument --steps: expected one argument"),
    ("train ppo CartPole-v1 --seed -1", "argument --seed: -1 is not a whole number from 0 up"),
    ("train ppo CartPole-v1 --seed 5e9", "argument --seed: 5e9 is too large, it must be at"),
    ("train ppo CartPole-v1 --seed x", "argument --seed: x is not a whole number from 0 up"),
    ("train ppo CartPole-v1 --seeds 1.5", "argument --seeds: 1.5 is not a whole number from 0"),
    ("train ppo CartPole-v1 --memory 0", "argument --memory: 0 is not a number of bytes, such"),
    ("train ppo CartPole-v1 --memory -5G", "argument --memory: expected one argument"),
    ("train ppo CartPole-v1 --memory 1e400", "argument --memory: 1e400 is not a number of"),
    ("train ppo CartPole-v1 --memory infG", "argument --memory: infG is not a number of bytes,"),
    ("train ppo CartPole-v1 --memory nan", "argument --memory: nan is not a number of bytes,"),
    ("train ppo CartPole-v1 --on-nan maybe", "argument --on-nan: invalid choice: 'maybe'"),
    ("train ppo CartPole-v1 --checkpoint-every inf", "argument --checkpoint-every: inf is not"),
    ("train ppo CartPole-v1 --checkpoint-every 1e20", "argument --checkpoint-every: 1e20 is"),
    ("train ppo CartPole-v1 --keep 1e20", "argument --keep: 1e20 is too large, it must be at"),
    ("train ppo CartPole-v1 --keep x", "argument --keep: x is not a whole number from 0 up"),
    ("train ppo CartPole-v1 --log-member -1", "argument --log-member: -1 is not a whole number"),
    ("train ppo CartPole-v1 --log-member 3", "--log-member 3 is outside 0..0"),
    ("train ppo CartPole-v1 --record", "argument --record: expected one argument"),
    ("train ppo CartPole-v1 --record a,a", "argument --record: a,a is not a list of names,"),
    ("train ppo CartPole-v1 --record cost", "ppo: record='cost' is not a number in the info of"),
    ("train ppo CartPole-v1 --evaluations x", "argument --evaluations: x is not a whole number"),
    ("train ppo CartPole-v1 --episodes 0", "argument --episodes: 0 is too small, it must be at"),
    ("train ppo CartPole-v1 --episodes -1", "argument --episodes: -1 is not a whole number"),
    ("train ppo CartPole-v1 --out", "argument --out: expected one argument"),
    ("train ppo CartPole-v1 --num-processes 2", "--coordinator, --num-processes and"),
    (
        "train ppo CartPole-v1 --coordinator x --num-processes 0 --process-id 0",
        "argument --num-processes: 0",
    ),
    ("train ppo CartPole-v1 --seeds 3 --seeds 3", "argument --seeds: given twice"),
    ("train --from . --member 0 --member 5", "argument --member: given twice"),
    ("export . out --member=0 --member 5", "argument --member: given twice"),
    ("render . --out a.gif --out b.gif", "argument --out: given twice"),
    ("eval . --episodes 64 --episodes 64", "argument --episodes: given twice"),
    ("plot . --out a.png . --out b.png", "argument --out: given twice"),
    ("train ppo CartPole-v1 --process-id 0", "--coordinator, --num-processes and --process-id"),
    ("train ppo CartPole-v1 --distributed --coordinator x", "--coordinator, --num-processes"),
    ("train ppo CartPole-v1 CartPole-v1", "'CartPole-v1' is not of the form key=value"),
    ("train sac CartPole-v1", "sac needs continuous actions, but CartPole-v1 has discrete ones"),
    ("train sac Pendulum-v1 buffer_size=1", "sac: buffer_size=1 does not hold two iterations"),
    ("train sac Pendulum-v1 learning_starts=1e9", "sac: learning_starts=1000000000 is more"),
    ("train sac Pendulum-v1 batch_size=0", "sac: batch_size=0 is outside [1, inf)"),
    ("train sac Pendulum-v1 tau=2", "sac: tau=2.0 is outside (0, 1]"),
    ("train sac Pendulum-v1 tau=-inf", "sac: tau=-inf is outside (0, 1]"),
    ("train dqn Pendulum-v1", "dqn needs discrete actions, but Pendulum-v1 has continuous ones"),
    ("train abs Pendulum-v1", "abs needs discrete actions, but Pendulum-v1 has continuous ones"),
    ("train pqn MountainCarContinuous-v0", "pqn needs discrete actions, but"),
    ("train mixturesac CartPole-v1", "mixturesac needs continuous actions, but CartPole-v1 has"),
    ("train mixturesac Pendulum-v1 num_components=0", "mixturesac: num_components=0 is outside"),
    ("train softgac CartPole-v1", "softgac needs continuous actions, but CartPole-v1 has"),
    ("train cql Pendulum-v1 data=3", "cql has no hyper-parameter 'data'; did you mean tau or"),
    ("train iql Pendulum-v1", "iql: learns from recorded data only: give it --data FILE"),
    ("train awac Pendulum-v1", "awac: learns from recorded data only: give it --data FILE"),
    ("train td3bc Pendulum-v1", "td3bc: learns from recorded data only: give it --data FILE"),
    ("train rainbow CartPole-v1", "unknown agent 'rainbow'; `jaxrl list agents` shows all"),
    ("train discretecql Pendulum-v1 --data x", "x: no such file"),
    ("train PPO CartPole-v1", "unknown agent 'PPO'; did you mean ppo?"),
    ("train ppo cartpole-v1", "unknown environment 'cartpole-v1'; did you mean CartPole-v1?"),
    ("train", "the following arguments are required: AGENT, ENV"),
    ("train ppo ..", "unknown environment '..'; `jaxrl list envs` shows all"),
    ("train ppo /etc/passwd", "unknown environment '/etc/passwd'; `jaxrl list envs` shows all"),
    ("train ppo brax/", "unknown environment 'brax/'; did you mean brax/ant or brax/pusher or"),
    ("train ppo brax/nothing", "unknown environment 'brax/nothing'; did you mean brax/ant or"),
    ("train ppo mjx/nothing", "unknown environment 'mjx/nothing'; did you mean mjx/ant or"),
    ("train ppo /", "unknown environment '/'; `jaxrl list envs` shows all"),
    ("train ../ppo CartPole-v1", "unknown agent '../ppo'; did you mean ppo"),
    ("train ppo MNISTBandit-bsuite", "environment MNISTBandit-bsuite does not work here: it"),
    ("train ppo brax/swimmer", "environment brax/swimmer does not work here: brax 0.14.2 calls"),
    ("sweep ppo CartPole-v1 learning_rate=log:1:2:3:4", "learning_rate=log:1:2:3:4 is not"),
    ("sweep ppo CartPole-v1 learning_rate=log:a:b:c", "learning_rate=a is not a number"),
    ("sweep ppo CartPole-v1 learning_rate=log:1e-3:1e-4:3", "learning_rate=log:1e-3:1e-4:3:"),
    ("sweep ppo CartPole-v1 learning_rate=log:1e-4:1e-3:-3", "learning_rate=log:1e-4:1e-3:-3:"),
    ("sweep ppo CartPole-v1 learning_rate=log:1e-4:1e-3:1.5", "learning_rate=1.5 is not a"),
    ("sweep ppo CartPole-v1 learning_rate=log:1e-400:1e-3:3", "learning_rate=log:1e-400:1e-3:3:"),
    ("sweep ppo CartPole-v1 learning_rate=log:1e-4:inf:3", "learning_rate=log:1e-4:inf:3: the"),
    ("sweep ppo CartPole-v1 learning_rate=lin:nan:1:3", "learning_rate=lin:nan:1:3: the range"),
    ("sweep ppo CartPole-v1 learning_rate=lin:0:1e400:3", "learning_rate=lin:0:1e400:3: the"),
    ("sweep ppo CartPole-v1 learning_rate=,", "learning_rate=,: the grid is empty"),
    ("sweep ppo CartPole-v1 learning_rate=1e-3,fast", "learning_rate=fast is not a number"),
    ("sweep ppo CartPole-v1 network=mlp,rnn", "ppo: network='rnn' is not one of mlp, cnn"),
    ("sweep ppo CartPole-v1 network=lin:1:2:3", "network 'lin:1:2:3' is not written module:NAME"),
    ("sweep ppo CartPole-v1 hidden_sizes=64x64,x", "hidden_sizes=x is not whole numbers joined"),
    ("sweep ppo CartPole-v1 normalize_rewards=log:1:2:3", "normalize_rewards=log:1:2:3 is not"),
    ("sweep ppo CartPole-v1 num_envs=log:1:64:3 num_minibatches=3", "ppo: num_minibatches=3 does"),
    ("sweep ppo CartPole-v1 env.gravity=lin:1:2", "env.gravity=lin:1:2 is not v1,v2,..."),
    ("sweep ppo CartPole-v1 env.gravity=1,fast", "env.gravity=fast is not a number"),
    ("sweep ppo CartPole-v1 env.resets=pool,cached", "CartPole-v1: unknown resets"),
    ("sweep ppo CartPole-v1 gamma=lin:0:1 --random 100001", "100,001 settings are too many for"),
    ("sweep ppo CartPole-v1 gamma=lin:0:1:3 gamma=3", "gamma is given twice"),
    ("sweep ppo CartPole-v1 total_steps=1e3,1e30", "ppo:"),
    ("sweep ppo CartPole-v1 total_steps=lin:1e4:1e30:3", "ppo:"),
    ("sweep ppo CartPole-v1 --seeds 5", "the grid is empty: give key=v1,v2 or"),
    ("sweep ppo CartPole-v1 gamma=0.9 --seed 3", "unrecognized arguments: --seed"),
    ("collect ppo CartPole-v1 --size 1e12", "argument --size: 1e12 is too large, it must be at"),
    ("collect ppo CartPole-v1 --steps 3", "ppo: total_steps=3 is smaller than one iteration of"),
    ("collect ppo CartPole-v1 --seed -3", "argument --seed: -3 is not a whole number from 0 up"),
    ("collect ppo CartPole-v1 gamma=0.9,0.99", "gamma=0.9,0.99: `jaxrl train` takes one value;"),
    ("collect td3bc Pendulum-v1", "td3bc: learns from recorded data only: give it --data FILE"),
    ("data", "the following arguments are required: FILE"),
    ("data nothing.hdf5", "nothing.hdf5: no such file"),
    ("data minari:nothing", "minari:nothing does not say which environment it is of: give"),
    ("data minari:", "minari: does not say which environment it is of: give --env ENV"),
    ("data minari:../../x", "minari:../../x does not say which environment it is of: give"),
    ("data nothing.hdf5 --gamma 2", "argument --gamma: 2 is not a number from 0 to 1"),
    ("data nothing.hdf5 --env nothing", "unknown environment 'nothing'; `jaxrl list envs`"),
    ("data nothing.hdf5 --reference 1", "argument --reference: 1 is not two different numbers,"),
    ("data nothing.hdf5 --reference 1,1", "argument --reference: 1,1 is not two different"),
    ("data nothing.hdf5 --reference 1,nan", "argument --reference: 1,nan is not two different"),
    ("data nothing.hdf5 --reference a,b", "argument --reference: a,b is not two different"),
    ("eval", "the following arguments are required: DIR"),
    ("eval nothing", "nothing is not a run: it has no config.json"),
    ("eval . --member x", "argument --member: invalid int value: 'x'"),
    ("eval . --member -1", ". is not a run: it has no config.json"),
    ("eval . --episodes 0", "argument --episodes: 0 is too small, it must be at least 1"),
    ("eval . --episodes 1e15", "argument --episodes: 1e15 is too large, it must be at most"),
    ("eval . --seed -1", "argument --seed: -1 is not a whole number from 0 up"),
    ("eval . --checkpoint oldest", "argument --checkpoint: oldest is not newest, best or"),
    ("eval . --checkpoint -3", "argument --checkpoint: -3 is not newest, best or"),
    ("eval . --gamma x", "argument --gamma: x is not a number from 0 to 1"),
    ("eval . --steps 0", "argument --steps: 0 is too small, it must be at least 1"),
    ("plot", "the following arguments are required: DIR"),
    ("plot . --out x.xyz", ". is not a run: it has no config.json"),
    ("watch", "the following arguments are required: DIR"),
    ("watch . --every 0", "argument --every: 0 is too small, it must be at least 1"),
    ("watch . --every x", "argument --every: x is not a whole number from 0 up"),
    ("list a b", "unrecognized arguments: b"),
    ("list ../x", "unknown agent '../x'; `jaxrl list agents` shows all"),
    ("list brax/nothing", "unknown agent 'brax/nothing'; `jaxrl list agents` shows all"),
    ("list env", "unknown agent 'env'; `jaxrl list agents` shows all"),
    ("train --resume", "argument --resume: expected one argument"),
    ("train --resume . --seeds 2", "--seeds: --resume goes on with the settings that . has; it"),
    ("train --resume . --random 3", "unrecognized arguments: --random"),
    ("sweep --resume . gamma=3", "gamma=3: --resume goes on with the settings that . has; it"),
    ("train ppo CartPole-v1 --tensorboard=3", "argument --tensorboard: ignored explicit"),
    ("train ppo CartPole-v1 --wandb", "argument --wandb: expected one argument"),
    ("train ppo CartPole-v1 env.max_steps_in_episode=0", "env.max_steps_in_episode=0 must be at"),
    ("train ppo CartPole-v1 env.max_steps_in_episode=-7", "env.max_steps_in_episode=-7 must be at"),
    ("train ppo CartPole-v1 env.resets=pool env.pool_size=1e12", "is not a whole number from 1 to"),
    ("train ppo CartPole-v1 --reference 1,2", "--reference has no effect without --data"),
    ("reproduce nothing", "no study or cell of one is called 'nothing' at the full scale"),
    ("reproduce ../x", "no study or cell of one is called '../x'"),
    ("reproduce --out /dev/null/x --page", "cannot write to /dev/null/x: Not a directory"),
]


@pytest.mark.parametrize(("words", "message"), BAD_INPUT)
def test_bad_input(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("jaxrl.sweep", refuse)
    try:
        status = main(words.split())
    except SystemExit as stop:  # argparse's own
        status = stop.code
    error = capsys.readouterr().err
    assert status == 2
    assert error.startswith("jaxrl: error: ")
    assert error.count("\n") == 1
    assert message in error
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_files_is_left_alone(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("jaxrl.sweep", refuse)
    (tmp_path / "notes.txt").write_text("mine")
    assert main(["train", "ppo", "CartPole-v1", "--out", str(tmp_path)]) == 2
    assert "is not empty" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_an_unwritable_folder_is_found_before_compiling(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("jaxrl.sweep", refuse)
    (tmp_path / "file").touch()
    assert main(["train", "ppo", "CartPole-v1", "--out", str(tmp_path / "file" / "run")]) == 2
    assert "cannot write to" in capsys.readouterr().err


def test_a_run_that_fails_leaves_no_folder(tmp_path, monkeypatch):
    monkeypatch.setattr("jaxrl.sweep", refuse)
    with pytest.raises(AssertionError, match="reached the engine"):
        main(["train", "ppo", "CartPole-v1", "--out", str(tmp_path / "run")])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("words", [["--help"], ["list", "agents"]])
def test_help_and_listings_answer_at_once(words):
    heavy = ["jax", "numpy", "matplotlib", "scipy", "gymnax"]
    code = (
        "import sys; from experiments.command.cli import main\n"
        f"try: main({words})\n"
        "except SystemExit: pass\n"
        f"print([name for name in {heavy} if name in sys.modules], file=sys.stderr)"
    )
    start = time.perf_counter()
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stderr.strip() == "[]"
    assert "ppo" in result.stdout or "train" in result.stdout
    assert time.perf_counter() - start < 1.5


def test_exit_status_of_the_process():
    result = subprocess.run([*JAXRL, "list", "nothing"], capture_output=True, text=True)
    assert result.returncode == 2
    assert result.stderr.startswith("jaxrl: error: unknown agent 'nothing'")
    assert result.stdout == ""


def test_the_package_runs_as_its_command(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["jaxrl", "--version"])
    monkeypatch.delitem(sys.modules, "jaxrl.__main__", raising=False)  # runpy warns of it
    with pytest.raises(SystemExit) as end:
        runpy.run_module("jaxrl", run_name="__main__")
    assert end.value.code == 0
    assert capsys.readouterr().out == f"jaxrl {jaxrl.__version__}\n"
