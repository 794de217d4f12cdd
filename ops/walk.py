"""One step of a random walk over the positions of a map, and how far it goes, without the N x N matrix."""

import torch

from ops.pairs import blocks


def walk(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """softmax(Q K^T) V over the positions of maps: query, key (B, d, h, w), value (B, D, h, w) -> (B, D, h, w), value's dtype.

    Of the N x N matrix a block is held at a time: see `_Walk`. Energies are at least float32: they are not scaled, and bfloat16
    would round one of 100 to the nearest half. Products with the values are in the values' dtype.
    """
    dtype = torch.promote_types(query.dtype, torch.float32)
    with torch.autocast(value.device.type, enabled=False):
        queries, keys, values = (maps.flatten(2).mT for maps in (query.to(dtype), key.to(dtype), value))
        if torch.compiler.is_exporting():  # a graph has no loop over blocks of any number
            walked = (queries @ keys.mT).softmax(dim=-1).to(value.dtype) @ values
        else:
            walked = _Walk.apply(queries, keys, values)
    return walked.mT.reshape(value.shape)


def spread_of_transitions(query: torch.Tensor, key: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The standard deviation of the energies E = Q K^T, and the exponential of the entropy of a row of P = softmax(E): over how
    many positions the walk spreads, from 1 to N.

    query, key: maps (B, d, h, w). Returns two float64 scalars, means over images and over rows. A block of the N x N matrix is
    held at a time.
    """
    queries, keys = (maps.flatten(2).mT.float() for maps in (query, key))
    batch, positions, _ = queries.shape
    sums = queries.new_zeros(3, batch, dtype=torch.float64)
    with torch.autocast(query.device.type, enabled=False):
        for images, rows in blocks(queries):
            energy = queries[images, rows] @ keys[images].mT
            log_p = torch.log_softmax(energy, dim=-1)
            spread = torch.special.entr(log_p.exp()).sum(dim=-1).exp()
            energy = energy.double()
            sums[:, images] += torch.stack(
                [energy.sum(dim=(1, 2)), energy.square().sum(dim=(1, 2)), spread.double().sum(dim=1)]
            )
    mean, square = sums[:2] / positions**2
    return (square - mean**2).clamp(min=0).sqrt().mean(), (sums[2] / positions).mean()


class _Walk(torch.autograd.Function):
    """softmax(Q K^T) V with gradients, a block of P at a time, which backward computes again.

    With dO the gradient of O = P V: dV = P^T dO, dP = dO V^T and dE_ij = P_ij (dP_ij - sum_k P_ik dP_ik). Blocks have whole
    rows, so that sum is taken of the very dP that it is subtracted from; as dO . O (FlashAttention) it would be rounded apart
    from it where values are bfloat16. torch's own fused attention wants values as wide as queries; cut into D/d heads that
    share them, it takes twice the time of this on a CPU.
    """

    @staticmethod
    def forward(ctx, query, key, value):
        """query, key: (B, N, d), value: (B, N, D). Returns (B, N, D)."""
        walked = torch.empty_like(value)
        for images, rows in blocks(query):
            transition = torch.softmax(query[images, rows] @ key[images].mT, dim=-1).to(value.dtype)
            walked[images, rows] = transition @ value[images]
        ctx.save_for_backward(query, key, value)
        return walked

    @staticmethod
    def backward(ctx, grad_walked):
        query, key, value = ctx.saved_tensors
        grad_query, grad_key = torch.empty_like(query), torch.zeros_like(key)
        grad_value = torch.zeros_like(value, dtype=query.dtype)  # a sum of many parts, which bfloat16 would round away
        value_transposed = value.mT.contiguous()  # once: on a CPU, bmm copies a transposed bfloat16 matrix at every call
        for images, rows in blocks(query):
            transition = torch.softmax(query[images, rows] @ key[images].mT, dim=-1)
            grad_value[images] += transition.to(value.dtype).mT @ grad_walked[images, rows]
            grad_energy = (grad_walked[images, rows] @ value_transposed[images]).to(query.dtype).mul_(transition)
            grad_energy.addcmul_(transition, grad_energy.sum(dim=-1, keepdim=True), value=-1)
            grad_query[images, rows] = grad_energy @ key[images]
            grad_key[images] += grad_energy.mT @ query[images, rows]
        return grad_query, grad_key, grad_value.to(value.dtype)
