"""The exported network gives the same logits as PyTorch, also at sizes other than that of the export."""

import json
import re
import shutil
import subprocess
import sys

import numpy as np
import onnxruntime
import pytest
import torch
from conftest import REPOSITORY

from config import Config, InferenceConfig, ModelConfig
from datasets.files import read_image, read_label
from engine.checkpoint import load_model, save_checkpoint
from engine.inference import most_likely, on_grid, predict_image
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
    assert json.loads(metadata["colours"]) == [[0, 0, 0], [128, 0, 0], [0, 128, 0]]
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


@pytest.mark.slow
def test_the_code_of_the_docs_runs_a_file_without_pytorch(cli, checkpoints, tiny, tmp_path):
    code = re.findall(r"```python\n(.*?)```", (REPOSITORY / "docs" / "deploy.md").read_text(), re.DOTALL)[0]
    assert cli(export.main, checkpoints / "seven.pt", "--out", tmp_path / "best.onnx")[0] == 0
    path = next((tiny / "JPEGImages").iterdir())
    shutil.copy(path, tmp_path / "photo.jpg")
    check = "\nimport sys\nassert 'torch' not in sys.modules\n"
    done = subprocess.run([sys.executable, "-c", code + check], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 7 and "disc: " in done.stdout
    probabilities = predict_image(load_model(checkpoints / "seven.pt"), read_image(path), InferenceConfig())
    same = read_label(tmp_path / "mask.png") == most_likely(probabilities).numpy()
    assert same.mean() > 0.99, "PIL and OpenCV may decode a JPEG with differences of 1"
