"""That a GPU computes what the CPU computes, and that a step on it waits for nothing.

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
from models.local_aggregation import local_aggregation
from ops.walk import walk

GPU = torch.device("cuda", 0)

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU, and SEG_TEST_CUDA=1")

METHODS = {name: config for name, (config, _) in STAGES.items()} | {"blpseg": BLPSegConfig(width=16, self_training_from=0)}


def on_both(function, *inputs):
    """What `function` makes of the inputs and its gradients with respect to them, on the CPU and on the GPU."""
    for device in (torch.device("cpu"), GPU):
        there = [tensor.to(device).requires_grad_() for tensor in inputs]
        value = function(*there)
        yield [part.cpu() for part in (value, *torch.autograd.grad(value.square().sum(), there, materialize_grads=True))]


@pytest.mark.parametrize("side", [7, 59])
def test_the_fast_paths_are_the_cpu_s_in_value_and_gradient(side):
    query, key, other_query, other_key = torch.randn(4, 2, 64, side, side) / 3
    value, logits = torch.randn(2, 32, side, side), torch.randn(2, 5, side, side)

    def consistency(*maps):
        return eigenspace_consistency(*(one.flatten(2).mT for one in maps))

    for function, inputs in (
        (walk, (query, key, value)),
        (lambda logits, features: local_aggregation(logits, features, 6.0), (logits, query)),
        (consistency, (query, key, other_query, other_key)),
    ):
        for of_cpu, of_gpu in zip(*on_both(function, *inputs), strict=True):
            torch.testing.assert_close(of_gpu, of_cpu, rtol=1e-4, atol=1e-5)


def test_the_crf_is_the_cpu_s():
    image = (torch.rand(60, 80, 3).cumsum(dim=1) * 5).byte().numpy()
    probabilities = torch.randn(5, 60, 80).softmax(dim=0)
    of_cpu, of_gpu = (refine(probabilities.to(device), image, "torch", CrfConfig()).cpu() for device in ("cpu", GPU))
    torch.testing.assert_close(of_gpu, of_cpu, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", METHODS)
def test_losses_are_the_cpu_s(name):
    method, given = build_method(METHODS[name], MODEL, 4).train(), batch() | {"tags": torch.ones(2, 3)}
    method.begin_step(1, 0.0)
    for module in method.modules():
        if isinstance(module, torch.nn.modules.dropout._DropoutNd):
            module.p = 0.0  # each device draws its own
    of_cpu = method(given)
    method.to(GPU)
    of_gpu = method({name: part.to(GPU) if isinstance(part, torch.Tensor) else part for name, part in given.items()})
    for name, loss in of_cpu.items():
        torch.testing.assert_close(of_gpu[name].cpu(), loss, rtol=1e-2, atol=1e-3)  # convolutions are in TF32


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("name", METHODS)
def test_a_step_waits_for_nothing(name, precision):
    settings = TrainConfig(precision=precision, lr=1e-4)
    method = build_method(METHODS[name], MODEL, 4).train().to(GPU, memory_format=torch.channels_last)
    method.begin_step(1, 0.0)
    optimizer = preparation.build_optimizer(method, settings)
    scaler = torch.amp.GradScaler(GPU.type, enabled=precision == "fp16")
    made = batch() | {"tags": torch.ones(2, 3)}
    made |= {"image": made["image"].byte(), "label": made["label"].byte()}
    made = {name: part.pin_memory() if isinstance(part, torch.Tensor) else part for name, part in made.items()}
    for number in range(3):  # the first ones set up
        torch.cuda.set_sync_debug_mode("error" if number else "default")
        try:
            losses = train.forward_backward(method, iter([made]), settings, scaler, GPU)
            if precision != "fp16":  # whose scaler asks for overflow before the optimizer's step
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
            torch.manual_seed(0)  # of dropout
            weights = [weight for weight in method.parameters() if weight.requires_grad]
            found.append(torch.autograd.grad(sum(method(given).values()), weights, allow_unused=True))
        assert all((a is None and b is None) or torch.equal(a, b) for a, b in zip(*found, strict=True))
    finally:
        torch.use_deterministic_algorithms(before)
