#!/usr/bin/env python3
"""What all export scripts share: a folder with the model, golden steps of the original framework, and the manifest that names both.

inferd refuses a generation that misses its golden steps, so a wrong export is found at load. NumPy and the standard library.
"""
from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Sequence

import numpy as np

Arrays = Dict[str, "np.ndarray[Any, Any]"]
NAMES = {"float32": "f32", "float64": "f64", "float16": "f16", "bfloat16": "bf16", "bool": "bool",
         **{f"{u}int{n}": f"{'u' if u else 'i'}{n}" for u in ("", "u") for n in (8, 16, 32, 64)}}


def observations(shapes: Dict[str, Sequence[int]], steps: int, seed: int = 1, dtypes: Optional[Dict[str, str]] = None) -> List[Arrays]:
    """Seeded random inputs: floats of the size of normalised observations, integers small enough for any table or image."""
    rng = np.random.default_rng(seed)

    def one(name: str, shape: Sequence[int]) -> "np.ndarray[Any, Any]":
        dtype = np.dtype((dtypes or {}).get(name, "float32"))
        if dtype.kind == "f":
            return rng.normal(size=shape).astype(dtype)
        return rng.integers(0, 2 if dtype.kind == "b" else 100, shape).astype(dtype)

    return [{name: one(name, shape) for name, shape in shapes.items()} for _ in range(steps)]


def write(folder: Path, model: Path, run: Callable[[Arrays], Arrays], steps: List[Arrays], *, tolerance: float, source: str,
          licence: str = "", state: Sequence[Sequence[str]] = (), elements: Optional[Dict[str, List[str]]] = None,
          with_order: bool = False) -> Path:
    """Runs the original framework over `steps`, and writes golden.npz and model.toml beside the model.

    state: pairs of input and output that the daemon keeps; the original is fed its own state here, beginning at zero, and neither
    side of a pair is recorded. with_order: names in order, for files that have none (TorchScript).
    """
    kept = {i: o for i, o in state}
    carried: Arrays = {}
    seen_in: List[Arrays] = []
    seen_out: List[Arrays] = []
    results: Arrays = {}
    for step in steps:
        given = {**step, **{i: carried.get(i, np.zeros_like(step[i])) for i in kept}}
        results = {name: np.asarray(value) for name, value in run(given).items()}
        carried = {i: results[o] for i, o in kept.items()}
        seen_in.append({n: v for n, v in given.items() if n not in kept})
        seen_out.append({n: v for n, v in results.items() if n not in kept.values()})
    arrays = {f"in.{n}": np.stack([s[n] for s in seen_in]) for n in seen_in[0]}
    arrays.update({f"out.{n}": np.stack([s[n] for s in seen_out]) for n in seen_out[0]})
    np.savez_compressed(folder / "golden.npz", **arrays)  # type: ignore[arg-type]

    lines = [f"file = {json.dumps(model.name)}", f'sha256 = "{hashlib.sha256(model.read_bytes()).hexdigest()}"',
             f"source = {json.dumps(source)}"]
    if licence:
        lines.append(f"licence = {json.dumps(licence)}")
    if with_order:
        lines += [f"input_order = {json.dumps(list(steps[0]))}", f"output_order = {json.dumps(list(results))}"]
    for kind, tensors in (("inputs", steps[0]), ("outputs", results)):
        for name, value in tensors.items():
            lines += ["", f"[{kind}.{json.dumps(name)}]", f'dtype = "{NAMES[np.asarray(value).dtype.name]}"',
                      f"shape = {list(np.asarray(value).shape)}"]
            if elements and name in elements:
                lines.append(f"elements = {json.dumps(elements[name])}")
    for given, fed in kept.items():
        lines += ["", "[[state]]", f"input = {json.dumps(given)}", f"output = {json.dumps(fed)}"]
    lines += ["", "[[golden]]", 'file = "golden.npz"', f"tolerance = {tolerance}"]
    manifest = folder / "model.toml"
    manifest.write_text("\n".join(lines) + "\n")
    return manifest
