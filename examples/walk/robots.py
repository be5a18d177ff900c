#!/usr/bin/env python3
"""The robots that walk: their bodies in MuJoCo, what their policies see, and what an action does to them.

Bodies and most policies come from package data (scripts/fetch_robots.py). Meshes are for the eye only and are dropped: every
robot here collides with primitives and has explicit inertias. Each tick of 20 ms: `observe` -> policy -> `act`, whose
PD controller runs at the simulator's own rate. All in SI units and radians; quaternions are w, x, y, z.
"""
from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Type

# MuJoCo chooses its OpenGL when it is imported. There is no display here, or none that is wanted.
os.environ["MUJOCO_GL"] = os.environ.get("MUJOCO_GL") or "egl"
os.environ.setdefault("PYOPENGL_PLATFORM", os.environ["MUJOCO_GL"])
try:
    import mujoco
except Exception:  # no such library: walking needs none
    os.environ["MUJOCO_GL"] = "disabled"
    import mujoco
import numpy as np

TICK_S = 0.02
Arrays = Dict[str, "np.ndarray[Any, Any]"]
HINGE, MESH, PLANE = mujoco.mjtJoint.mjJNT_HINGE, mujoco.mjtGeom.mjGEOM_MESH, mujoco.mjtGeom.mjGEOM_PLANE


def compile_body(xml: Path, timestep_s: float, change: Callable[[Any], None]) -> Any:
    """An MJCF file without its meshes, on a floor."""
    spec = mujoco.MjSpec.from_file(str(xml))
    for geom in [g for g in spec.geoms if g.type == MESH]:
        spec.delete(geom)
    for mesh in list(spec.meshes):
        spec.delete(mesh)
    if not any(g.type == PLANE for g in spec.geoms):
        spec.worldbody.add_geom(name="floor", type=PLANE, size=[0, 0, 0.05])
    change(spec)
    paint(spec)
    model = spec.compile()
    model.opt.timestep = timestep_s
    return model


def paint(spec: Any) -> None:
    """For the pictures alone: light, a sky, a floor that shows how far the robot came, and one colour for its body."""
    builtin, kind = mujoco.mjtBuiltin, mujoco.mjtTexture
    spec.add_texture(name="walk_sky", type=kind.mjTEXTURE_SKYBOX, builtin=builtin.mjBUILTIN_GRADIENT, rgb1=[0.75, 0.85, 0.95],
                     rgb2=[1, 1, 1], width=64, height=384)
    spec.add_texture(name="walk_floor", type=kind.mjTEXTURE_2D, builtin=builtin.mjBUILTIN_CHECKER, rgb1=[0.80, 0.82, 0.84],
                     rgb2=[0.62, 0.66, 0.70], width=256, height=256)
    material = spec.add_material(name="walk_floor", texrepeat=[1, 1], texuniform=True)
    material.textures[mujoco.mjtTextureRole.mjTEXROLE_RGB] = "walk_floor"
    for light in list(spec.lights):
        spec.delete(light)
    spec.visual.headlight.ambient, spec.visual.headlight.diffuse = [0.45] * 3, [0.55] * 3
    spec.worldbody.add_light(pos=[0, 0, 20], dir=[0.2, 0.3, -1], type=mujoco.mjtLightType.mjLIGHT_DIRECTIONAL, diffuse=[0.4] * 3, castshadow=False)
    for geom in spec.geoms:
        if geom.type == PLANE:
            geom.material = "walk_floor"
        else:
            geom.material, geom.rgba = "", [0.22, 0.42, 0.65, 1]


