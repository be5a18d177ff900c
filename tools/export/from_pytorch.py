#!/usr/bin/env python3
"""Exports a PyTorch module for inferd, as ONNX or TorchScript, with golden steps computed by PyTorch itself.

from_pytorch.py MODULE:FACTORY FOLDER --input obs=1x45 [--input h_in=1x1x64] --output actions [--output h_out]
                [--state h_in=h_out] [--format onnx|torchscript] [--steps 8] [--tolerance 1e-5]

FACTORY() returns the module (its weights loaded); it is called with the inputs in order, on the CPU, in eval mode. From Python:
`from_pytorch.export(module, folder, {"obs": (1, 45)}, ["actions"])`. Wants torch, and onnx and onnxscript for ONNX.
"""
from __future__ import annotations

import argparse
import importlib
import os
import sys
from pathlib import Path
from typing import Any, Dict, List, Sequence, Tuple

import numpy as np

import manifest


def export(module: Any, folder: Path, inputs: Dict[str, Sequence[int]], outputs: List[str], *, form: str = "onnx",
           state: Sequence[Sequence[str]] = (), steps: int = 8, tolerance: float = 1e-5, source: str = "", opset: int = 18) -> Path:
    """Writes model, golden.npz and model.toml into the folder; returns the manifest's path. Shapes are fixed: one robot."""
    import torch

    module = module.cpu().eval()
    folder.mkdir(parents=True, exist_ok=True)
    observed = manifest.observations(inputs, steps)
    example = tuple(torch.from_numpy(observed[0][name]) for name in inputs)
    if form == "onnx":
        model = folder / "policy.onnx"
        torch.onnx.export(module, example, str(model), input_names=list(inputs), output_names=outputs, opset_version=opset,
                          dynamo=True, external_data=False, verbose=False)
    else:
        model = folder / "policy.pt"
        scripted = module if isinstance(module, torch.jit.ScriptModule) else torch.jit.trace(module, example, check_trace=False)
        scripted.save(str(model))

    def run(arrays: manifest.Arrays) -> manifest.Arrays:
        with torch.inference_mode():
            results = module(*(torch.from_numpy(np.ascontiguousarray(arrays[name])) for name in inputs))
        results = results if isinstance(results, (tuple, list)) else (results,)
        return dict(zip(outputs, (r.numpy() for r in results)))

    return manifest.write(folder, model, run, observed, tolerance=tolerance, state=state, with_order=form != "onnx",
                          source=source or f"{type(module).__name__}, exported by PyTorch {torch.__version__}")


def shapes(texts: List[str]) -> Dict[str, Tuple[int, ...]]:
    return {name: tuple(int(n) for n in shape.split("x")) for name, _, shape in (t.partition("=") for t in texts)}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("factory", metavar="MODULE:FACTORY")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--input", action="append", required=True, metavar="NAME=1x45")
    parser.add_argument("--output", action="append", required=True, metavar="NAME")
    parser.add_argument("--state", action="append", default=[], metavar="IN=OUT")
    parser.add_argument("--format", choices=("onnx", "torchscript"), default="onnx")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--tolerance", type=float, default=1e-5)
    args = parser.parse_args()
    sys.path.insert(0, os.getcwd())
    module, _, factory = args.factory.partition(":")
    made = getattr(importlib.import_module(module), factory)()
    print(export(made, args.folder, shapes(args.input), args.output, form=args.format, state=[s.split("=") for s in args.state],
                 steps=args.steps, tolerance=args.tolerance))


if __name__ == "__main__":
    main()
