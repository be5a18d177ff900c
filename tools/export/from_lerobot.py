#!/usr/bin/env python3
"""Exports a LeRobot policy (ACT, or another that predicts a chunk in one pass) for inferd, with golden steps of LeRobot itself.

from_lerobot.py PRETRAINED_FOLDER FOLDER [--format onnx|torchscript] [--steps 4] [--tolerance 1e-4]

The model takes raw observations and gives raw actions: the normalisation that LeRobot keeps beside its policies is folded in. Inputs
have LeRobot's names (`observation.state`, `observation.images.top`: f32, channels first, 0 to 1), the output is `action`, f32[1, chunk, n],
whose axis 1 is time. Policies that draw noise or loop over denoising steps are no single pass: export their network with
from_pytorch.py. Wants lerobot, onnx and onnxscript. From Python: `from_lerobot.export(policy, folder, stats)`.
"""
from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, Dict, Optional

import from_pytorch

#: Guards against a constant channel, as LeRobot's own normaliser does.
EPSILON = 1e-8


def _chunk_module(policy: Any, names: list, stats: Dict[str, Dict[str, Any]]) -> Any:
    import torch

    config = policy.config

    class Chunk(torch.nn.Module):
        """Raw observations to raw actions."""

        def __init__(self) -> None:
            super().__init__()
            self.policy = policy
            self.affine = {name: self.of(name, config.input_features[name].type) for name in names}
            self.result = self.of("action", config.output_features["action"].type)

        def of(self, name: str, kind: Any) -> Optional[Any]:
            """Offset and scale such that (x - offset) / scale is what the policy was trained on."""
            mode = getattr(config.normalization_mapping.get(getattr(kind, "value", kind), "IDENTITY"), "value", "IDENTITY")
            mine = {k: torch.as_tensor(v, dtype=torch.float32) for k, v in stats.get(name, {}).items()}
            if mode == "MEAN_STD" and "mean" in mine:
                return mine["mean"], mine["std"] + EPSILON
            if mode == "MIN_MAX" and "min" in mine:
                half = (mine["max"] - mine["min"]) / 2 + EPSILON
                return mine["min"] + half, half
            return None

        def forward(self, *inputs: Any) -> Any:
            batch = {}
            for name, value in zip(names, inputs):
                affine = self.affine[name]
                batch[name] = value if affine is None else (value - affine[0]) / affine[1]
            if config.image_features:
                batch["observation.images"] = [batch[name] for name in config.image_features]
            actions = self.policy.model(batch)[0]
            return actions if self.result is None else actions * self.result[1] + self.result[0]

    return Chunk()


def export(policy: Any, folder: Path, stats: Optional[Dict[str, Dict[str, Any]]] = None, *, steps: int = 4,
           tolerance: float = 1e-4, form: str = "onnx") -> Path:
    """Writes policy.onnx (or policy.pt), golden.npz and model.toml; returns the manifest's path. stats: of the data set, by feature."""
    import lerobot

    policy = policy.cpu().eval()
    inputs = {name: (1, *feature.shape) for name, feature in policy.config.input_features.items()}
    module = _chunk_module(policy, list(inputs), stats or {})
    manifest = from_pytorch.export(module, folder, inputs, ["action"], steps=steps, tolerance=tolerance, form=form,
                                   source=f"{type(policy).__name__}, exported from LeRobot {lerobot.__version__}")
    text = manifest.read_text()
    manifest.write_text(text.replace('[outputs."action"]\n', '[outputs."action"]\ntime_axis = 1\n'))
    return manifest


def load(folder: Path) -> Any:
    """A pretrained policy and the statistics that LeRobot saved beside it."""
    from lerobot.configs.policies import PreTrainedConfig
    from lerobot.policies.factory import get_policy_class
    from safetensors.torch import load_file

    config = PreTrainedConfig.from_pretrained(str(folder))
    config.device = "cpu"
    policy = get_policy_class(config.type).from_pretrained(str(folder), config=config)
    stats: Dict[str, Dict[str, Any]] = {}
    for file in sorted(folder.glob("*normalizer*.safetensors")):
        for key, value in load_file(str(file)).items():
            feature, _, kind = key.rpartition(".")
            stats.setdefault(feature, {})[kind] = value
    return policy, stats


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("pretrained", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--format", choices=("onnx", "torchscript"), default="onnx")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--tolerance", type=float, default=1e-4)
    args = parser.parse_args()
    policy, stats = load(args.pretrained)
    print(export(policy, args.folder, stats, steps=args.steps, tolerance=args.tolerance, form=args.format))


if __name__ == "__main__":
    main()
