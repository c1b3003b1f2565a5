"""`jaxrl render`: an episode of each trained agent of a run, side by side."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from envs_jax import pictures
from experiments.runs.folder import RunFolder
from jaxrl import files
from jaxrl.report.formatting import number, setting_text
from jaxrl.training.episode import Episode, episode

KINDS = (".gif", ".html", ".png")
MOST = 16  # members side by side
FRAMES = 250  # of a .gif; of a longer episode every second step is shown, or every third ...
MOMENTS = 6  # of a .png
BAR, MARGIN, FONT = 34, 6, 12  # pixels


class Shown(NamedTuple):
    """A member's episode: its images are those of `steps`."""

    title: str
    episode: Episode
    steps: list[int]
    images: list[np.ndarray]


def render(args: argparse.Namespace) -> None:
    """Write the picture. Raises: ValueError where it cannot be drawn, or not of that kind."""
    kind = args.out.suffix.lower()
    if kind not in KINDS:
        raise ValueError(f"--out {args.out}: give a name that ends in {', '.join(KINDS)}")
    folder = RunFolder.open(args.run)
    which = folder.chosen(args.member, args.best)
    members = len(folder.listing["members"])
    some = isinstance(which, list) and len(set(which)) > 1
    if kind == ".html" and (some or (which is None and members > 1)):
        raise ValueError("a page shows one member: choose by --member I or --best")
    if which is None and members > MOST:
        print(f"members 0 to {MOST - 1} of {members}: --member I or --best chooses others")
    shown = []
    for member in folder.members(which, args.checkpoint):
        if member.number >= MOST and which is None:
            break
        key = jax.random.fold_in(jax.random.key(args.seed), member.number)
        seen = episode(member.agent, member.state, key, args.steps, not args.stochastic)
        setting = setting_text({**member.setting, "seed": member.seed})
        print(f"member {member.number} ({setting}): return {_total(seen)} in {len(seen)} steps")
        env, states = member.agent.env, [seen.state(i) for i in range(len(seen))]
        if kind == ".html":
            _write(args.out, pictures.page(env, states).encode())
            continue
        steps = _steps(len(seen), kind)
        images = pictures.images(
            env, member.agent.env_params, [states[i] for i in steps], [seen.obs[i] for i in steps]
        )
        shown.append(Shown(f"{member.number}: {setting}", seen, steps, images))
    if kind == ".gif":
        _animate(shown, args.out, pictures.seconds_per_step(env, seen.obs[0]))
    elif kind == ".png":
        _sheet(shown, args.out)
    print(args.out)


def _total(seen: Episode) -> str:
    return number(float(seen.rewards.sum()))


def _steps(length: int, kind: str) -> list[int]:
    """Which steps are shown: the first, the last and those in between at equal distances."""
    if kind == ".png":
        return np.linspace(0, length - 1, min(MOMENTS, length)).round().astype(int).tolist()
    return list(range(0, length, math.ceil(length / FRAMES)))


def _cell(shown: Shown, i: int) -> Image.Image:
    """An image with what is written above it."""
    side = pictures.SIZE
    cell = Image.new("RGB", (side, side + BAR), "white")
    cell.paste(Image.fromarray(shown.images[i]), (0, BAR))
    pen, font = ImageDraw.Draw(cell), ImageFont.load_default(FONT)
    pen.rectangle((0, BAR, side - 1, BAR + side - 1), outline=pictures.GREY)
    title = shown.title
    while font.getlength(title) > side - 4:
        title = f"{title[:-2]}…"
    so_far = number(float(shown.episode.rewards[: shown.steps[i] + 1].sum()))
    pen.text((2, 1), title, pictures.INK, font)
    pen.text((2, 17), f"step {shown.steps[i] + 1:,}, return {so_far}", pictures.INK, font)
    return cell


def _together(cells: Sequence[Image.Image], columns: int) -> Image.Image:
    width, height = (x + MARGIN for x in cells[0].size)
    rows = math.ceil(len(cells) / columns)
    whole = Image.new("RGB", (columns * width + MARGIN, rows * height + MARGIN), "white")
    for i, cell in enumerate(cells):
        whole.paste(cell, (MARGIN + i % columns * width, MARGIN + i // columns * height))
    return whole


def _animate(shown: list[Shown], out: Path, seconds: float) -> None:
    """All episodes at once; the shorter ones stand still at their end."""
    stride = max(one.steps[1] - one.steps[0] if len(one.steps) > 1 else 1 for one in shown)
    last = max(one.steps[-1] for one in shown)
    columns = math.ceil(math.sqrt(len(shown)))
    cells: dict[tuple[int, int], Image.Image] = {}
    frames = []
    for step in range(0, last + 1, stride):
        places = [int(np.searchsorted(one.steps, step, side="right")) - 1 for one in shown]
        for k, i in enumerate(places):
            if (k, i) not in cells:
                cells[k, i] = _cell(shown[k], i)
        frames.append(_together([cells[k, i] for k, i in enumerate(places)], columns))
    # One palette for all frames, or colours would flicker; browsers show no less than 20 ms.
    palette = _together([cells[key] for key in list(cells)[:: max(1, len(cells) // 9)]], 3)
    colours = palette.quantize(255, dither=Image.Dither.NONE)
    small = [frame.quantize(palette=colours, dither=Image.Dither.NONE) for frame in frames]
    duration = max(20, round(1000 * seconds * stride))
    with files.replacing(out) as file:
        more: Any = {"save_all": True, "append_images": small[1:], "loop": 0}
        small[0].save(file, "GIF", duration=[duration] * (len(small) - 1) + [1000], **more)


def _sheet(shown: list[Shown], out: Path) -> None:
    """A row for each member, some moments of its episode from left to right."""
    cells = []
    for one in shown:
        row = [_cell(one, i) for i in range(len(one.images))]
        cells += row + [Image.new("RGB", row[0].size, "white")] * (MOMENTS - len(row))
    with files.replacing(out) as file:
        _together(cells, MOMENTS).save(file, "PNG")


def _write(out: Path, content: bytes) -> None:
    with files.replacing(out) as file:
        file.write(content)
