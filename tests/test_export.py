"""The exported network gives the same logits as PyTorch, also at sizes other than that of the export."""

import json

import numpy as np
import onnxruntime
import pytest
import torch

from config import Config, ModelConfig
from engine.checkpoint import load_model, save_checkpoint
from engine.inference import on_grid
from methods import build_method
from methods.blpseg import BLPSegConfig
from methods.cc4s import CC4SConfig
from tools import export

METHODS = {"baseline": CC4SConfig(network="baseline"), "walk": CC4SConfig(shrink=2), "blpseg": BLPSegConfig(width=32)}


@pytest.mark.slow
@pytest.mark.parametrize("method_config", METHODS.values(), ids=METHODS)
def test_onnx_logits_equal_pytorch_logits_at_any_batch_and_image_size(cli, tmp_path, monkeypatch, method_config):
    """The network has three classes. A walk has gamma 0.7, so that it has an effect, and runs on a map of half the size."""
    config = Config(method=method_config, model=ModelConfig(backbone="resnet18"))
    method = build_method(config.method, config.model, 3)
    if hasattr(method.network, "walk"):
        torch.nn.init.constant_(method.network.walk.gamma, 0.7)
    checkpoint = tmp_path / "best.pt"
    save_checkpoint(checkpoint, method, config, ("road", "sky", "car"))
    code, _, stderr = cli(export.main, checkpoint)
    assert code == 0, stderr
    session = onnxruntime.InferenceSession(checkpoint.with_suffix(".onnx"), providers=["CPUExecutionProvider"])
    method = load_model(checkpoint)
    for shape in ((1, 3, 65, 65), (4, 3, 50, 83)):
        image = torch.randn(shape)
        with torch.inference_mode():
            wanted = on_grid(method)(image).numpy()
        np.testing.assert_allclose(session.run(None, {"image": image.numpy()})[0], wanted, atol=1e-4 * abs(wanted).max())
    metadata = session.get_modelmeta().custom_metadata_map
    assert json.loads(metadata["classes"]) == ["road", "sky", "car"]
    assert json.loads(metadata["mean"]) == pytest.approx([0.485, 0.456, 0.406])
    assert json.loads(metadata["std"]) == pytest.approx([0.229, 0.224, 0.225])

    code, _, stderr = cli(export.main, checkpoint)
    assert code == 2 and "best.onnx is there already" in stderr

    # The check inside the export must notice other weights.
    model = checkpoint.with_suffix(".onnx").read_bytes()
    assert export.largest_difference(method, model) < 1e-4
    with torch.no_grad():
        next(method.parameters()).mul_(1.5)
    assert export.largest_difference(method, model) > 1e-2
    monkeypatch.setattr(export, "to_onnx", lambda method: model)
    monkeypatch.setattr(export, "load_model", lambda path: method)
    code, _, stderr = cli(export.main, checkpoint, "--out", tmp_path / "wrong.onnx")
    assert code == 1 and "logits differ from PyTorch's" in stderr and not (tmp_path / "wrong.onnx").exists()
