"""Pictures of environments: a state as an image, an episode of a physics engine as a page.

Classic control is drawn here (gymnax's visualiser takes pygame), grids from their observations with
a colour for each channel, Brax by MuJoCo's renderer or its own viewer, and whatever has gymnax's
`render(state, params)` by that: it gives a matplotlib figure and axes, or an image.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

SIZE = 240  # pixels, of the height and of the width
FINER = 3  # lines are drawn at so many times the size, and made smaller, which smooths them
INK, GREY, BLUE, RED = (40, 40, 40), (190, 190, 190), (31, 119, 180), (214, 39, 40)

Point = tuple[float, float]


def images(env: Any, env_params: Any, states: Sequence[Any], observations: Sequence[Any]) -> Any:
    """An image (SIZE, SIZE, 3) of bytes for each state of an episode.

    Args:
        states: as numpy arrays.
        observations: of the same steps, which grids are drawn from.

    Raises: ValueError, one line, where there is no way to draw it, or no renderer.
    """
    inner = innermost(env)
    states = [_inner_state(env, state) for state in states]
    name = next((c.__name__ for c in type(inner).__mro__ if c.__name__ in DRAWINGS), None)
    if name is not None:
        return [_drawn(DRAWINGS[name], state, env_params) for state in states]
    if hasattr(states[0], "pipeline_state"):
        return _by_mujoco(inner, states)
    if np.ndim(observations[0]) in (2, 3):
        return [_grid(np.asarray(obs)) for obs in observations]
    if callable(getattr(inner, "render", None)) and hasattr(inner, "step_env"):
        return [_rendered(inner, state, env_params) for state in states]
    raise ValueError(
        f"{getattr(env, 'name', type(env).__name__)} cannot be drawn: give it a method "
        "render(state, params) that returns an image (H, W, 3) of bytes"
    )


def page(env: Any, states: Sequence[Any]) -> str:
    """An episode in Brax's viewer, as HTML. Raises: ValueError where it is not Brax's."""
    inner = innermost(env)
    states = [_inner_state(env, state) for state in states]
    if not hasattr(states[0], "pipeline_state"):
        raise ValueError(f"{env.name}: a page is Brax's alone; choose .gif or .png")
    from brax.io import html

    return str(html.render(inner.sys, [state.pipeline_state for state in states]))


def seconds_per_step(env: Any, observation: Any) -> float:
    """How long a step is shown."""
    inner = innermost(env)
    if hasattr(inner, "sys"):
        return float(inner.dt)
    return 0.1 if np.ndim(observation) > 1 else 0.04


def innermost(env: Any) -> Any:
    """The environment within all wrappers."""
    while hasattr(env, "_env"):
        env = env._env
    return env


def _inner_state(env: Any, state: Any) -> Any:
    """The state of the innermost environment: wrappers keep it as `inner`."""
    while hasattr(state, "inner"):
        state = state.inner
    return state


# Classic control --------------------------------------------------------------------------------


class Canvas:
    """Draws in coordinates of the environment: x to the right, y up."""

    def __init__(self, left: float, right: float, bottom: float) -> None:
        pixels = SIZE * FINER
        self.scale, self.left, self.bottom = pixels / (right - left), left, bottom
        self.image = Image.new("RGB", (pixels, pixels), "white")
        self.pen = ImageDraw.Draw(self.image)

    def at(self, point: Point) -> Point:
        x, y = point
        return (x - self.left) * self.scale, SIZE * FINER - (y - self.bottom) * self.scale

    def line(self, points: Sequence[Point], width: float, colour: Any = INK) -> None:
        pixels = max(1, round(width * self.scale))
        self.pen.line([self.at(p) for p in points], colour, pixels, joint="curve")

    def rod(self, start: Point, end: Point, width: float, colour: Any) -> None:
        self.line((start, end), width, colour)
        for point in (start, end):
            self.disc(point, width / 2, colour)

    def disc(self, point: Point, radius: float, colour: Any = INK) -> None:
        (x, y), r = self.at(point), radius * self.scale
        self.pen.ellipse((x - r, y - r, x + r, y + r), colour)

    def polygon(self, points: Sequence[Point], colour: Any) -> None:
        self.pen.polygon([self.at(p) for p in points], colour)

    def done(self) -> np.ndarray:
        return np.asarray(self.image.resize((SIZE, SIZE), Image.Resampling.LANCZOS))


def _drawn(draw: Callable[[Any, Any], Canvas], state: Any, params: Any) -> np.ndarray:
    return draw(state, params).done()


def _cartpole(state: Any, params: Any) -> Canvas:
    edge = float(params.x_threshold)
    canvas = Canvas(-1.15 * edge, 1.15 * edge, -0.9 * edge)
    x, theta, length = float(state.x), float(state.theta), 2 * float(params.length)
    canvas.line(((-1.15 * edge, 0), (1.15 * edge, 0)), 0.02 * edge, GREY)
    for side in (-edge, edge):  # past which an episode ends
        canvas.line(((side, -0.06 * edge), (side, 0.06 * edge)), 0.02 * edge, GREY)
    w, h = 0.2 * edge, 0.12 * edge
    canvas.polygon(((x - w, -h), (x + w, -h), (x + w, h), (x - w, h)), INK)
    top = x + length * math.sin(theta), h + length * math.cos(theta)
    canvas.rod((x, h), top, 0.07 * edge, BLUE)
    canvas.disc((x, h), 0.03 * edge, "white")
    return canvas


def _pendulum(state: Any, params: Any) -> Canvas:
    canvas, theta = Canvas(-1.3, 1.3, -1.3), float(state.theta)
    canvas.rod((0, 0), (-math.sin(theta), math.cos(theta)), 0.14, BLUE)
    canvas.disc((0, 0), 0.05)
    torque = float(state.last_u) / float(params.max_torque)
    if abs(torque) > 0.02:  # an arc, from the top on in the direction of the torque
        turn = [i / 20 * torque * math.pi / 2 for i in range(21)]
        canvas.line([(-0.35 * math.sin(a), 0.35 * math.cos(a)) for a in turn], 0.03, RED)
        canvas.disc((-0.35 * math.sin(turn[-1]), 0.35 * math.cos(turn[-1])), 0.04, RED)
    return canvas


def _acrobot(state: Any, params: Any) -> Canvas:
    lengths = float(params.link_length_1), float(params.link_length_2)
    reach = 1.1 * sum(lengths)
    canvas, first = Canvas(-reach, reach, -reach), float(state.joint_angle1)
    both = first + float(state.joint_angle2)
    canvas.line(((-reach, lengths[0]), (reach, lengths[0])), 0.03, GREY)  # to be reached
    elbow = lengths[0] * math.sin(first), -lengths[0] * math.cos(first)
    tip = elbow[0] + lengths[1] * math.sin(both), elbow[1] - lengths[1] * math.cos(both)
    canvas.rod((0, 0), elbow, 0.16, BLUE)
    canvas.rod(elbow, tip, 0.16, RED)
    for joint in ((0.0, 0.0), elbow):
        canvas.disc(joint, 0.05)
    return canvas


def _mountain_car(state: Any, params: Any) -> Canvas:
    low, high = float(params.min_position), float(params.max_position)

    def height(x: float) -> float:
        return 0.45 * math.sin(3 * x) + 0.55

    canvas = Canvas(low - 0.05, high + 0.05, -0.35)
    hill = [(x, height(x)) for x in np.linspace(low, high, 80)]
    canvas.polygon([*hill, (high, -1.0), (low, -1.0)], (235, 235, 235))
    canvas.line(hill, 0.015, INK)
    goal = float(params.goal_position)
    canvas.line(((goal, height(goal)), (goal, height(goal) + 0.22)), 0.012)
    flag = [(goal, height(goal) + 0.22), (goal + 0.11, height(goal) + 0.18)]
    canvas.polygon([*flag, (goal, height(goal) + 0.14)], RED)
    x, slope = float(state.position), math.atan(1.35 * math.cos(3 * float(state.position)))
    along, up = (math.cos(slope), math.sin(slope)), (-math.sin(slope), math.cos(slope))

    def beside(a: float, b: float) -> Point:
        return x + a * along[0] + b * up[0], height(x) + a * along[1] + b * up[1]

    body = (-0.09, 0.03), (0.09, 0.03), (0.06, 0.11), (-0.06, 0.11)
    canvas.polygon([beside(*corner) for corner in body], BLUE)
    for wheel in (-0.055, 0.055):
        canvas.disc(beside(wheel, 0.03), 0.03)
    return canvas


DRAWINGS: dict[str, Callable[[Any, Any], Canvas]] = {
    "CartPole": _cartpole,
    "Pendulum": _pendulum,
    "Acrobot": _acrobot,
    "MountainCar": _mountain_car,
    "ContinuousMountainCar": _mountain_car,
}


# The others -------------------------------------------------------------------------------------


def _grid(obs: np.ndarray) -> np.ndarray:
    """A grid (H, W, C) with a colour for each channel, the highest on top, as MinAtar has it."""
    import matplotlib

    obs = obs[..., None] if obs.ndim == 2 else obs
    channels = obs.shape[-1]
    # The darkest could not be told from the background.
    colours = matplotlib.colormaps["cubehelix"](np.linspace(0.3, 0.95, channels))[:, :3]
    if channels == 1:
        colours = np.ones((1, 3))
    picture = np.zeros((*obs.shape[:2], 3))
    for channel in range(channels):
        value = np.clip(obs[..., channel : channel + 1], 0, 1)
        picture = picture * (1 - value) + value * colours[channel]
    cells = Image.fromarray((255 * picture).astype(np.uint8))
    return _fitted(cells, Image.Resampling.NEAREST)


def _by_mujoco(env: Any, states: Sequence[Any]) -> list[np.ndarray]:
    """Brax's states by MuJoCo's renderer, from the model's first camera where it has one.

    Brax's models have neither lights nor a background of their own: a brighter lamp, and white.
    """
    import mujoco

    model = copy.copy(env.sys.mj_model)
    model.vis.headlight.ambient[:], model.vis.headlight.diffuse[:] = 0.45, 0.6
    data, camera = mujoco.MjData(model), 0 if model.ncam else -1
    pictures = []
    try:
        with mujoco.Renderer(model, height=2 * SIZE, width=2 * SIZE) as renderer:
            for state in states:
                data.qpos, data.qvel = state.pipeline_state.q, state.pipeline_state.qd
                mujoco.mj_forward(model, data)
                renderer.update_scene(data, camera=camera)
                picture = renderer.render()
                renderer.enable_segmentation_rendering()
                empty = renderer.render()[..., :1] < 0
                renderer.disable_segmentation_rendering()
                pictures.append(np.where(empty, np.uint8(255), picture))
    except Exception as error:  # of whatever library of graphics is missing
        line = " ".join(str(error).split())[:150]
        raise ValueError(
            f"MuJoCo cannot draw here ({line}): set MUJOCO_GL to egl or osmesa, or choose .html"
        ) from None
    return [_fitted(Image.fromarray(x), Image.Resampling.LANCZOS) for x in pictures]


def _rendered(env: Any, state: Any, params: Any) -> np.ndarray:
    """What the environment's own method draws."""
    result = env.render(state, params)
    if not isinstance(result, tuple):
        return _fitted(Image.fromarray(np.asarray(result, np.uint8)), Image.Resampling.LANCZOS)
    import matplotlib.pyplot as plt

    figure = result[0]
    figure.canvas.draw()
    picture = np.asarray(figure.canvas.buffer_rgba())[..., :3]
    plt.close(figure)
    return _fitted(Image.fromarray(picture), Image.Resampling.LANCZOS)


def _fitted(picture: Image.Image, by: Image.Resampling) -> np.ndarray:
    """A picture of any shape in the middle of a square one."""
    scale = SIZE / max(picture.size)
    small = picture.resize((round(picture.width * scale), round(picture.height * scale)), by)
    square = Image.new("RGB", (SIZE, SIZE), "white")
    square.paste(small, ((SIZE - small.width) // 2, (SIZE - small.height) // 2))
    return np.asarray(square)
