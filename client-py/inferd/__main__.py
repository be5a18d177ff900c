"""``python -m inferd``: what the daemon serves; with a model's name, that model's inputs and outputs as a client sees them."""
from __future__ import annotations

import argparse
import json
import sys
from typing import Any, Dict, List, Optional

from . import Session, admin, library_path, library_version
from ._tensor import Tensor
from .errors import Error


def _shapes(tensors: Optional[List[Dict[str, Any]]]) -> str:
    return " ".join(f"{t['name']}:{t['dtype']}{t['shape']}".replace(" ", "") for t in tensors or []) or "-"


def _list(models: List[Dict[str, Any]]) -> None:
    rows = [["MODEL", "STATE", "GENERATION", "BACKEND", "QUEUE", "SESSIONS", "INPUTS", "OUTPUTS"]]
    for m in models:
        signature = m.get("signature") or {}
        cells = [m["model"], m["state"], m.get("generation"), m.get("backend"), m.get("queue"), m.get("sessions"),
                 _shapes(signature.get("inputs")), _shapes(signature.get("outputs"))]
        rows.append(["-" if c is None else str(c) for c in cells])
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows:
        print("  ".join(c.ljust(w) for c, w in zip(row, widths)).rstrip())
    for m in models:
        if m.get("message"):
            print(f"\n{m['model']}: {m['message']}")


def _show(kind: str, tensor: Tensor) -> None:
    print(f"{kind} {tensor!r}")
    for i, (name, unit) in enumerate(zip(tensor.names, tensor.units)):
        print(f"    {i:4}  {name}" + (f" [{unit}]" if unit else ""))


def main(argv: Optional[List[str]] = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m inferd", description="what an inferd daemon serves")
    parser.add_argument("model", nargs="?", help="show this model's inputs and outputs, by attaching to it")
    parser.add_argument("--runtime-dir", help="the daemon's directory")
    parser.add_argument("--json", action="store_true", help="the daemon's own answer")
    parser.add_argument("--version", action="store_true", help="of the C library, and where it lies")
    args = parser.parse_args(argv)
    if args.version:
        print(f"libinferd {library_version()} ({library_path()})")
        return 0
    try:
        if args.model is None:
            models = admin.models(runtime_dir=args.runtime_dir)
            print(json.dumps(models, indent=2)) if args.json else _list(models)
            return 0
        with Session(args.model, runtime_dir=args.runtime_dir) as session:
            info = session.info
            print(f"{session.model}: generation {info.generation}, {info.state}, {info.slots} slots, queue {info.queue}"
                  + (", stateful" if session.stateful else ""))
            for tensor in session.inputs.order:
                _show("input ", tensor)
            for tensor in session.outputs.order:
                _show("output", tensor)
        return 0
    except Error as e:
        print(f"inferd: {e}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
