"""Pictures show what states say: where things are, by their colours."""

import os
import subprocess
import sys
import types
from typing import Any, NamedTuple

import numpy as np
import pytest

import envs_jax
from envs_jax import pictures
from envs_jax.pictures import BLUE, INK, RED, SIZE


def picture(name, obs=(), **state):
    env, params = envs_jax.make(name)
    (image,) = pictures.images(env, params, [types.SimpleNamespace(**state)], [np.asarray(obs)])
    assert (image.shape, image.dtype) == ((SIZE, SIZE, 3), np.uint8)
    return image


def middle(image, colour):
    """The mean place of a colour, from -1 to 1 to the right and up."""
    rows, columns = np.nonzero((np.abs(image.astype(int) - colour) < 30).all(-1))
    assert len(rows), "nothing has that colour"
    return 2 * columns.mean() / SIZE - 1, 1 - 2 * rows.mean() / SIZE


def test_the_pole_stands_on_its_cart_and_leans_to_its_side():
    for x in (-2.0, 0.0, 2.0):
        for theta in (-0.5, 0.0, 0.5):
            image = picture("CartPole-v1", x=x, theta=theta)
            cart, pole = middle(image, INK), middle(image, BLUE)
            assert cart[0] == pytest.approx(x / 2.4 / 1.15, abs=0.02)
            assert pole[1] > cart[1] + 0.1
            assert pole[0] - cart[0] == pytest.approx(0.5 * np.sin(theta) / 2.4 / 1.15, abs=0.04)


def test_the_pendulum_turns_counterclockwise_from_the_top():
    for theta in (0.0, 1.0, np.pi, -2.0):
        rod = middle(picture("Pendulum-v1", theta=theta, last_u=0.0), BLUE)
        assert rod == pytest.approx((-np.sin(theta) / 2.6, np.cos(theta) / 2.6), abs=0.04)
    torque = picture("Pendulum-v1", theta=np.pi, last_u=2.0)
    assert middle(torque, RED)[0] < -0.05  # to the left of the top: counterclockwise


def test_the_acrobat_hangs_and_its_second_link_turns_from_the_first():
    hanging = picture("Acrobot-v1", joint_angle1=0.0, joint_angle2=0.0)
    upper, lower = middle(hanging, BLUE), middle(hanging, RED)
    assert upper[1] == pytest.approx(-0.5 / 2.2, abs=0.04)
    assert lower[1] == pytest.approx(-1.5 / 2.2, abs=0.04)
    bent = picture("Acrobot-v1", joint_angle1=np.pi / 2, joint_angle2=np.pi / 2)
    upper, lower = middle(bent, BLUE), middle(bent, RED)
    assert upper == pytest.approx((0.5 / 2.2, 0.0), abs=0.04)
    assert lower == pytest.approx((1 / 2.2, 0.5 / 2.2), abs=0.04)


@pytest.mark.parametrize("name", ["MountainCar-v0", "MountainCarContinuous-v0"])
def test_the_car_is_on_its_hill(name):
    places = [middle(picture(name, position=x), BLUE) for x in (-1.0, -0.5236, 0.3)]
    assert places[0][0] < places[1][0] < places[2][0]
    assert places[1][1] < min(places[0][1], places[2][1])  # the valley


def test_grids_have_a_colour_for_each_channel():
    env, params = envs_jax.make("Breakout-MinAtar")
    obs = np.zeros((10, 10, 4))
    for channel in range(4):
        obs[channel, 9, channel] = 1
    (image,) = pictures.images(env, params, [types.SimpleNamespace()], [obs])
    cell = SIZE // 10
    colours = {tuple(image[i * cell + 3, -3].tolist()) for i in range(4)}
    assert len(colours) == 4
    assert min(sum(colour) for colour in colours) > 150  # none is as dark as the background
    assert image[:, : 9 * cell].max() == 0


class Figure(NamedTuple):
    """An environment that draws itself."""

    result: Any
    name: str = "mine"

    def step_env(self): ...

    def render(self, state, params):
        return self.result() if callable(self.result) else self.result


def drawn(env):
    return pictures.images(env, (), [types.SimpleNamespace()], [np.zeros(3)])


def test_an_environment_may_draw_itself():
    red = np.zeros((20, 40, 3), np.uint8) + np.array(RED, np.uint8)
    (image,) = drawn(Figure(red))
    assert (image[SIZE // 2, SIZE // 2] == RED).all()
    assert (image[5] == 255).all()  # it is wider than high

    def figure():
        import matplotlib.pyplot as plt

        fig, ax = plt.subplots()
        fig.patch.set_facecolor("black")
        return fig, ax

    (image,) = drawn(Figure(figure))
    assert image[SIZE // 2, 2].max() == 0
    with pytest.raises(ValueError, match=r"^mine cannot be drawn: give it a method render\(state"):
        drawn(types.SimpleNamespace(name="mine"))


def test_a_page_is_of_brax_alone():
    env, _ = envs_jax.make("CartPole-v1")
    with pytest.raises(ValueError, match="a page is Brax's alone; choose"):
        pictures.page(env, [types.SimpleNamespace()])


HOPPER = """
from types import SimpleNamespace
import numpy as np
from envs_jax import pictures
from envs_jax.physics import quiet

with quiet():
    import brax.envs

    env = brax.envs.get_environment("hopper", backend="generalized")
q, qd = np.array(env.sys.init_q), np.zeros(env.sys.qd_size())
states = []
for lean in (0.0, 1.0):
    q[2] = lean
    states.append(SimpleNamespace(pipeline_state=SimpleNamespace(q=q.copy(), qd=qd)))
for image in pictures.images(env, (), states, [np.zeros(11)] * 2):
    assert image.shape == (pictures.SIZE, pictures.SIZE, 3)
    brown = (image[..., 0] > image[..., 2].astype(int) + 40).any(axis=0)
    print(brown.sum(), int((image[0] == 255).all()))
"""


@pytest.mark.slow
def test_brax_is_drawn_by_mujoco():
    environment = os.environ | {"MUJOCO_GL": "egl"}  # read when mujoco is imported
    command = [sys.executable, "-c", HOPPER]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if "MuJoCo cannot draw here" in done.stderr:
        pytest.skip("there is no library of graphics")
    assert done.returncode == 0, done.stderr
    (upright, white), (leaning, _) = [map(int, line.split()) for line in done.stdout.splitlines()]
    assert white == 1
    assert leaning > 2 * upright > 0  # columns that it takes
