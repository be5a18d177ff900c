#!/usr/bin/env python3
"""ACT served by each backend: LeRobot's own architecture with a VGA camera, exported with seeded weights, and timed as a client sees it.

usage: bench_act.py [--rounds 6] [--seconds 20] [--backends ort,torch,tract] [--json FILE] [--again]

Run by `make bench-act`. The network is ACT as its authors trained it: ResNet-18, 4 encoder layers, 1 decoder layer, width 512, chunks of
100 actions, 14 joints; only the weights are random, so that nothing is downloaded but the pinned wheels that `make test-export` uses too.
One daemon in a temporary folder serves the same network as ONNX (tract, ort) and as TorchScript (torch), one worker each. Models
load one after another; what a backend refuses is printed, not left out. Then rounds in which the backends take turns. INFERD_BIN_DIR
says where the programs are built, else CARGO_TARGET_DIR.
"""
from __future__ import annotations

import argparse
import hashlib
import json
import logging
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any, Dict, List, Optional

ROOT = Path(__file__).resolve().parents[1]
EXPORT = ROOT / "tools" / "export"
TARGET = Path(os.environ.get("CARGO_TARGET_DIR")
              or os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "inferd/target"))
BIN = Path(os.environ.get("INFERD_BIN_DIR") or TARGET / "release")
#: The form that each backend loads.
FORMS = {"tract": "onnx", "ort": "onnx", "torch": "torchscript"}
SEED, JOINTS, CAMERA = 7, 14, (3, 480, 640)
#: Of raw actions, which are of the size of 1 here.
TOLERANCE = 1e-4
GOLDEN_STEPS = 2
LOAD_S, RUN_S = 540, 60


def export(folder: Path) -> None:
    """In the environment with PyTorch and LeRobot: both forms of one policy, with golden steps."""
    sys.path.insert(0, str(EXPORT))
    import from_lerobot
    import torch
    from lerobot.configs.types import FeatureType, PolicyFeature
    from lerobot.policies.act.configuration_act import ACTConfig
    from lerobot.policies.act.modeling_act import ACTPolicy

    warnings.simplefilter("ignore")  # of tracing: every shape here is fixed
    logging.disable(logging.WARNING)  # the ONNX exporter's: what it leaves unfolded
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    config = ACTConfig(input_features={"observation.state": PolicyFeature(FeatureType.STATE, (JOINTS,)),
                                       "observation.images.top": PolicyFeature(FeatureType.VISUAL, CAMERA)},
                       output_features={"action": PolicyFeature(FeatureType.ACTION, (JOINTS,))},
                       pretrained_backbone_weights=None, device="cpu")
    policy = ACTPolicy(config)
    print(f"ACT: {sum(p.numel() for p in policy.parameters())} parameters, chunks of {config.chunk_size}", file=sys.stderr)
    # As the statistics of a data set would be folded in: ImageNet's for the camera, some range for the joints.
    stats = {"observation.images.top": {"mean": torch.tensor([0.485, 0.456, 0.406]).reshape(3, 1, 1),
                                        "std": torch.tensor([0.229, 0.224, 0.225]).reshape(3, 1, 1)},
             "observation.state": {"mean": torch.zeros(JOINTS), "std": torch.full((JOINTS,), 0.8)},
             "action": {"mean": torch.zeros(JOINTS), "std": torch.full((JOINTS,), 0.8)}}
    for form in sorted(set(FORMS.values())):
        print(from_lerobot.export(policy, folder / form, stats, form=form, steps=GOLDEN_STEPS, tolerance=TOLERANCE), file=sys.stderr)


