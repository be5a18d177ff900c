#!/usr/bin/env python3
"""The demo: a walking policy served at 1 kHz to a C and a Rust robot, reloaded and killed in between.

Run by `make demo`. Everything happens in one private folder that is removed at the end, as an ordinary user: started as
root, daemon and robots run under a uid that nobody has. It fails if a robot misses an answer, if a generation is not
what it should be, if the daemon does not stop cleanly, or if anything is left in /dev/shm, /tmp or /run. Only the
standard library is used, and the control socket is spoken to directly: JSON-RPC, one message per line.
"""
import argparse
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

# Nobody has this uid: it lies in the range that systemd hands out to services for a while. Not 65534, which stands
# for users that are not mapped here, and which the daemon refuses.
DEMO_UID = 61184
MODEL = "go2"
# What a robot's requests may end in here. Late starts are a busy machine's; whom the kill meets is answered by the
# supervisor: at most one running request per robot, and what was published while no worker served.
EXPECTED = {"ok", "expired", "timeout", "unavailable", "worker_lost"}
RATE_HZ = 1000
SECONDS = 6
RELOAD_AFTER_S = 2.0
KILL_AFTER_S = 4.0
READY_S = 120
STOP_S = 15
WATCHED = ("/dev/shm", "/tmp", "/run")
HERE = Path(__file__).resolve().parent


class Failed(Exception):
    """What went wrong, in a sentence."""


def say(text: str = "") -> None:
    print(text, flush=True)


def is_mapped(uid: int) -> bool:
    """Whether this uid exists in the user namespace that we are in."""
    ranges = (map(int, line.split()) for line in Path("/proc/self/uid_map").read_text().splitlines())
    return any(first <= uid < first + count for first, _, count in ranges)


def demo_uid() -> int:
    """Whom daemon and robots run as."""
    if os.geteuid() != 0:
        return os.geteuid()
    return next((uid for uid in (DEMO_UID, 1000, 1) if is_mapped(uid)), 0)


class Stage:
    """The private folder, and everything that runs in it."""

    def __init__(self, uid: int) -> None:
        self.uid = uid
        # A short path, whatever TMPDIR says: a socket's address holds 107 bytes.
        self.dir = Path(tempfile.mkdtemp(prefix="inferd-demo.", dir="/tmp"))
        self.dir.chmod(0o755)
        self.children: list[subprocess.Popen] = []
        for name, mode in (("bin", 0o755), ("models", 0o755), ("run", 0o700), ("home", 0o700)):
            folder = self.dir / name
            folder.mkdir(mode=mode)
            if mode == 0o700 and os.geteuid() == 0:
                os.chown(folder, uid, uid)
        self.run = self.dir / "run"
        self.log = self.dir / "inferd.log"

    def program(self, path: Path, name: str | None = None) -> None:
        """Copies a program here: the build folder may lie where an ordinary user cannot look."""
        if not path.is_file():
            raise Failed(f"{path} is not built; run `make examples`")
        to = self.dir / "bin" / (name or path.name)
        shutil.copyfile(path, to)
        to.chmod(0o755)

    def start(self, *command: str, output) -> subprocess.Popen:
        environment = {"PATH": f"{self.dir}/bin:/usr/bin:/bin", "HOME": str(self.dir / "home"),
                       "INFERD_RUNTIME_DIR": str(self.run)}
        drop = {"user": self.uid, "group": self.uid, "extra_groups": []} if os.geteuid() == 0 and self.uid else {}
        program = str(self.dir / "bin" / command[0])
        child = subprocess.Popen([program, *command[1:]], env=environment, cwd=self.dir, stdin=subprocess.DEVNULL,
                                 stdout=output, stderr=subprocess.STDOUT, start_new_session=True, **drop)
        self.children.append(child)
        return child

    def processes(self) -> list[int]:
        """What still runs a program of this folder; zombies are gone already."""
        found = []
        for entry in Path("/proc").iterdir():
            try:
                if entry.name.isdigit() and os.readlink(entry / "exe").startswith(f"{self.dir}/"):
                    found.append(int(entry.name))
            except OSError:
                continue
        return found

    def close(self) -> None:
        for child in self.children:
            if child.poll() is None:
                child.kill()
                child.wait()
        shutil.rmtree(self.dir, ignore_errors=True)


