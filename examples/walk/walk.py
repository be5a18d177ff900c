#!/usr/bin/env python3
"""A robot walks in MuJoCo with inferd as its brain: ten seconds at 50 Hz, checked against a reference, and a picture of it.

walk.py --robots FOLDER --bin-dir FOLDER [--robot go2] [--picture walk.png] [--strip strip.png]
        [--reload-at S] [--kill-client-at S] [--restart-at S] [--realtime]

FOLDER of robots: scripts/fetch_robots.py fills it. Without --runtime-dir a daemon of its own is started. A tick whose action
does not come holds the home pose, as a real robot's fallback would, and is counted. Exit code 1 if the robot fell, or
ended 0.1 m or more from where the reference ended (not checked where ticks were lost: --restart-at, or --realtime on a busy machine).
"""
from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Tuple

import numpy as np

from robots import ROBOTS, TICK_S, Arrays, Robot

REFERENCE = Path(__file__).with_name("reference.json")
DX_MAX_M = 0.1
#: How long a tick waits for its action. In simulated time a late action is no worse than a prompt one.
PATIENCE_S = 10.0
LSTM_STATE = '[[state]]\ninput = "h_in"\noutput = "h_out"\n[[state]]\ninput = "c_in"\noutput = "c_out"\n'
#: A TorchScript file does not name its tensors; this one hides its state in buffers.
LSTM_TORCHSCRIPT = """input_order = ["obs"]
output_order = ["actions"]
[inputs.obs]
dtype = "f32"
shape = [1, 47]
[outputs.actions]
shape = [1, 12]
[options]
reset_method = "reset_memory"
"""
EXAMPLES = Path(__file__).resolve().parents[1]


@dataclasses.dataclass
class Tick:
    """What one tick was: its outcome, and how long it took."""

    base: Any
    action: Any
    status: str
    generation: int
    latency_s: float


@dataclasses.dataclass
class Walk:
    """Ten seconds of it."""

    robot: str
    command: List[float]
    ticks: List[Tick] = dataclasses.field(default_factory=list)
    inputs: List[Arrays] = dataclasses.field(default_factory=list)
    outputs: List[Arrays] = dataclasses.field(default_factory=list)
    poses: List[Any] = dataclasses.field(default_factory=list)
    events: List[Tuple[float, str]] = dataclasses.field(default_factory=list)
    fell_at_s: Optional[float] = None
    end: Any = None

    def path(self) -> "np.ndarray[Any, Any]":
        return np.array([t.base[:3] for t in self.ticks] + [self.end[:3]])

    def summary(self) -> Dict[str, Any]:
        us = np.array([t.latency_s for t in self.ticks if t.status == "ok"]) * 1e6
        outcomes: Dict[str, int] = {}
        for tick in self.ticks:
            outcomes[tick.status] = outcomes.get(tick.status, 0) + 1
        return {"robot": self.robot, "command": self.command, "ticks": len(self.ticks), "fell_at_s": self.fell_at_s,
                "end_xyz": [round(float(v), 4) for v in self.end[:3]], "outcomes": outcomes,
                "generations": sorted({t.generation for t in self.ticks if t.status == "ok"}),
                "call_us_p50": round(float(np.median(us)), 1), "call_us_p99": round(float(np.percentile(us, 99)), 1),
                "events": self.events}


Brain = Callable[[Arrays], Tuple[Optional[Arrays], str, int]]


def inferd_brain(robot: Any, patience_s: float) -> Brain:
    """The policy through a session; None for a tick without an action."""
    import inferd

    names = list(robot.outputs)

    def think(inputs: Arrays) -> Tuple[Optional[Arrays], str, int]:
        try:
            result = robot(inputs, timeout=patience_s)
        except inferd.Fallback as e:
            return None, e.name, 0
        return (result if isinstance(result, dict) else {names[0]: result}), "ok", robot.last.generation

    return think


def onnx_brain(policy: Path) -> Brain:
    """The policy in this process, for the reference."""
    import onnxruntime  # type: ignore[import-not-found]

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(policy), options, providers=["CPUExecutionProvider"])
    names = [o.name for o in session.get_outputs()]
    return lambda inputs: (dict(zip(names, session.run(names, inputs))), "ok", 0)


