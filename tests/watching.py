"""Measures the tensors that a piece of code makes."""

from collections.abc import Callable

import torch
from torch.utils._python_dispatch import TorchDispatchMode


def largest_tensor(function: Callable[[], object]) -> int:
    """The number of entries of the largest tensor that an operation returns while `function` runs."""
    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
            nonlocal largest
            result = operation(*args, **(kwargs or {}))
            for tensor in result if isinstance(result, (tuple, list)) else [result]:
                if isinstance(tensor, torch.Tensor):
                    largest = max(largest, tensor.numel())
            return result

    with Watch():
        function()
    return largest