class Control:
    """The operator's side: the control socket."""

    def __init__(self, run: Path) -> None:
        self.path = str(run / "control.sock")
        self.id = 0

    def call(self, method: str, timeout_s: float = 60, **params):
        self.id += 1
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as s:
            s.settimeout(timeout_s)
            s.connect(self.path)
            request = {"jsonrpc": "2.0", "id": self.id, "method": method, "params": params}
            s.sendall(json.dumps(request).encode() + b"\n")
            with s.makefile("r") as lines:
                for line in lines:
                    message = json.loads(line)
                    if message.get("id") == self.id:
                        if "error" in message:
                            raise Failed(f"{method}: {message['error']['message']}")
                        return message["result"]
        raise Failed(f"{method}: the daemon hung up without an answer")

    def model(self) -> dict:
        return next(m for m in self.call("models") if m["model"] == MODEL)


def wait_until(what: str, seconds: float, holds) -> None:
    end = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > end:
            raise Failed(f"not within {seconds:g} s: {what}")
        time.sleep(0.01)


def prepare(stage: Stage, args: argparse.Namespace) -> None:
    for name in ("inferd", "inferd-worker", "inferctl"):
        stage.program(args.bin_dir / name)
    stage.program(args.bin_dir / "examples" / "robot", "robot-rust")
    stage.program(args.c_dir / "robot", "robot-c")
    folder = stage.dir / "models" / MODEL
    folder.mkdir()
    shutil.copyfile(args.policy, folder / "policy.onnx")
    shutil.copyfile(HERE.parent / "models" / MODEL / "model.toml", folder / "model.toml")
    (stage.dir / "inferd.toml").write_text(f'[models.{MODEL}]\npath = "{folder}"\nmax_run_ms = 500\n')


def start_daemon(stage: Stage, control: Control) -> subprocess.Popen:
    began = time.monotonic()
    with open(stage.log, "wb") as log:
        daemon = stage.start("inferd", "--config", str(stage.dir / "inferd.toml"), "--runtime-dir", str(stage.run),
                             "--worker-dir", str(stage.dir / "bin"), output=log)

    def ready() -> bool:
        if daemon.poll() is not None:
            raise Failed(f"inferd ended with {daemon.returncode} at start")
        try:
            return control.call("status")["state"] == "ready"
        except OSError:
            return False

    wait_until("inferd is ready", READY_S, ready)
    model = control.model()
    say(f"ready {(time.monotonic() - began) * 1e3:.0f} ms after the start, as uid {stage.uid}: "
        f"{MODEL} generation {model['generation']} on {model['backend']}, worker {model['worker_pid']}")
    return daemon


def reload(control: Control) -> None:
    answer = control.call("reload", model=MODEL)
    say(f"reload: generation {answer['from_generation']} -> {answer['to_generation']}, loaded and warmed in "
        f"{answer['load_ms']:.0f} ms beside the live one, swapped in {answer['swap_us']:.0f} us")


def kill_worker(control: Control) -> None:
    """What a fault in an inference library would do. The pid is what the daemon says its worker is."""
    victim = control.model()["worker_pid"]
    began = time.monotonic()
    os.kill(victim, signal.SIGKILL)

    def recovered() -> bool:
        model = control.model()
        return model["state"] == "live" and model["worker_pid"] not in (None, victim)

    wait_until("another worker serves", READY_S, recovered)
    model = control.model()
    say(f"worker {victim} killed: worker {model['worker_pid']} serves after {(time.monotonic() - began) * 1e3:.0f} ms, "
        f"generation {model['generation']}, deaths {model['worker_deaths']}")


def check_account(name: str, report: str, generations: str) -> int:
    """The robot's own account; it has exited 0, so as many outcomes as requests. Returns the requests."""
    sent = re.search(r"^requests: (\d+); outcomes:(.*)$", report, re.M)
    if not sent:
        raise Failed(f"{name} printed no account of its requests")
    outcomes = {outcome: int(count) for outcome, count in re.findall(r"(\w+) (\d+)", sent[2])}
    if set(outcomes) - EXPECTED or outcomes.get("worker_lost", 0) > 1 or sum(outcomes.values()) != int(sent[1]):
        raise Failed(f"{name} lost requests: {outcomes}")
    if f"generations: {generations}" not in report:
        raise Failed(f"{name} did not see the generations {generations}")
    return int(sent[1])


