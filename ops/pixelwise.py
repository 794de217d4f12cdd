"""Losses at the images' own size, of logits at the network's: a few images at a time."""

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.distributed as dist

from ops.resizing import resizing_matrix

# A masked mean over the pixels of some images: logits (b, C, H, W) and which images of the batch they are ->
# the mean, and the weight that it has among the others' means (a number of pixels, a sum of weights).
MaskedMean = Callable[[torch.Tensor, slice], tuple[torch.Tensor, torch.Tensor]]

# How many logits at the images' size are held at a time: a GPU wants enough of them to be busy, and no more, since all of the
# network's activations are held beside them (estimated, as in ops/pairs.py).
HELD = {"cpu": 2**23, "cuda": 2**24}


def pixelwise(
    means: Mapping[str, MaskedMean], logits: torch.Tensor, size: Sequence[int], align_corners: bool = True
) -> dict[str, torch.Tensor]:
    """The named masked means over a whole batch, of logits (B, C, h, w) brought to `size` as the network's prediction is.

    Full-size logits, and what the losses make of them, exist for a few images at a time: their gradients are taken at once and
    kept at (h, w), so that nothing is held for backward. Scalars; 0, with zero gradient, where the weights are all 0.
    """
    dtype = torch.promote_types(logits.dtype, torch.float32)
    with torch.autocast(logits.device.type, enabled=False):
        values = _Pixelwise.apply(logits.to(dtype).contiguous(), size, align_corners, tuple(means.values()))
    return dict(zip(means, values, strict=True))


class _Pixelwise(torch.autograd.Function):
    """Means and their gradients at (h, w), which are known within forward; backward adds them up."""

    @staticmethod
    def forward(ctx, logits, size, align_corners, means):
        """logits: (B, C, h, w) floating point; size: (H, W); means: a tuple of `MaskedMean`. Returns as many scalars."""
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
                    del mean  # and what it holds for backward, before the next loss
            del large, small
        if dist.is_initialized():  # means over all processes' pixels, whose gradients are averaged later
            dist.all_reduce(weights)
            weights /= dist.get_world_size()
        weights.clamp_(min=torch.finfo(weights.dtype).tiny)
        ctx.save_for_backward(weights, *gradients)
        return tuple(sums / weights)

    @staticmethod
    def backward(ctx, *grad_means):
        weights, *gradients = ctx.saved_tensors
        return sum(g * d / w for g, d, w in zip(grad_means, gradients, weights, strict=True)), None, None, None
