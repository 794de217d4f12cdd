"""Losses at the size of the images from smaller logits of the network, for a few images at a time."""

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.distributed as dist

from ops.resizing import resizing_matrix

# A masked mean over the pixels of some images: logits (b, C, H, W) and the slice of the batch that these images are ->
# the mean, and the weight of the mean in the mean over the batch (a number of pixels, or a sum of weights).
MaskedMean = Callable[[torch.Tensor, slice], tuple[torch.Tensor, torch.Tensor]]

# Number of logits at the size of the images that are held at a time. A GPU needs many logits to be busy, but the network's
# activations need memory at the same time (estimated, as in ops/pairs.py).
HELD = {"cpu": 2**23, "cuda": 2**24}


def pixelwise(
    means: Mapping[str, MaskedMean], logits: torch.Tensor, size: Sequence[int], align_corners: bool = True
) -> dict[str, torch.Tensor]:
    """Returns the named masked means over a whole batch of logits (B, C, h, w), resized to `size` like the prediction.

    Full-size logits and the losses' intermediate results exist for a few images at a time. Gradients are computed at once and
    kept at (h, w), so nothing else is held for backward. A mean is a scalar: 0 with zero gradient if all weights are 0.
    """
    dtype = torch.promote_types(logits.dtype, torch.float32)
    with torch.autocast(logits.device.type, enabled=False):
        values = _Pixelwise.apply(logits.to(dtype).contiguous(), size, align_corners, tuple(means.values()))
    return dict(zip(means, values, strict=True))


def pixelwise_mean(
    masked_mean: MaskedMean, logits: torch.Tensor, size: Sequence[int], align_corners: bool = True
) -> torch.Tensor:
    """Returns `pixelwise` of one masked mean."""
    return pixelwise({"mean": masked_mean}, logits, size, align_corners)["mean"]


def mean_where(values: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
    """Returns the mean of values (B, H, W) where a mask (B, H, W) bool is True, over the pixels of all processes; NaN if it is
    True nowhere. No gradient."""
    sums = torch.stack([(values * where).sum(dtype=torch.float64), where.sum(dtype=torch.float64)])
    if dist.is_initialized():
        dist.all_reduce(sums)
    return sums[0] / sums[1]


def sum_over_processes(values: torch.Tensor) -> torch.Tensor:
    """Returns the sum of a tensor over all processes. The gradient is that of the sum, where DDP takes the mean over processes:
    a function of such sums trains as in a single process."""
    if not dist.is_initialized():
        return values
    total = values.detach().clone()
    dist.all_reduce(total)
    return total + dist.get_world_size() * (values - values.detach())


class _Pixelwise(torch.autograd.Function):
    """Means and their gradients at (h, w). forward computes the gradients, and backward adds them up."""

    @staticmethod
    def forward(ctx, logits, size, align_corners, means):
        """logits: (B, C, h, w) floating point; size: (H, W); means: a tuple of `MaskedMean`. Returns one scalar per mean."""
        images, classes = logits.shape[:2]
        sums, weights = logits.new_zeros(2, len(means))
        gradients = [torch.empty_like(logits) for _ in means]
        rows, columns = (resizing_matrix(*sides, align_corners, logits) for sides in zip(logits.shape[2:], size, strict=True))
        step = max(1, HELD[logits.device.type] // (classes * size[0] * size[1]))
        for start in range(0, images, step):
            some = slice(start, min(start + step, images))
            small = logits[some].detach().requires_grad_()
            with torch.enable_grad():
                large = rows.mT @ (small @ columns)
                for number, masked_mean in enumerate(means):
                    mean, weight = masked_mean(large, some)
                    (gradients[number][some],) = torch.autograd.grad(weight * mean, small, retain_graph=True)
                    sums[number] += weight * mean.detach()
                    weights[number] += weight
                    del mean  # frees the graph of this loss before the next loss
            del large, small
        if dist.is_initialized():  # means over the pixels of all processes; gradients are averaged later
            dist.all_reduce(weights)
            weights /= dist.get_world_size()
        weights.clamp_(min=torch.finfo(weights.dtype).tiny)
        ctx.save_for_backward(weights, *gradients)
        return tuple(sums / weights)

    @staticmethod
    def backward(ctx, *grad_means):
        weights, *gradients = ctx.saved_tensors
        return sum(g * d / w for g, d, w in zip(grad_means, gradients, weights, strict=True)), None, None, None
