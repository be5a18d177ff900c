#!/usr/bin/env python3
"""Pictures of a walk: plots of base position, actions and latency; and frames rendered without a display, where that works."""
from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, List, Optional

import numpy as np

from robots import TICK_S, Robot

if TYPE_CHECKING:
    from walk import Walk

FRAMES = 8
FRAME_PX = (300, 400)  # height, width
INK, QUIET, MARK, SECOND = "#1b2a41", "#8d99ae", "#d1495b", "#2a9d8f"


def draw(done: "Walk", reference: Optional[Dict[str, Any]], to: Path) -> None:
    """One page: where it went, how it moved, what it commanded, how long it waited."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    t = np.arange(len(done.ticks)) * TICK_S
    path = done.path()
    figure, axes = plt.subplots(2, 2, figsize=(12, 7.5), constrained_layout=True)
    figure.suptitle(f"{done.robot}: {len(done.ticks) * TICK_S:g} s with inferd as its brain, command {done.command[0]:g} m/s forward",
                    fontsize=13, color=INK)
    above, forward, actions, latency = axes.flat

    if reference is not None:
        rows = np.array(reference["path"])
        above.plot(rows[:, 1], rows[:, 2], color=MARK, lw=5, alpha=0.3, label="reference")
        forward.plot(rows[:, 0], rows[:, 1], color=MARK, lw=5, alpha=0.3, label="x, reference")
    above.plot(path[:, 0], path[:, 1], color=INK, lw=1.5, label="base")
    above.plot(path[-1, 0], path[-1, 1], "o", color=INK)
    above.text(0.97, 0.05, f"ends at x {path[-1, 0]:.3f}, y {path[-1, 1]:.3f} m", transform=above.transAxes, ha="right")
    above.set(title="base from above", xlabel="x [m]", ylabel="y [m]")
    above.set_aspect("equal", adjustable="datalim")
    above.legend(loc="upper left")

    forward.plot(t, path[:-1, 0], color=INK, label="x")
    forward.plot(t, path[:-1, 1], color=SECOND, label="y")
    forward.plot(t, path[:-1, 2], color=QUIET, label="z")
    forward.set(title="base position", xlabel="t [s]", ylabel="[m]")

    width = max((len(tick.action) for tick in done.ticks), default=0)
    values = np.full((len(done.ticks), width), np.nan)
    for i, tick in enumerate(done.ticks):
        values[i, :len(tick.action)] = tick.action
    actions.plot(t, values, lw=0.7)
    actions.set(title=f"actions: {width} joints", xlabel="t [s]", ylabel="as the policy gives them")

    us = np.array([tick.latency_s for tick in done.ticks]) * 1e6
    ok = np.array([tick.status == "ok" for tick in done.ticks])
    generations = sorted({tick.generation for tick in done.ticks if tick.status == "ok"})
    for generation, colour in zip(generations, [INK, SECOND, "#e9c46a", QUIET] * 8):
        mine = ok & np.array([tick.generation == generation for tick in done.ticks])
        latency.plot(t[mine], us[mine], ".", ms=3, color=colour, label=f"generation {generation}, p50 {np.median(us[mine]):.0f} us")
    if (~ok).any():
        latency.plot(t[~ok], us[~ok], "x", ms=4, color=MARK, label=f"no action: {int((~ok).sum())} ticks")
    latency.set(title="one call of the policy", xlabel="t [s]", ylabel="[us]", yscale="log")

    for axis in (forward, actions, latency):
        for at_s, what in done.events:
            axis.axvline(at_s, color=MARK, lw=1, ls="--")
            if axis is forward:
                axis.annotate(what, (at_s, 0.98), xycoords=("data", "axes fraction"), rotation=90, va="top", ha="right",
                              fontsize=8, color=MARK)
    for axis in (forward, latency):
        axis.legend(loc="best", fontsize=8)
    for axis in axes.flat:
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(to, dpi=110)
    plt.close(figure)


def strip(robot: Robot, done: "Walk", to: Path) -> Optional[str]:
    """Frames side by side. None; or why there are none: no headless OpenGL here, for instance."""
    try:
        import mujoco
        from PIL import Image, ImageDraw

        renderer = mujoco.Renderer(robot.model, *FRAME_PX)
    except Exception as e:  # whatever a driver or its absence raises
        return f"{type(e).__name__}: {e}"
    try:
        frames: List[Any] = []
        data = mujoco.MjData(robot.model)
        camera = mujoco.MjvCamera()
        option = mujoco.MjvOption()
        option.geomgroup[:] = 1  # the collision shapes are all that there is without meshes
        for i in np.linspace(0, len(done.poses) - 1, FRAMES).astype(int):
            data.qpos[:] = done.poses[i]
            mujoco.mj_forward(robot.model, data)
            camera.lookat[:] = [data.qpos[0], data.qpos[1], data.qpos[2] * 0.8]
            camera.distance, camera.azimuth, camera.elevation = 3.2 * max(0.45, float(data.qpos[2])), 120, -15
            renderer.update_scene(data, camera, option)
            image = Image.fromarray(renderer.render().copy())
            ImageDraw.Draw(image).text((8, 6), f"{i * TICK_S:.2f} s   x {data.qpos[0]:.2f} m", fill=(27, 42, 65))
            frames.append(image)
    finally:
        renderer.close()
    height, width = FRAME_PX
    sheet = Image.new("RGB", (width * 4 + 12, height * 2 + 4), (255, 255, 255))
    for n, image in enumerate(frames):
        sheet.paste(image, ((n % 4) * (width + 4), (n // 4) * (height + 4)))
    sheet.save(to)
    return None
