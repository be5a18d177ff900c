#!/usr/bin/env python3
"""Exports a Keras or TensorFlow model for inferd, through tf2onnx or Keras's own ONNX exporter, with golden steps of the original.

from_tensorflow.py MODEL FOLDER [--input-shape obs=1x45] [--steps 8] [--tolerance 1e-5]

MODEL: a `.keras` or `.h5` file, or a SavedModel folder. Open axes become 1 unless --input-shape says otherwise. From Python:
`from_tensorflow.export(model, folder)` for a Keras model. Wants tensorflow and tf2onnx, or keras with a backend and its ONNX export.
"""
from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence

import numpy as np

import manifest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")


def _fixed(shape: Sequence[Optional[int]], wish: Optional[Sequence[int]]) -> List[int]:
    return [int(n) for n in wish] if wish is not None else [int(n) if n else 1 for n in shape]


def export(model: Any, folder: Path, *, shapes: Optional[Dict[str, Sequence[int]]] = None, steps: int = 8, tolerance: float = 1e-5,
           opset: int = 17) -> Path:
    """A Keras model. Writes policy.onnx, golden.npz and model.toml; returns the manifest's path."""
    inputs = {t.name.partition(":")[0]: t for t in model.inputs}
    fixed = {name: _fixed(t.shape, (shapes or {}).get(name)) for name, t in inputs.items()}
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "policy.onnx"
    import tensorflow as tf
    import tf2onnx

    outputs = list(model.output_names) if getattr(model, "output_names", None) else [f"out{i}" for i in range(len(model.outputs))]
    signature = [tf.TensorSpec(fixed[n], inputs[n].dtype, name=n) for n in inputs]

    @tf.function(input_signature=signature)
    def call(*tensors: Any) -> Any:
        results = model(list(tensors) if len(tensors) > 1 else tensors[0], training=False)
        results = results if isinstance(results, (list, tuple)) else [results]
        return {name: tf.identity(r, name=name) for name, r in zip(outputs, results)}

    tf2onnx.convert.from_function(call, input_signature=signature, opset=opset, output_path=str(file))
    observed = manifest.observations(fixed, steps, dtypes={n: tf.as_dtype(t.dtype).name for n, t in inputs.items()})
    return _finish(folder, file, lambda a: {n: v.numpy() for n, v in call(*(tf.constant(a[n]) for n in fixed)).items()}, observed, tolerance,
                   f"Keras model {model.name}, TensorFlow {tf.__version__}, tf2onnx {tf2onnx.__version__}")


def export_saved(path: Path, folder: Path, *, shapes: Optional[Dict[str, Sequence[int]]] = None, steps: int = 8,
                 tolerance: float = 1e-5, opset: int = 17) -> Path:
    """A SavedModel's default signature."""
    import tensorflow as tf
    import tf2onnx

    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "policy.onnx"
    loaded = tf.saved_model.load(str(path))  # kept: its variables live as long as it does
    serve = loaded.signatures["serving_default"]
    specs = serve.structured_input_signature[1]
    fixed = {n: _fixed(s.shape, (shapes or {}).get(n)) for n, s in specs.items()}
    signature = [tf.TensorSpec(fixed[n], specs[n].dtype, name=n) for n in specs]

    @tf.function(input_signature=signature)
    def call(*tensors: Any) -> Any:
        return {n: tf.identity(v, name=n) for n, v in serve(**dict(zip(specs, tensors))).items()}

    tf2onnx.convert.from_function(call, input_signature=signature, opset=opset, output_path=str(file))
    observed = manifest.observations(fixed, steps, dtypes={n: s.dtype.name for n, s in specs.items()})
    return _finish(folder, file, lambda a: {n: v.numpy() for n, v in call(*(tf.constant(a[n]) for n in specs)).items()}, observed, tolerance,
                   f"SavedModel {path.name}, TensorFlow {tf.__version__}, tf2onnx {tf2onnx.__version__}")


def _finish(folder: Path, file: Path, run: Any, observed: List[manifest.Arrays], tolerance: float, source: str) -> Path:
    """The converter may rename an output; the file's own names are the manifest's."""
    import onnx

    graph = onnx.load(str(file)).graph
    names = [o.name for o in graph.output]
    first = run(observed[0])
    order = {n: n for n in first} if set(names) == set(first) else dict(zip(first, names))
    return manifest.write(folder, file, lambda a: {order[n]: np.asarray(v) for n, v in run(a).items()}, observed, tolerance=tolerance,
                          source=source)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--input-shape", action="append", default=[], metavar="NAME=1x45")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--tolerance", type=float, default=1e-5)
    args = parser.parse_args()
    wishes = {n: tuple(int(x) for x in s.split("x")) for n, _, s in (t.partition("=") for t in args.input_shape)}
    if args.model.is_dir():
        print(export_saved(args.model, args.folder, shapes=wishes, steps=args.steps, tolerance=args.tolerance))
    else:
        import keras

        print(export(keras.saving.load_model(args.model, compile=False), args.folder, shapes=wishes, steps=args.steps,
                     tolerance=args.tolerance))


if __name__ == "__main__":
    main()