def drive(stage: Stage, control: Control) -> None:
    """Both robots at once, the reload and the kill under them."""
    robots = []
    for name in ("robot-c", "robot-rust"):
        with open(stage.dir / f"{name}.out", "wb") as output:
            robots.append((name, stage.start(name, "--model", MODEL, "--rate", str(RATE_HZ), "--seconds", str(SECONDS),
                                             "--runtime-dir", str(stage.run), output=output)))
    began = time.monotonic()
    wait_until("both robots are attached", 10, lambda: len(control.call("sessions")) == len(robots))
    say(f"two robots attached, {RATE_HZ} Hz each for {SECONDS} s")
    requests = 0
    for after_s, act in ((RELOAD_AFTER_S, reload), (KILL_AFTER_S, kill_worker)):
        time.sleep(max(0.0, began + after_s - time.monotonic()))
        act(control)
    for name, robot in robots:
        try:
            code = robot.wait(SECONDS + 30)
        except subprocess.TimeoutExpired as e:
            raise Failed(f"{name} does not end") from e
        report = (stage.dir / f"{name}.out").read_text().rstrip()
        say(f"\n{name}:\n{report}")
        if code != 0:
            raise Failed(f"{name} ended with {code}")
        requests += check_account(name, report, "1 -> 2")
    say(f"\nevery one of {requests} requests has an outcome; the generation changed under both robots")


def show(stage: Stage, *command: str) -> None:
    path = stage.dir / "inferctl.out"
    with open(path, "wb") as output:
        code = stage.start("inferctl", *command, output=output).wait(30)
    say(f"\n$ inferctl {' '.join(command)}\n{path.read_text().rstrip()}")
    if code != 0:
        raise Failed(f"inferctl {command[0]} ended with {code}")


def stop_daemon(daemon: subprocess.Popen) -> None:
    began = time.monotonic()
    daemon.terminate()
    try:
        code = daemon.wait(STOP_S)
    except subprocess.TimeoutExpired as e:
        raise Failed(f"inferd has not stopped {STOP_S} s after SIGTERM") from e
    if code != 0:
        raise Failed(f"inferd ended with {code} after SIGTERM")
    say(f"\nSIGTERM: inferd drained and exited 0 after {(time.monotonic() - began) * 1e3:.0f} ms")


def entries() -> set[str]:
    return {f"{folder}/{name}" for folder in WATCHED for name in os.listdir(folder)}


def check_nothing_left(before: set[str], uid: int) -> None:
    """New entries that are ours: owned by the demo's own uid, or, where that is the user's, named after inferd."""
    def is_ours(path: str) -> bool:
        try:
            dropped = os.geteuid() == 0 and uid != 0
            return os.lstat(path).st_uid == uid if dropped else "inferd-demo." in path or path.startswith("/run/inferd")
        except OSError:
            return False

    left = sorted(path for path in entries() - before if is_ours(path))
    if left:
        raise Failed(f"left behind: {', '.join(left)}")
    say(f"nothing is left in {', '.join(WATCHED)}")


def demo(stage: Stage, args: argparse.Namespace) -> None:
    control = Control(stage.run)
    prepare(stage, args)
    daemon = start_daemon(stage, control)
    drive(stage, control)
    for command in ("models", "stats"):
        show(stage, command)
    stop_daemon(daemon)
    # Workers go with their supervisor; what runs now would outlive the demo.
    wait_until("every process of the demo has ended", 5, lambda: not stage.processes())


def main() -> int:
    parser = argparse.ArgumentParser(description="serves a policy, reloads it, kills its worker; see the file's opening")
    parser.add_argument("--bin-dir", type=Path, required=True, help="inferd, inferd-worker, inferctl, examples/robot")
    parser.add_argument("--c-dir", type=Path, required=True, help="robot, built from examples/c/robot.c")
    parser.add_argument("--policy", type=Path, required=True, help="policy.onnx of the Go2")
    args = parser.parse_args()
    before = entries()
    uid = demo_uid()
    stage = Stage(uid)
    try:
        demo(stage, args)
    except (Failed, OSError) as e:
        say(f"\ndemo: {e}")
        if stage.log.exists():
            say("the daemon's log:\n" + "\n".join(stage.log.read_text(errors="replace").splitlines()[-40:]))
        return 1
    finally:
        stage.close()
    try:
        check_nothing_left(before, uid)
    except Failed as e:
        say(f"demo: {e}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