def walk(robot: Robot, name: str, think: Brain, seconds: float, events: List[Tuple[float, str, Callable[[], None]]],
         realtime: bool = False) -> Walk:
    """The closed loop."""
    done = Walk(name, [float(c) for c in robot.command])
    robot.stand()
    began = time.monotonic()
    waiting = sorted(events, key=lambda e: e[0])
    for i in range(round(seconds / TICK_S)):
        while waiting and waiting[0][0] <= i * TICK_S:
            at_s, what, act = waiting.pop(0)
            act()
            done.events.append((at_s, what))
        if realtime:
            time.sleep(max(0.0, began + i * TICK_S - time.monotonic()))
        inputs = robot.observe()
        called = time.perf_counter()
        outputs, status, generation = think(inputs)
        latency_s = time.perf_counter() - called
        action = np.zeros(0) if outputs is None else np.array(outputs[robot.action][0] if robot.action in outputs else
                                                              next(iter(outputs.values()))[0])
        done.ticks.append(Tick(robot.base, action, status, generation, latency_s))
        done.poses.append(robot.data.qpos.copy())
        done.inputs.append(inputs)
        done.outputs.append(outputs or {})
        if outputs is None:
            robot.wait()
        else:
            robot.act(outputs)
        if robot.fallen():
            done.fell_at_s = round((i + 1) * TICK_S, 2)
            break
    done.end = robot.base
    return done


def reference_of(name: str) -> Optional[Dict[str, Any]]:
    robots: Dict[str, Dict[str, Any]] = json.loads(REFERENCE.read_text())["robots"]
    return robots.get(name)


def verdict(done: Walk, seconds: float) -> Tuple[bool, str]:
    """Whether it walked, and the sentence. Only a walk without a lost tick can be compared with the reference."""
    x, y = float(done.end[0]), float(done.end[1])
    if done.fell_at_s is not None:
        return False, f"{done.robot} fell at {done.fell_at_s} s"
    reference = reference_of(done.robot)
    said = f"{done.robot} walked {seconds:g} s and stands at x {x:.3f}, y {y:.3f} m"
    lost = sum(tick.status != "ok" for tick in done.ticks)
    if lost:
        return True, f"{said}; {lost} ticks held the home pose, so it is not compared with the reference"
    if reference is None or abs(reference["seconds"] - seconds) > 1e-9:
        return True, said
    dx = x - reference["path"][-1][1]
    path = np.array(reference["path"])
    mine = done.path()[np.round(path[:, 0] / TICK_S).astype(int), :2]
    apart = np.hypot(*(mine - path[:, 1:3]).T).max()
    return abs(dx) < DX_MAX_M, f"{said}; the reference at x {path[-1][1]:.3f}, y {path[-1][2]:.3f}: dx {dx:+.4f} m, never " \
                               f"further than {apart:.4f} m apart"


def manifest_of(name: str, policy: Path) -> str:
    if name == "go2":
        text = (EXAMPLES / "models" / "go2" / "model.toml").read_text()
        return "\n".join(line for line in text.splitlines() if not line.startswith(("file =", "#"))) + "\n"
    if name == "g1-lstm" and policy.suffix == ".onnx":
        return LSTM_STATE
    if name == "g1-lstm":
        return LSTM_TORCHSCRIPT
    return ""


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--robot", choices=ROBOTS, default="go2")
    parser.add_argument("--robots", type=Path, required=True, help="what scripts/fetch_robots.py filled")
    parser.add_argument("--policy", type=Path, help="a policy file, if not the robot's own")
    parser.add_argument("--bin-dir", type=Path, help="inferd and inferd-worker; a daemon is started for the walk")
    parser.add_argument("--runtime-dir", type=Path, help="a running daemon's; it serves the robot's name as a model")
    parser.add_argument("--onnxruntime", action="store_true", help="no inferd: ONNX Runtime in this process, as the reference had it")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--realtime", action="store_true", help="a tick every 20 ms by the clock, its action within one tick")
    parser.add_argument("--reload-at", type=float, metavar="S", help="reload the policy under the robot")
    parser.add_argument("--kill-client-at", type=float, metavar="S", help="SIGKILL another client of the same policy")
    parser.add_argument("--restart-at", type=float, metavar="S", help="restart the daemon under the robot; implies --realtime")
    parser.add_argument("--picture", type=Path, help="PNG: base position, actions, latency")
    parser.add_argument("--strip", type=Path, help="PNG: rendered frames, where a headless renderer is there")
    parser.add_argument("--write-reference", action="store_true", help="keep this walk as the robot's reference")
    parser.add_argument("--json", action="store_true", help="the figures, as one line")
    args = parser.parse_args()
    if sum((args.bin_dir is not None, args.runtime_dir is not None, args.onnxruntime)) != 1:
        parser.error("one of --bin-dir, --runtime-dir and --onnxruntime")
    if args.bin_dir is None and (args.kill_client_at is not None or args.restart_at is not None):
        parser.error("--kill-client-at and --restart-at need a daemon of their own: --bin-dir")
    return args


