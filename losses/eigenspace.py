"""Consistency of the transition matrices of the random walk on the neural eigenspace, with memory linear in N."""

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
    """KL(S(E') || S(E)) + trace_weight * |tr S(E) - tr S(E')|, where E = Q K^T and E' is the same product of the view (CC4S,
    self-supervision on the neural eigenspace). The defaults of axis and kl are those of the released code.

    query, key: (B, N, d) of the image, with gradient. view_query, view_key: (B, N, d) of the view, treated as constants. Row i
    of the view and row i of the image show the same place.
    axis: S is the softmax of E over the "query" axis (columns sum to 1) or over the "key" axis (rows sum to 1).
    kl: the divergence is a mean over all N^2 "entries" of S, or over the N distributions of S ("rows").
    Returns a scalar >= 0 in nats, the mean over the batch. Raises ValueError for an unknown axis or kl. The N x N matrices are
    made in blocks: see `_EigenspaceConsistency`.
    """
    if axis == "key":  # softmax of Q K^T over keys = transposed softmax of K Q^T over queries
        query, key, view_query, view_key = key, query, view_key, view_query
    elif axis != "query":
        raise ValueError(f"axis is {axis!r}: choose query or key")
    if kl not in ("entries", "rows"):
        raise ValueError(f"kl is {kl!r}: choose entries or rows")
    positions = query.shape[1]
    kl_weight = 1.0 / positions**2 if kl == "entries" else 1.0 / positions
    # At least float32: the energies are not scaled, and bfloat16 rounds numbers near 100 to multiples of 0.5.
    dtype = torch.promote_types(query.dtype, torch.float32)
    with torch.autocast(query.device.type, enabled=False):
        return _EigenspaceConsistency.apply(
            query.to(dtype), key.to(dtype), view_query.detach().to(dtype), view_key.detach().to(dtype), kl_weight, trace_weight
        )


class _EigenspaceConsistency(torch.autograd.Function):
    """The loss and its gradients, one block of columns j at a time: S_ij = exp(q_i.k_j - l_j), l_j = logsumexp_i(q_i.k_j).

    Let d = dLoss/dE for the columns of a block. dLoss/dk_j = sum_i d_ij q_i is complete within the block. dLoss/dq_i =
    sum_j d_ij k_j is summed over the blocks. So forward computes the gradients, and backward needs no N x N matrix.
    The KL term gives d_ij = w (p_ij - p'_ij). The trace term gives d_ij = +-w_t p_jj (delta_ij - p_ij). The sign of the trace
    term is known only after the last block, so the gradients of the two terms are kept apart until then.
    """

    @staticmethod
    def forward(ctx, query, key, view_query, view_key, kl_weight, trace_weight):
        """query, key, view_query, view_key: (B, N, d) floating point. The weights multiply the two terms. Returns a scalar."""
        batch = len(query)
        divergence = query.new_zeros(batch)
        trace_difference = query.new_zeros(batch)
        kl_grad_query, trace_grad_query = torch.zeros_like(query), torch.zeros_like(query)
        kl_grad_key, trace_grad_key = torch.empty_like(key), torch.empty_like(key)
        for images, columns in blocks(key):
            # Row j of these (b, columns, N) matrices is column j of S: a distribution over i. On a GPU these matrices are the
            # memory that this loss adds to a step. So log_p, p and slope share one matrix, and all are deleted before the next
            # block.
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
