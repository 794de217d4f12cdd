"""A GPU computes the same as the CPU, and a training step does not wait for results of the GPU.

Only on a machine with a GPU: SEG_TEST_CUDA=1 python -m pytest tests/test_cuda.py
"""

import pytest
import torch
from test_methods import MODEL, STAGES, batch

import train
from config import CrfConfig, TrainConfig
from engine import preparation
from engine.crf import refine
from losses.eigenspace import eigenspace_consistency
from methods import build_method
from methods.blpseg import BLPSegConfig
from methods.cc4s import CC4SConfig
from methods.dmpls import DMPLSConfig
from models.local_aggregation import local_aggregation
from ops.walk import walk

GPU = torch.device("cuda", 0)

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU, and SEG_TEST_CUDA=1")

METHODS = {name: config for name, (config, _) in STAGES.items()} | {
    "blpseg": BLPSegConfig(width=16, self_training_from=0),
    "peers": CC4SConfig(network="baseline", gated_crf=0.1, entropy=0.1, tree_energy=0.4),
    "dmpls": DMPLSConfig(),
}


def on_both(function, *inputs):
    """Yields the value of `function` and its gradients at the inputs, first on the CPU, then on the GPU."""
    for device in (torch.device("cpu"), GPU):
        moved = [tensor.to(device).requires_grad_() for tensor in inputs]
        value = function(*moved)
        yield [part.cpu() for part in (value, *torch.autograd.grad(value.square().sum(), moved, materialize_grads=True))]


@pytest.mark.parametrize("side", [7, 59])
def test_fast_paths_on_the_gpu_equal_the_cpu_in_value_and_gradient(side):
    query, key, other_query, other_key = torch.randn(4, 2, 64, side, side) / 3
    value, logits = torch.randn(2, 32, side, side), torch.randn(2, 5, side, side)

    def consistency(*maps):
        return eigenspace_consistency(*(feature_map.flatten(2).mT for feature_map in maps))

    for function, inputs in (
        (walk, (query, key, value)),
        (lambda logits, features: local_aggregation(logits, features, 6.0), (logits, query)),
        (consistency, (query, key, other_query, other_key)),
    ):
        for of_cpu, of_gpu in zip(*on_both(function, *inputs), strict=True):
            torch.testing.assert_close(of_gpu, of_cpu, rtol=1e-4, atol=1e-5)


def test_the_crf_on_the_gpu_equals_the_crf_on_the_cpu():
    image = (torch.rand(60, 80, 3).cumsum(dim=1) * 5).byte().numpy()
    probabilities = torch.randn(5, 60, 80).softmax(dim=0)
    of_cpu, of_gpu = (refine(probabilities.to(device), image, "torch", CrfConfig()).cpu() for device in ("cpu", GPU))
    torch.testing.assert_close(of_gpu, of_cpu, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", METHODS)
def test_losses_on_the_gpu_equal_losses_on_the_cpu(name):
    method, given = build_method(METHODS[name], MODEL, 4).train(), batch() | {"tags": torch.ones(2, 3)}
    method.begin_step(1, 0.0)
    for module in method.modules():
        if isinstance(module, torch.nn.modules.dropout._DropoutNd):
            module.p = 0.0  # each device draws different masks
    of_cpu = method(given)
    method.to(GPU)
    of_gpu = method({name: part.to(GPU) if isinstance(part, torch.Tensor) else part for name, part in given.items()})
    for name, loss in of_cpu.items():
        torch.testing.assert_close(of_gpu[name].cpu(), loss, rtol=1e-2, atol=1e-3)  # convolutions are in TF32


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("name", METHODS)
def test_a_training_step_does_not_wait_for_the_gpu(name, precision):
    settings = TrainConfig(precision=precision, lr=1e-4)
    method = build_method(METHODS[name], MODEL, 4).train().to(GPU, memory_format=torch.channels_last)
    method.begin_step(1, 0.0)
    optimizer = preparation.build_optimizer(method, settings)
    scaler = torch.amp.GradScaler(GPU.type, enabled=precision == "fp16")
    pinned = batch() | {"tags": torch.ones(2, 3)}
    pinned |= {"image": pinned["image"].byte(), "label": pinned["label"].byte()}
    pinned = {name: part.pin_memory() if isinstance(part, torch.Tensor) else part for name, part in pinned.items()}
    for number in range(3):  # the first step may wait: it sets up
        torch.cuda.set_sync_debug_mode("error" if number else "default")
        try:
            losses = train.forward_backward(method, iter([pinned]), settings, scaler, GPU)
            if precision != "fp16":  # the fp16 scaler waits: it checks for overflow before the step
                optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert all(loss.isfinite() for loss in losses.values())


@pytest.mark.parametrize("name", METHODS)
def test_deterministic_steps_give_the_same_gradients(name):
    before = torch.are_deterministic_algorithms_enabled()
    preparation.be_deterministic()
    try:
        method = build_method(METHODS[name], MODEL, 4).train().to(GPU)
        method.begin_step(1, 0.0)
        given = batch() | {"tags": torch.ones(2, 3)}
        given = {name: part.to(GPU) if isinstance(part, torch.Tensor) else part for name, part in given.items()}
        found = []
        for _ in range(2):
            torch.manual_seed(0)  # the same dropout
            weights = [weight for weight in method.parameters() if weight.requires_grad]
            found.append(torch.autograd.grad(sum(method(given).values()), weights, allow_unused=True))
        assert all((a is None and b is None) or torch.equal(a, b) for a, b in zip(*found, strict=True))
    finally:
        torch.use_deterministic_algorithms(before)
