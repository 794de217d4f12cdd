"""Consistency of the random walk's transition matrices on the neural eigenspace, in memory linear in N."""

import torch

from ops.pairs import blocks


def eigenspace_consistency(
    query: torch.Tensor,
    key: torch.Tensor,
    view_query: torch.Tensor,
    view_key: torch.Tensor,
    axis: str = "query",
    kl: str = "entries",
    trace_weight: float = 0.01,
) -> torch.Tensor:
    """KL(S(E') || S(E)) + trace_weight * |tr S(E) - tr S(E')|, E = Q K^T (CC4S, self-supervision on the neural
    eigenspace; the released code's axis and means are the defaults).

    query, key: (B, N, d) of the image, with gradient. view_query, view_key: (B, N, d) of the view, whose row i is
    the same place as the image's row i; treated as constants.
    axis: S is the softmax of E over the "query" axis (columns sum to 1) or over the "key" axis (rows sum to 1).
    kl: the divergence is a mean over all N^2 "entries" of S, or over its N distributions ("rows").
    Returns a scalar >= 0 in nats, the mean over the batch. N x N matrices are made a block at a time: see
    `_EigenspaceConsistency`.
    """
    if axis == "key":  # the softmax over keys of Q K^T is that over queries of K Q^T, transposed
        query, key, view_query, view_key = key, query, view_key, view_query
    elif axis != "query":
        raise ValueError(f"axis is {axis!r}: choose query or key")
    if kl not in ("entries", "rows"):
        raise ValueError(f"kl is {kl!r}: choose entries or rows")
    positions = query.shape[1]
    kl_weight = 1.0 / positions**2 if kl == "entries" else 1.0 / positions
    # At least float32: the energies are not scaled, and bfloat16 would round one of 100 to the nearest half.
    dtype = torch.promote_types(query.dtype, torch.float32)
    with torch.autocast(query.device.type, enabled=False):
        return _EigenspaceConsistency.apply(
            query.to(dtype), key.to(dtype), view_query.detach().to(dtype), view_key.detach().to(dtype), kl_weight, trace_weight
        )


class _EigenspaceConsistency(torch.autograd.Function):
    """The loss and its gradients, a block of columns j of S_ij = exp(q_i.k_j - l_j), l_j = logsumexp_i(q_i.k_j) at a time.

    With d = dLoss/dE for the columns of a block, dLoss/dk_j = sum_i d_ij q_i is final within the block and
    dLoss/dq_i = sum_j d_ij k_j adds up over blocks, so nothing has to be kept or computed again for backward:
    KL gives d_ij = w (p_ij - p'_ij), and the trace gives +-w_t p_jj (delta_ij - p_ij). The trace's sign is known
    only after the last block, so its gradients are kept apart until then.
    """

    @staticmethod
    def forward(ctx, query, key, view_query, view_key, kl_weight, trace_weight):
        """query, key, view_query, view_key: (B, N, d) floating point; the weights multiply the two terms. Returns a scalar."""
        batch = len(query)
        divergence = query.new_zeros(batch)
        trace_difference = query.new_zeros(batch)
        kl_grad_query, trace_grad_query = torch.zeros_like(query), torch.zeros_like(query)
        kl_grad_key, trace_grad_key = torch.empty_like(key), torch.empty_like(key)
        for images, columns in blocks(key):
            # Rows of these (b, columns, N) matrices are columns j of S: the distributions over i.
            # In place (log_p, p and slope are one matrix) and dropped before the next block: on a GPU they are what this loss
            # adds to a step's memory.
            log_p = torch.log_softmax(key[images, columns] @ query[images].mT, dim=-1)
            view_log_p = torch.log_softmax(view_key[images, columns] @ view_query[images].mT, dim=-1)
            view_p = view_log_p.exp()
            divergence[images] += view_log_p.sub_(log_p).mul_(view_p).sum(dim=(1, 2))
            del view_log_p
            p = log_p.exp_()
            diagonal = p.diagonal(columns.start, dim1=1, dim2=2).unsqueeze(-1)
            view_diagonal = view_p.diagonal(columns.start, dim1=1, dim2=2).unsqueeze(-1)
            trace_difference[images] += (diagonal - view_diagonal).sum(dim=(1, 2))

            weighted = diagonal * key[images, columns]
            trace_grad_query[images] -= p.mT @ weighted
            trace_grad_query[images, columns] += weighted
            trace_grad_key[images, columns] = diagonal * (query[images, columns] - p @ query[images])

            slope = p.sub_(view_p)
            kl_grad_query[images] += slope.mT @ key[images, columns]
            kl_grad_key[images, columns] = slope @ query[images]
            del log_p, p, slope, view_p, diagonal, view_diagonal
        sign = trace_difference.sign().view(batch, 1, 1)
        ctx.save_for_backward(
            (kl_weight * kl_grad_query + trace_weight * sign * trace_grad_query) / batch,
            (kl_weight * kl_grad_key + trace_weight * sign * trace_grad_key) / batch,
        )
        return (kl_weight * divergence + trace_weight * trace_difference.abs()).mean()

    @staticmethod
    def backward(ctx, grad_output):
        grad_query, grad_key = ctx.saved_tensors
        return grad_output * grad_query, grad_output * grad_key, None, None, None, None
