#!/usr/bin/env python3
"""A Python peer: the server or the client of one row, driven by the harness through stdin and stdout.

usage: peer.py serve PEER ROW POLICY | peer.py ask PEER ROW ADDRESS REQUEST_BYTES REPLY_BYTES

The protocol is that of the Rust peers (tests/peers/common). A server says `ready ADDRESS REQUEST_BYTES REPLY_BYTES` and
ends with its stdin. A client makes one call and says `ready HEX`, its reply; then for every line COUNT it says COUNT and as
many round trips in nanoseconds, eight bytes each. Transport and packing are each peer's own; what is inside the clock's
readings is what a control loop would wait for: from an observation in a NumPy array to an action in a NumPy array.
"""
import array
import importlib
import os
import sys
import threading
import time

import numpy as np

# As in tests/peers/common: bytes of an observation and of an action, but for the policy, whose file says it.
ECHO_ROWS = {"echo64": ((64,), 64), "echo1k": ((1024,), 256), "image": ((480, 640, 3), 256)}
PEERS = {
    "flask": ("flask_pickle", "werkzeug"),
    "waitress": ("flask_pickle", "waitress"),
    "openpi": ("openpi_websocket", None),
    "gr00t": ("gr00t_zmq", None),
}


class Echo:
    """Answers with the first bytes of what it was sent."""

    def __init__(self, row: str) -> None:
        shape, self.reply_bytes = ECHO_ROWS[row]
        self.request_bytes = int(np.prod(shape))

    def __call__(self, observation: np.ndarray) -> np.ndarray:
        return observation.reshape(-1)[: self.reply_bytes]


class Policy:
    """An ONNX policy with one input and one output, on one thread of ONNX Runtime: its process has one CPU."""

    def __init__(self, path: str) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.input = self.session.get_inputs()[0].name
        shapes = [tensor.shape for tensor in (self.session.get_inputs()[0], self.session.get_outputs()[0])]
        self.request_bytes, self.reply_bytes = (4 * int(np.prod([d if isinstance(d, int) else 1 for d in s])) for s in shapes)

    def __call__(self, observation: np.ndarray) -> np.ndarray:
        return self.session.run(None, {self.input: observation})[0]


def end_with_stdin() -> None:
    """The harness holds the other end: whatever becomes of it, this process ends. Its sockets have no names to leave behind."""
    for _ in sys.stdin:
        pass
    os._exit(0)


def serve(peer: str, row: str, policy_file: str) -> None:
    module, variant = PEERS[peer]
    policy = Policy(policy_file) if row == "go2" else Echo(row)
    threading.Thread(target=end_with_stdin, daemon=True).start()

    def ready(address: str) -> None:
        print(f"ready {address} {policy.request_bytes} {policy.reply_bytes}", flush=True)

    importlib.import_module(module).serve(policy, ready, variant)


def ask(peer: str, row: str, address: str, request_bytes: int, reply_bytes: int) -> None:
    client = importlib.import_module(PEERS[peer][0]).Client(address)
    counter = None
    if row == "go2":
        observation = np.full((1, request_bytes // 4), 0.1, dtype=np.float32)
    else:
        observation = np.full(ECHO_ROWS[row][0], 7, dtype=np.uint8)
        counter = observation.reshape(-1)[:8].view("<u8")
    first = client.infer(observation)
    if first.nbytes != reply_bytes:
        sys.exit(f"{peer}: a reply of {first.nbytes} bytes, not {reply_bytes}")
    print("ready " + first.tobytes().hex(), flush=True)
    calls = 0
    for line in sys.stdin:
        count = int(line)
        times = array.array("Q")
        for i in range(count + count // 10):
            calls += 1
            if counter is not None:
                counter[0] = calls
            start = time.perf_counter_ns()
            action = client.infer(observation)
            took = time.perf_counter_ns() - start
            if counter is not None and int.from_bytes(action[:8].tobytes(), "little") != calls:
                sys.exit(f"{peer}: the reply is not that of call {calls}")
            if i >= count // 10:
                times.append(took)
        if counter is None and not np.array_equal(action, first):
            sys.exit(f"{peer}: the same observation gave another action")
        sys.stdout.buffer.write(b"%d\n" % len(times) + times.tobytes())
        sys.stdout.buffer.flush()


def main() -> None:
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
    role, peer, row, *rest = sys.argv[1:]
    if role == "serve":
        serve(peer, row, rest[0])
    else:
        ask(peer, row, rest[0], int(rest[1]), int(rest[2]))


if __name__ == "__main__":
    main()
