"""One step of a random walk over the positions of a map, and its spread, without the N x N matrix."""

import torch

from ops.pairs import blocks


def walk(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """softmax(Q K^T) V over the positions of maps: query, key (B, d, h, w), value (B, D, h, w) -> (B, D, h, w), value's dtype.

    One block of the N x N matrix is held at a time (see `_Walk`). Energies are at least float32, because they are not scaled:
    bfloat16 would round an energy of 100 to the nearest half. Products with the values are in the values' dtype.
    """
    dtype = torch.promote_types(query.dtype, torch.float32)
    with torch.autocast(value.device.type, enabled=False):
        queries, keys, values = (maps.flatten(2).mT for maps in (query.to(dtype), key.to(dtype), value))
        if torch.compiler.is_exporting():  # an exported graph cannot loop over a variable number of blocks
            walked = (queries @ keys.mT).softmax(dim=-1).to(value.dtype) @ values
        else:
            walked = _Walk.apply(queries, keys, values)
    return walked.mT.reshape(value.shape)


def spread_of_transitions(query: torch.Tensor, key: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the standard deviation of the energies E = Q K^T, and the number of positions (1 to N) over which the walk
    spreads: the exponential of the entropy of a row of P = softmax(E).

    query, key: maps (B, d, h, w). Returns two float64 scalars: means over images, the spread also over rows. One block of the
    N x N matrix is held at a time.
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
    """softmax(Q K^T) V with gradients, one block of P at a time. backward computes the blocks again.

    With dO the gradient of O = P V: dV = P^T dO, dP = dO V^T and dE_ij = P_ij (dP_ij - sum_k P_ik dP_ik). A block has whole
    rows, so the sum and the difference use the same dP. FlashAttention computes the sum as dO . O. With bfloat16 values, dO . O
    is rounded differently from dP. torch's fused attention needs values as wide as queries. With values cut into D/d heads that
    share queries and keys, fused attention takes twice as long as this code on a CPU.
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
        grad_value = torch.zeros_like(value, dtype=query.dtype)  # a sum of many parts: bfloat16 would lose small parts
        value_transposed = value.mT.contiguous()  # copied once: on a CPU, bmm copies a transposed bfloat16 matrix at every call
        for images, rows in blocks(query):
            transition = torch.softmax(query[images, rows] @ key[images].mT, dim=-1)
            grad_value[images] += transition.to(value.dtype).mT @ grad_walked[images, rows]
            grad_energy = (grad_walked[images, rows] @ value_transposed[images]).to(query.dtype).mul_(transition)
            grad_energy.addcmul_(transition, grad_energy.sum(dim=-1, keepdim=True), value=-1)
            grad_query[images, rows] = grad_energy @ key[images]
            grad_key[images] += grad_energy.mT @ query[images, rows]
        return grad_query, grad_key, grad_value.to(value.dtype)