class Robot:
    """A floating base, whose free joint comes first, and joints addressed by name."""

    #: Below the folder of robots: the body, and the policy if it comes with it.
    xml: str
    policy: Optional[str] = None
    timestep_s: float
    fall_height_m: float
    #: Speed command: forward and sideways [m/s], turning [rad/s].
    command = np.array([0.8, 0.0, 0.0])
    home: "np.ndarray[Any, Any]"
    kp: Any
    kd: Any
    torque_max: Any
    #: Output of the policy that is the action.
    action = "actions"

    def __init__(self, folder: Path) -> None:
        self.joints: List[str] = []
        self.model = compile_body(folder / self.xml, self.timestep_s, self.change)
        self.data = mujoco.MjData(self.model)
        self.q_at = np.array([self.model.joint(j).qposadr[0] for j in self.joints])
        self.v_at = np.array([self.model.joint(j).dofadr[0] for j in self.joints])
        self.last = np.zeros(0, np.float32)

    def change(self, spec: Any) -> None:
        """What the policy was trained with, and the file does not say; fills `joints`."""
        raise NotImplementedError

    # ---- what it feels

    @property
    def q(self) -> Any:
        return self.data.qpos[self.q_at]

    @property
    def dq(self) -> Any:
        return self.data.qvel[self.v_at]

    @property
    def gyro(self) -> Any:
        return self.data.qvel[3:6]  # a free joint's angular velocity is the body's own

    @property
    def gravity(self) -> "np.ndarray[Any, Any]":
        """The direction of gravity as the body sees it."""
        w, x, y, z = self.data.qpos[3:7]
        return np.array([2 * (w * y - x * z), -2 * (y * z + w * x), 2 * (x * x + y * y) - 1])

    @property
    def base(self) -> "np.ndarray[Any, Any]":
        """Position and orientation, x y z w x y z."""
        return self.data.qpos[:7].copy()

    def fallen(self) -> bool:
        return bool(self.data.qpos[2] < self.fall_height_m or self.gravity[2] > -0.5)

    # ---- what it does

    def stand(self) -> None:
        """The home pose, its lowest part on the floor; memory of earlier actions is gone."""
        model, data = self.model, self.data
        mujoco.mj_resetData(model, data)
        data.qpos[:7] = [0, 0, 2, 1, 0, 0, 0]
        data.qpos[self.q_at] = self.home
        mujoco.mj_forward(model, data)
        floor = next(g for g in range(model.ngeom) if model.geom_type[g] == PLANE)
        solid = [g for g in range(model.ngeom) if model.geom_bodyid[g] > 0 and (model.geom_contype[g] or model.geom_conaffinity[g])]
        data.qpos[2] -= min(mujoco.mj_geomDistance(model, data, g, floor, 10.0, None) for g in solid)
        mujoco.mj_forward(model, data)

    def observe(self) -> Arrays:
        raise NotImplementedError

    def act(self, outputs: Arrays) -> None:
        """One tick with this action."""
        raise NotImplementedError

    def wait(self) -> None:
        """One tick without an action: the fallback of this example holds the home pose."""
        self.last = np.zeros_like(self.last)
        self.follow(self.home)

    def follow(self, target: "np.ndarray[Any, Any]") -> None:
        """One tick of the PD controller."""
        for _ in range(round(TICK_S / self.timestep_s)):
            torque = np.clip(self.kp * (target - self.q) - self.kd * self.dq, -self.torque_max, self.torque_max)
            self.data.qfrc_applied[self.v_at] = torque
            mujoco.mj_step(self.model, self.data)


def row(*parts: Any) -> "np.ndarray[Any, Any]":
    return np.concatenate([np.atleast_1d(p) for p in parts]).astype(np.float32)[None, :]


class Go2(Robot):
    """Unitree Go2, a velocity-tracking MLP of rl_sar. obs[45]: gyro/4, gravity, command, q, dq/20, last action."""

    xml, policy = "go2/go2.xml", "go2/policy.onnx"
    timestep_s, fall_height_m = 0.0025, 0.15
    home = np.array([0.0, 0.8, -1.5] * 4)
    scale = np.array([0.125, 0.25, 0.25] * 4)
    kp, kd, torque_max = 20.0, 0.5, np.array([23.7, 23.7, 45.43] * 4)

    def change(self, spec: Any) -> None:
        self.joints[:] = [f"{leg}_{part}_joint" for leg in ("FR", "FL", "RR", "RL") for part in ("hip", "thigh", "calf")]
        for name in self.joints:  # fitted to runs of the real robot by the package that the body comes from
            joint = spec.joint(name)
            joint.armature, joint.frictionloss = 0.00712, 0.365
            joint.damping = [0.285, 0.0, 0.0]
        for key in list(spec.keys):
            spec.delete(key)

    def stand(self) -> None:
        super().stand()
        self.last = np.zeros(12, np.float32)

    def observe(self) -> Arrays:
        return {"obs": row(self.gyro * 0.25, self.gravity, self.command, self.q - self.home, self.dq * 0.05, self.last)}

    def act(self, outputs: Arrays) -> None:
        self.last = np.clip(outputs["actions"][0], -100, 100)
        self.follow(self.home + self.last * self.scale)


