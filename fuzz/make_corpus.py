#!/usr/bin/env python3
"""Writes the seeds of fuzz/corpus that no text editor can: records, programs for the shared-memory targets, archives.

usage: make_corpus.py [FOLDER]. Seeds are small and whole, so that the fuzzer begins behind the magic numbers. Inputs that once
broke something lie beside them as `was-...`; they are kept by hand. Standard library alone.
"""
import io
import json
import struct
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent


def head(kind: int, size: int) -> bytes:
    return b"inferdA1" + struct.pack("<HHHH", kind, 1, 0, size)


def record(kind: int, body: bytes) -> bytes:
    return head(kind, 16 + len(body)) + body


def npy(descr: str, shape: tuple, data: bytes, order: bool = False) -> bytes:
    text = f"{{'descr': '{descr}', 'fortran_order': {order}, 'shape': {shape}, }}"
    text += " " * (-(10 + len(text) + 1) % 64) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode() + data


def archive(members: dict, deflate: bool = False) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED if deflate else zipfile.ZIP_STORED) as file:
        for name, data in members.items():
            file.writestr(zipfile.ZipInfo(name), data, compress_type=zipfile.ZIP_DEFLATED if deflate else zipfile.ZIP_STORED)
    return out.getvalue()


def field(number: int, value) -> bytes:
    """A protobuf field: bytes, or a small number."""
    if isinstance(value, int):
        return bytes([number << 3, value])
    return bytes([number << 3 | 2, len(value)]) + value


def onnx() -> bytes:
    def value(name: bytes, *dims) -> bytes:
        shape = b"".join(field(1, field(1, d) if isinstance(d, int) else field(2, d)) for d in dims)
        return field(1, name) + field(2, field(1, field(1, 1) + field(2, shape)))

    node = field(1, b"x") + field(2, b"y") + field(4, b"Relu")
    graph = field(1, node) + field(2, b"g") + field(11, value(b"x", b"batch", 4)) + field(12, value(b"y", 1, 4))
    return field(1, 8) + field(7, graph) + field(8, field(2, 17))


def seeds() -> dict:
    geometry = struct.pack("<IIQQQQQQQQ", 4, 2, 4096, 640, 1152, 128, 8192, 4736, 5248, 128)
    attach = record(1, b"go2".ljust(64, b"\0") + struct.pack("<IIIIQ", 4, 2, 0, 77, 123_456_789))
    attached = record(2, struct.pack("<IIQ", 0, 1, 5) + geometry + struct.pack("<II", 1, 50) + b"0.1.0".ljust(32, b"\0"))
    attached = attached.ljust(528, b"\0")
    tensor = {"name": "obs", "dtype": "f32", "shape": [1, 48], "elements": []}
    layout = {"inputs": [tensor], "states": [], "outputs": [{**tensor, "name": "actions"}]}
    loaded = {"type": "loaded", "signature": {"inputs": [tensor], "outputs": [tensor], "stateful": False}, "state_bytes": 0,
              "state_layout": "", "record_layout": layout, "backend": "tract", "load_us": 1, "warm_up_us": 1,
              "warm_up_runs": 3, "run_us_p50": 9.5, "golden_difference_max": None}
    floats = struct.pack("<8f", *range(8))
    pair = {"in.x.npy": npy("<f4", (2, 1, 4), floats), "out.y.npy": npy("<f4", (2, 1, 4), floats)}
    more = {"reset.npy": npy("|b1", (2,), b"\1\0"), "status.npy": npy("<u4", (2,), struct.pack("<2I", 1, 1)),
            "session.npy": npy("<u8", (2,), struct.pack("<2Q", 1, 1)), "state.h.npy": npy("<f4", (2, 4), floats)}
    code = "class Policy(Module):\n  def forward(self: __torch__.Policy,\n    x: Tensor) -> Tensor:\n    return x\n"
    torchscript = {"p/data.pkl": b"\x80\x02c__torch__\nPolicy\nq\x00)\x81}(ub.", "p/code/__torch__.py": code.encode()}
    step = struct.pack("<6Q", 1, 7, 1, 9, 100, 3) + struct.pack("<2I", 1, 0)
    lines = [{"jsonrpc": "2.0", "id": 1, "method": "status"}, {"jsonrpc": "2.0", "id": "a", "method": "reload",
             "params": {"model": "go2", "shadow": 100}}, {"jsonrpc": "2.0", "id": 2, "method": "validate", "params": {"path": "/m"}},
             {"jsonrpc": "2.0", "id": None, "method": "dump", "params": {"model": "m", "path": "/d.npz"}}]
    serve, due = bytes([9]), bytes([4])
    return {
        "attach": {"attach": attach, "attached": attached, "mapped": record(3, b""), "ready": record(4, bytes(8) + b"no\0")},
        "from_worker": {"loaded": json.dumps(loaded).encode(), "taken": b'{"type":"taken"}',
                        "file": b'{"type":"need_file","name":"weights.bin"}', "shadowing": b'{"type":"shadowing","done":1,"of":9}'},
        "to_worker": {"retire": b'{"type":"retire"}', "take": b'{"type":"take","predecessor":[1,7]}',
                      "shadow": json.dumps({"type": "shadow", "steps": 3, "for_ms": None, "wait_ms": 5, "slots": 9, "layout": layout}).encode()},
        "ring": {"latest": b"\x30" + (due + serve) * 6, "in_order": b"\x31" + (due + serve) * 6 + b"\x03\x09" + due + serve,
                 "recovery": b"\x30" + due * 2 + b"\x06\x08\x07\x05\x09", "round": b"\x10\x00\x00\x0c\x02\x05\x09\x05",
                 "replies": b"\x32" + struct.pack("<8Q", 1, 0, 0, 1, 0, 0, 0, 0) + serve},
        "record_region": {"step": b"\x01\x02" + bytes(64) + step + bytes(64)},
        "state_and_baton": {"zero": bytes(64), "even": bytes([7]) + bytes(range(200))},
        "control": {"lines": b"\x40" + b"\n".join(json.dumps(line).encode() for line in lines) + b"\n", "blank": b"\x00\n\n  \n",
                    "batch": b'\x05[{"jsonrpc":"2.0"}]\n{"jsonrpc":"1.0","id":{}}\nnot json\n'},
        "golden": {"pair": archive(pair), "deflated": archive({**pair, **more}, True)},
        "recording": {"pair": archive(pair), "dump": archive({**pair, **more}, True), "array": npy("<f4", (2, 4), floats),
                      "fortran": npy(">f4", (4, 2), floats, True)},
        "onnx": {"relu": onnx()},
        "torchscript": {"policy": archive(torchscript)},
    }


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "corpus"
    for target, files in seeds().items():
        (folder / target).mkdir(parents=True, exist_ok=True)
        for name, data in files.items():
            (folder / target / name).write_bytes(data)


if __name__ == "__main__":
    main()