def with_inferd(args: argparse.Namespace, robot: Robot, policy: Path) -> Walk:
    import inferd
    from brain import Stage
    from inferd import admin

    stage = None
    try:
        if args.bin_dir is not None:
            # No golden pairs and few warm-up runs: this is about walking.
            config = 'queue = "in_order"\n'
            stage = Stage(args.bin_dir, args.robot, policy, manifest_of(args.robot, policy), config)
            stage.start()
        run = stage.run if stage is not None else args.runtime_dir
        realtime = args.realtime or args.restart_at is not None
        events: List[Tuple[float, str, Callable[[], None]]] = []
        if args.reload_at is not None:
            events.append((args.reload_at, "policy reloaded", lambda: admin.reload(args.robot, runtime_dir=run)))
        if args.kill_client_at is not None and stage is not None:
            other = stage.add_client()
            events.append((args.kill_client_at, "another client killed", other.kill))
        if args.restart_at is not None and stage is not None:
            events.append((args.restart_at, "daemon restarted", stage.restart))
        with inferd.Session(args.robot, runtime_dir=run) as session:
            return walk(robot, args.robot, inferd_brain(session, TICK_S if realtime else PATIENCE_S), args.seconds, events, realtime)
    finally:
        if stage is not None:
            stage.close()


def write_reference(done: Walk, seconds: float) -> None:
    import mujoco
    import onnxruntime

    book = json.loads(REFERENCE.read_text()) if REFERENCE.exists() else {}
    book["made"] = (f"examples/walk/walk.py --onnxruntime --write-reference: MuJoCo {mujoco.__version__}, ONNX Runtime "
                    f"{onnxruntime.__version__} on one CPU thread, NumPy {np.__version__}")
    book["path"] = "rows of t [s], x, y, z [m] of the base"
    path = done.path()
    rows = [[round(i * TICK_S, 2), *(round(float(v), 4) for v in path[i])] for i in range(0, len(path), 25)]
    book.setdefault("robots", {})[done.robot] = {"command": done.command, "seconds": seconds, "path": rows}
    lines = json.dumps(book, indent=1).replace("[\n     ", "[").replace(",\n     ", ", ").replace("\n    ]", "]")
    REFERENCE.write_text(lines + "\n")


def main() -> int:
    args = arguments()
    robot = ROBOTS[args.robot](args.robots)
    policy = args.policy or (args.robots / robot.policy if robot.policy else None)
    if policy is None:
        sys.exit(f"walk: {args.robot}'s weights are in no package: say where they are with --policy")
    if args.onnxruntime:
        done = walk(robot, args.robot, onnx_brain(policy), args.seconds, [], args.realtime)
    else:
        done = with_inferd(args, robot, policy)
    if args.write_reference:
        write_reference(done, args.seconds)
    good, said = verdict(done, args.seconds)
    figures = done.summary()
    print(json.dumps({**figures, "walked": good}) if args.json else said)
    if not args.json:
        print(f"{figures['ticks']} ticks: {figures['outcomes']}; generations {figures['generations']}; a call takes "
              f"{figures['call_us_p50']} us p50, {figures['call_us_p99']} us p99")
        for at_s, what in done.events:
            print(f"at {at_s:g} s: {what}")
    if args.picture is not None:
        from picture import draw

        draw(done, reference_of(args.robot), args.picture)
        print(f"picture: {args.picture}", file=sys.stderr)
    if args.strip is not None:
        from picture import strip

        why = strip(robot, done, args.strip)
        print(f"strip: {args.strip}" if why is None else f"no strip: {why}", file=sys.stderr)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