def exported(folder: Path, again: bool) -> bool:
    """Makes the models unless they are there, made by these very sources; False where their environment is not to be had."""
    sources = [Path(__file__), *sorted(EXPORT.glob("*.py")), ROOT / "scripts" / "python" / "torch.txt"]
    digest = hashlib.sha256(b"\0".join(s.read_bytes() for s in sources)).hexdigest()
    mark = folder / "made"
    if mark.is_file() and mark.read_text() == digest and not again:
        return True
    sys.path.insert(0, str(ROOT / "client-py" / "tests"))
    from run import interpreters

    pythons = interpreters((3, 11), False)
    if not pythons:
        print("SKIP bench-act: no Python 3.11 or newer here, which LeRobot wants")
        return False
    made = subprocess.run([sys.executable, ROOT / "scripts" / "python_env.py", "torch", "--python", pythons[0]], stdout=subprocess.PIPE,
                          text=True)
    if made.returncode != 0:
        print("SKIP bench-act: no environment with PyTorch and LeRobot could be made (see above)")
        return False
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([made.stdout.strip(), __file__, "--export", folder], check=True, env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"})
    mark.write_text(digest)
    return True


class Daemon:
    """inferd with a folder, sockets and a state directory of its own."""

    def __init__(self) -> None:
        self.dir = Path(tempfile.mkdtemp(prefix="inferd-act."))
        (self.dir / "run").mkdir(mode=0o700)
        # The store would only copy the weights.
        self.config = f'[daemon]\nruntime_dir = "{self.dir}/run"\nstate_dir = "{self.dir}/state"\nstore_bytes = 0\n'
        (self.dir / "inferd.toml").write_text(self.config)
        with open(self.dir / "log", "wb") as log:
            self.process = subprocess.Popen([BIN / "inferd", "--config", self.dir / "inferd.toml"], stdin=subprocess.DEVNULL, stdout=log,
                                            stderr=log)
        try:
            self.wait(lambda: self.ask("status").get("state") == "ready", 30)
        except BaseException:
            self.stop()
            raise

    def run(self, *arguments: Any) -> "subprocess.CompletedProcess[str]":
        return subprocess.run([BIN / "inferctl", *map(str, arguments), "--runtime-dir", self.dir / "run"], stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE, text=True)

    def ask(self, *arguments: Any) -> Any:
        ran = self.run(*arguments, "--json")
        return json.loads(ran.stdout) if ran.returncode == 0 else {}

    def wait(self, done: Any, seconds: float) -> None:
        end = time.monotonic() + seconds
        while not done():
            if self.process.poll() is not None or time.monotonic() > end:
                sys.exit("bench_act: inferd did not come so far; the end of its log:\n" + (self.dir / "log").read_text()[-4000:])
            time.sleep(0.1)

    def load(self, backend: str, folder: Path) -> Dict[str, Any]:
        """Adds a model and waits for its verdict: by the configuration, which alone can grant such a model its time."""
        self.config += (f'[models.act-{backend}]\npath = "{folder}"\nbackend = "{backend}"\noptional = true\nslots = 1\n'
                        f"load_ms = {LOAD_S * 1000}\nmax_run_ms = {RUN_S * 1000}\n")
        (self.dir / "inferd.toml").write_text(self.config)
        self.process.send_signal(signal.SIGHUP)
        found: Dict[str, Any] = {}

        def decided() -> bool:
            models = self.ask("models")
            found.update(next((m for m in models or [] if m["model"] == f"act-{backend}"), {}))
            return found.get("state") in ("live", "failed", "quarantined")

        self.wait(decided, LOAD_S + 30)
        return found

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        shutil.rmtree(self.dir, ignore_errors=True)


def resident(pid: int) -> Dict[str, float]:
    """MB of a process, without the shared memory of its sessions; `file`: pages of its programs and libraries."""
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return {name: int(fields[key].split()[0]) / 1e3 for name, key in (("anonymous", "RssAnon"), ("file", "RssFile"))}


def stolen() -> int:
    return int(Path("/proc/stat").read_text().split("\n", 1)[0].split()[8])


def machine() -> Dict[str, Any]:
    names = {line.split(":", 1)[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")}
    return {"cpu": ", ".join(sorted(names)) or "unknown", "cpus": len(os.sched_getaffinity(0)), "load_average": os.getloadavg(),
            "kernel": os.uname().release}


def prepare(daemon: Daemon, backend: str, folder: Path) -> Dict[str, Any]:
    """Loads a model; how long that took, or why it was refused, and how far its served answers are from PyTorch's."""
    print(f"loading act-{backend} ...", file=sys.stderr)
    row: Dict[str, Any] = {"backend": backend, "rounds": []}
    # Once unserved: only a validation says what was loading and what was warm-up. It is bound to the default time limit.
    tried = daemon.run("validate", folder, "--backend", backend, "--json")
    if tried.returncode == 0:
        row.update({key: json.loads(tried.stdout)[key] for key in ("load_ms", "warm_up_ms", "golden_difference_max")})
    else:
        row["not_validated"] = said(tried)
    before = time.monotonic()
    model = daemon.load(backend, folder)
    row.update(program=model.get("backend"), ready_s=time.monotonic() - before, warnings=model.get("warnings"))
    if model["state"] != "live":
        return {**row, "refused": model.get("message") or model["state"]}
    replayed = daemon.run("replay", f"act-{backend}", folder / "golden.npz", "--tol", TOLERANCE, "--json")
    if replayed.returncode == 0:
        row["served_difference_max"] = max(o["difference_max"] for o in json.loads(replayed.stdout)["outputs"])
    else:
        row["refused"] = "the golden pair is missed when served: " + said(replayed)
    return row


def said(ran: "subprocess.CompletedProcess[str]") -> str:
    return ran.stderr.strip() or ran.stdout.strip() or f"exit code {ran.returncode}"


def measure(daemon: Daemon, row: Dict[str, Any], golden: Path, seconds: float) -> None:
    """One round: as many requests as are answered in that time, one after another."""
    ran = daemon.run("bench", f"act-{row['backend']}", "--flat-out", "--duration", seconds, "--slots", 1, "--timeout-ms", RUN_S * 1000,
                     "--input", golden, "--json", "-")
    if ran.returncode != 0:
        row["refused"] = "the bench failed: " + said(ran)
        return
    report = json.loads(ran.stdout)
    row["rounds"].append({"attempts": report["attempts"], "ok": report["outcomes"]["ok"], "load_average": os.getloadavg()[0],
                          **{stage: report["latency"][stage] for stage in ("round_trip", "queue", "model", "reply")}})
    pid = next(m["worker_pid"] for m in daemon.ask("models") if m["model"] == f"act-{row['backend']}")
    row["resident_mb"] = resident(pid)


def of_rounds(row: Dict[str, Any], stage: str, key: str, pick: Any) -> float:
    return pick([r[stage][key] for r in row["rounds"] if r["ok"]]) / 1e6


def sum_up(row: Dict[str, Any], rows: List[Dict[str, Any]]) -> None:
    """min: of all runs. p50, p99: the median round's. The ratio: the median of the rounds' ratios, each within its round."""
    for stage in ("model", "round_trip"):
        row[f"{stage}_ms"] = {"min": of_rounds(row, stage, "min_ns", min), "p50": of_rounds(row, stage, "p50_ns", statistics.median),
                              "p99": of_rounds(row, stage, "p99_ns", statistics.median), "max": of_rounds(row, stage, "max_ns", max)}
    # What serving adds: everything of a round trip that is not the model's run, at each round's median.
    row["served_adds_ms"] = statistics.median(r["queue"]["p50_ns"] + r["reply"]["p50_ns"] for r in row["rounds"] if r["ok"]) / 1e6
    row["runs"] = sum(r["ok"] for r in row["rounds"])
    first = next(r for r in rows if r["rounds"])
    row["over_first"] = statistics.median(mine["model"]["p50_ns"] / its["model"]["p50_ns"]
                                          for mine, its in zip(row["rounds"], first["rounds"]) if mine["ok"] and its["ok"])


def table(rows: List[Dict[str, Any]]) -> str:
    served = [r for r in rows if "runs" in r]
    first = served[0]["backend"] if served else ""
    heads = ["ms", "runs", "model min", "p50", "p99", "request p50", "p99", "queue + reply", f"p50 / {first}", "load", "warm-up",
             "golden diff", "resident MB"]
    lines = [heads]
    for r in served:
        m, t = r["model_ms"], r["round_trip_ms"]
        lines.append([r["program"], str(r["runs"]), f"{m['min']:.1f}", f"{m['p50']:.1f}", f"{m['p99']:.1f}", f"{t['p50']:.1f}",
                      f"{t['p99']:.1f}", f"{r['served_adds_ms']:.2f}", f"{r['over_first']:.2f}",
                      *(f"{r[key]:.0f}" if key in r else "-" for key in ("load_ms", "warm_up_ms")), f"{r['served_difference_max']:.1e}",
                      f"{sum(r['resident_mb'].values()):.0f}"])
    widths = [max(len(line[i]) for line in lines) for i in range(len(heads))]
    text = "\n".join("  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths))).rstrip() for line in lines)
    for r in rows:
        failed = sum(x["attempts"] - x["ok"] for x in r["rounds"])
        if failed:
            text += f"\n{r['backend']}: {failed} requests were not answered with ok"
        if "not_validated" in r and "refused" not in r:
            text += f"\n{r['backend']}: load and warm-up are unknown: {r['not_validated']}"
        if "refused" in r:
            text += f"\n{r['backend']}: REFUSED after {r['ready_s']:.1f} s: {r['refused']}"
    if any(x["ok"] < 100 for r in served for x in r["rounds"]):
        text += "\n(a p99 of fewer than 100 runs in a round is that round's longest)"
    return text


def main() -> Optional[int]:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--seconds", type=float, default=20.0, help="of one backend in one round")
    parser.add_argument("--backends", default="ort,torch,tract", help="in their order; ratios are to the first that serves")
    parser.add_argument("--json", type=Path, default=TARGET / "bench-act.json", help="where the figures go")
    parser.add_argument("--models", type=Path, default=TARGET / "act", help="where the exported models are kept")
    parser.add_argument("--again", action="store_true", help="export even if the models are there")
    parser.add_argument("--export", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.export:
        return export(args.export)
    backends = args.backends.split(",")
    if set(backends) - set(FORMS) or args.rounds < 1:
        parser.error(f"--backends takes some of {', '.join(FORMS)}; --rounds at least 1")
    if not exported(args.models.resolve(), args.again):
        return 0
    forms = {b: args.models.resolve() / FORMS[b] for b in backends}
    before, stolen_before = machine(), stolen()
    daemon = Daemon()
    try:
        version = daemon.ask("status").get("version")
        rows = [prepare(daemon, b, forms[b]) for b in backends]
        for number in range(args.rounds):
            for row in rows:
                if "refused" not in row:
                    print(f"round {number + 1} of {args.rounds}: {row['backend']}", file=sys.stderr)
                    measure(daemon, row, forms[row["backend"]] / "golden.npz", args.seconds)
    finally:
        daemon.stop()
    for row in rows:
        if any(r["ok"] for r in row["rounds"]):
            sum_up(row, rows)
    sizes = {f.name: f.stat().st_size for form in sorted(set(forms.values())) for f in form.iterdir() if f.name.startswith("policy")}
    result = {"inferd": version, "machine": before, "load_average_after": os.getloadavg(), "stolen_ticks": stolen() - stolen_before,
              "rounds": args.rounds, "seconds": args.seconds, "model_bytes": sizes, "tolerance": TOLERANCE, "backends": rows}
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json.dumps(result, indent=1) + "\n")
    loads = " ".join(f"{x:.1f}" for x in (before["load_average"][0], os.getloadavg()[0]))
    print(f"ACT, camera f32{[1, *CAMERA]} and f32{[1, JOINTS]} -> f32{[1, 100, JOINTS]}; {args.rounds} rounds of {args.seconds:g} s each, "
          f"one client, one thread a worker\n{before['cpu']} x {before['cpus']}, load before and after {loads}, stolen "
          f"{result['stolen_ticks']} ticks; " + ", ".join(f"{n} {s / 1e6:.0f} MB" for n, s in sizes.items()) + "\n")
    print(table(rows))
    print(f"\nfigures of every round: {args.json}")
    return 0 if any("runs" in row for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