def _g1_motors() -> "np.ndarray[Any, Any]":
    """kp [Nm/rad], kd [Nms/rad] and torque limit [Nm] of the 29 motors, by their type."""
    hip, knee = (40.179238471, 2.557889765, 88.0), (99.098427777, 6.308801854, 139.0)
    ankle, arm = (28.501246196, 1.814445687, 50.0), (14.250623098, 0.907222843, 25.0)
    wrist = (16.778327481, 1.068141502, 5.0)
    legs = [hip, knee, hip, knee, ankle, ankle] * 2
    return np.array(legs + [hip, ankle, ankle] + [arm, arm, arm, arm, arm, wrist, wrist] * 2).T


class G1(Robot):
    """Unitree G1, 29 joints, holosoma's MLPs. Terms of obs[100] in alphabetical order; a gait phase of one second."""

    xml, policy = "g1/g1.xml", "g1/ppo_g1_29dof.onnx"
    timestep_s, fall_height_m = 0.002, 0.5
    command = np.array([0.6, 0.0, 0.0])
    home = np.array([-0.312, 0, 0, 0.669, -0.363, 0] * 2 + [0, 0, 0] + [0.2, 0.2, 0, 0.6, 0, 0, 0] + [0.2, -0.2, 0, 0.6, 0, 0, 0])
    kp, kd, torque_max = _g1_motors()
    action = "action"

    def change(self, spec: Any) -> None:
        self.joints[:] = [j.name for j in spec.joints if j.type == HINGE]
        for name, kp in zip(self.joints, _g1_motors()[0]):
            spec.joint(name).armature = kp / (20 * np.pi) ** 2  # the gains are those of a 10 Hz oscillator
        for geom in spec.geoms:
            geom.condim, geom.friction = 3, [1.0, 0.005, 0.0001]
            if geom.type != PLANE:  # not with itself
                geom.contype, geom.conaffinity = 0, 1

    def stand(self) -> None:
        super().stand()
        self.last = np.zeros(29, np.float32)
        self.phase = np.array([0.0, np.pi])

    def observe(self) -> Arrays:
        c = self.command
        return {"actor_obs": row(self.last, self.gyro * 0.25, c[2], c[:2], np.cos(self.phase), self.q - self.home,
                                 self.dq * 0.05, self.gravity, np.sin(self.phase))}

    def act(self, outputs: Arrays) -> None:
        self.last = np.clip(outputs["action"][0], -100, 100)
        self.follow(self.home + 0.25 * self.last)
        self.phase = np.fmod(self.phase + 2 * np.pi * TICK_S + np.pi, 2 * np.pi) - np.pi


class G1Sac(G1):
    policy = "g1/fastsac_g1_29dof.onnx"


class G1Lstm(G1):
    """Unitree G1, its own recurrent policy for the 12 leg joints; waist and arms are held. The daemon keeps the LSTM's state.

    The weights are in no package: `--policy` says where they are, as ONNX with h_in, c_in, h_out, c_out, or as TorchScript.
    """

    policy = None
    command = np.array([0.8, 0.0, 0.0])
    home = np.array([-0.1, 0, 0, 0.3, -0.2, 0] * 2 + [0] * 17)
    kp = np.array([100, 100, 100, 150, 40, 40] * 2 + [200] * 3 + [60] * 14, float)
    kd = np.array([2, 2, 2, 4, 2, 2] * 2 + [5] * 3 + [2] * 14, float)
    torque_max = np.array([88, 139, 88, 139, 50, 50] * 2 + [100] * 17, float)
    action = "actions"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        legs = self.v_at[:12]
        self.model.dof_armature[legs] = 0.01
        self.model.dof_frictionloss[legs] = 0.1

    def stand(self) -> None:
        super().stand()
        self.last = np.zeros(12, np.float32)
        self.time_s = 0.0

    def observe(self) -> Arrays:
        angle = 2 * np.pi * (self.time_s % 0.8) / 0.8
        obs = row(self.gyro * 0.25, self.gravity, self.command * [2.0, 2.0, 0.25], (self.q - self.home)[:12], self.dq[:12] * 0.05,
                  self.last, np.sin(angle), np.cos(angle))
        return {"obs": obs}

    def act(self, outputs: Arrays) -> None:
        self.last = next(iter(outputs.values()))[0]
        target = self.home.copy()
        target[:12] += 0.25 * self.last
        self.follow(target)
        self.time_s += TICK_S


ROBOTS: Dict[str, Type[Robot]] = {"go2": Go2, "g1-ppo": G1, "g1-fastsac": G1Sac, "g1-lstm": G1Lstm}
