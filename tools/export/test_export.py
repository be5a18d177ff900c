#!/usr/bin/env python3
"""Each export script with its real framework, and what it wrote served by inferd: a wrong export would not go live.

Run by `make test-export`, once in an environment with PyTorch and once with TensorFlow; a framework that is not there is skipped by
name. ONNX files are loaded by the daemon's own backend, which checks the golden steps; TorchScript where a worker for it is built.
"""
from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import tempfile
import unittest
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1] / "client-py" / "tests"), str(HERE.parents[1] / "client-py")]

import inferd  # noqa: E402
from inferd import admin  # noqa: E402
from served import Daemon  # noqa: E402


def lacks(*modules: str) -> bool:
    for module in modules:
        if importlib.util.find_spec(module) is None:
            print(f"SKIP export_{modules[0]}: {module} is not installed here", file=sys.stderr)
            return True
    return False


class Exports(unittest.TestCase):
    def setUp(self) -> None:
        self.dir = Path(tempfile.mkdtemp(prefix="inferd-export.", dir="/tmp"))
        self.addCleanup(shutil.rmtree, self.dir, ignore_errors=True)
        self.daemon = Daemon().start()
        self.addCleanup(self.daemon.stop)

    def serve(self, folder: Path, state: bool = False) -> None:
        """Golden steps pass at load, and once more through a session; a changed golden step is refused."""
        admin.load("exported", folder, runtime_dir=self.daemon.run)
        golden = np.load(folder / "golden.npz")
        with inferd.Session("exported", runtime_dir=self.daemon.run, timeout=10.0) as robot:
            self.assertEqual(robot.stateful, state)
            for i in range(len(golden["in." + next(iter(robot.inputs))])):
                result = robot({n: golden[f"in.{n}"][i] for n in robot.inputs})
                results = result if isinstance(result, dict) else {next(iter(robot.outputs)): result}
                for name, value in results.items():
                    np.testing.assert_allclose(value, golden[f"out.{name}"][i], atol=1e-4)
        arrays = {n: golden[n] for n in golden.files}
        first = next(n for n in arrays if n.startswith("out."))
        arrays[first] = arrays[first] + 1.0
        np.savez(folder / "golden.npz", **arrays)
        with self.assertRaises(admin.ModelRefused) as refused:
            admin.validate(folder, runtime_dir=self.daemon.run)
        self.assertIn("golden", str(refused.exception))

    def test_a_pytorch_module_becomes_onnx(self) -> None:
        if lacks("torch", "onnx", "onnxscript"):
            return
        import torch

        import from_pytorch

        torch.manual_seed(1)
        module = torch.nn.Sequential(torch.nn.Linear(45, 64), torch.nn.ELU(), torch.nn.Linear(64, 12))
        from_pytorch.export(module, self.dir / "mlp", {"obs": (1, 45)}, ["actions"])
        self.serve(self.dir / "mlp")

    def test_a_recurrent_pytorch_module_becomes_onnx_with_its_state_in_the_daemon(self) -> None:
        if lacks("torch", "onnx", "onnxscript"):
            return
        import torch

        import from_pytorch

        class Cell(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.cell, self.head = torch.nn.GRUCell(6, 16), torch.nn.Linear(16, 2)

            def forward(self, obs, h):
                h = self.cell(obs, h)
                return self.head(h), h

        torch.manual_seed(2)
        from_pytorch.export(Cell(), self.dir / "gru", {"obs": (1, 6), "h_in": (1, 16)}, ["actions", "h_out"], state=[("h_in", "h_out")])
        self.serve(self.dir / "gru", state=True)

    def test_a_pytorch_module_becomes_torchscript(self) -> None:
        if lacks("torch"):
            return
        import torch

        import from_pytorch

        torch.manual_seed(3)
        module = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 3))
        folder = self.dir / "script"
        from_pytorch.export(module, folder, {"obs": (1, 8)}, ["actions"], form="torchscript")
        again = torch.jit.load(str(folder / "policy.pt"))
        golden = np.load(folder / "golden.npz")
        np.testing.assert_allclose(again(torch.from_numpy(golden["in.obs"][0])).detach().numpy(), golden["out.actions"][0], atol=1e-6)
        if not (Path(os.environ["INFERD_BIN_DIR"]) / "inferd-worker-torch").exists():
            print("SKIP export_torchscript_served: inferd-worker-torch is not built", file=sys.stderr)
            return
        self.serve(folder)

    def test_a_lerobot_policy_becomes_onnx_with_its_normalisation_inside(self) -> None:
        if lacks("lerobot", "torch", "onnxscript"):
            return
        import torch
        from lerobot.configs.types import FeatureType, PolicyFeature
        from lerobot.policies.act.configuration_act import ACTConfig
        from lerobot.policies.act.modeling_act import ACTPolicy

        import from_lerobot

        torch.manual_seed(4)
        features = {"observation.state": PolicyFeature(FeatureType.STATE, (6,)),
                    "observation.environment_state": PolicyFeature(FeatureType.ENV, (4,))}
        config = ACTConfig(input_features=features, output_features={"action": PolicyFeature(FeatureType.ACTION, (3,))}, chunk_size=8,
                           n_action_steps=8, dim_model=32, n_heads=2, dim_feedforward=64, n_encoder_layers=1, n_vae_encoder_layers=1,
                           latent_dim=8, device="cpu")
        stats = {"observation.state": {"mean": torch.ones(6), "std": torch.full((6,), 2.0)},
                 "action": {"mean": torch.full((3,), 5.0), "std": torch.full((3,), 0.5)}}
        policy = ACTPolicy(config)
        from_lerobot.export(policy, self.dir / "act", stats)
        golden = np.load(self.dir / "act" / "golden.npz")
        state = (torch.from_numpy(golden["in.observation.state"][0]) - 1) / 2
        own = policy.predict_action_chunk({"observation.state": state, "observation.environment_state":
                                           torch.from_numpy(golden["in.observation.environment_state"][0])})
        np.testing.assert_allclose(golden["out.action"][0], (own * 0.5 + 5).numpy(), atol=1e-4)
        self.assertIn("time_axis = 1", (self.dir / "act" / "model.toml").read_text())
        self.serve(self.dir / "act")
        admin.unload("exported", runtime_dir=self.daemon.run)

        from_lerobot.export(policy, self.dir / "script", stats, form="torchscript")
        scripted = np.load(self.dir / "script" / "golden.npz")
        np.testing.assert_array_equal(scripted["in.observation.state"], golden["in.observation.state"])
        np.testing.assert_allclose(scripted["out.action"], golden["out.action"], atol=1e-6)
        if not (Path(os.environ["INFERD_BIN_DIR"]) / "inferd-worker-torch").exists():
            print("SKIP export_torchscript_served: inferd-worker-torch is not built", file=sys.stderr)
            return
        self.serve(self.dir / "script")

    def test_a_keras_model_and_a_savedmodel_become_onnx(self) -> None:
        if lacks("tensorflow", "tf2onnx"):
            return
        import keras
        import tensorflow as tf

        import from_tensorflow

        keras.utils.set_random_seed(5)
        obs = keras.Input((10,), name="obs")
        model = keras.Model(obs, keras.layers.Dense(4, name="actions")(keras.layers.Dense(16, "tanh")(obs)))
        from_tensorflow.export(model, self.dir / "keras")
        self.serve(self.dir / "keras")
        admin.unload("exported", runtime_dir=self.daemon.run)

        class Module(tf.Module):
            def __init__(self) -> None:
                super().__init__()
                self.w = tf.Variable(tf.random.stateless_normal((5, 2), (1, 2)))

            @tf.function(input_signature=[tf.TensorSpec((None, 5), tf.float32, name="obs")])
            def __call__(self, obs):
                return {"actions": tf.tanh(obs @ self.w)}

        module = Module()
        tf.saved_model.save(module, str(self.dir / "saved"), signatures=module.__call__)
        from_tensorflow.export_saved(self.dir / "saved", self.dir / "tf")
        self.serve(self.dir / "tf")


if __name__ == "__main__":
    unittest.main()
