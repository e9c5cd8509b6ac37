"""Intruder dimensions: new large directions of a weight matrix that the pretrained one does not have.

Shuttleworth et al., "LoRA vs Full Fine-tuning: An Illusion of Equivalence" (arXiv 2410.21228, section 3):
a left singular vector among the first k of the tuned weight is an intruder when its cosine with every
left singular vector of the pretrained weight is below ε, in absolute value.
"""

import torch
from torch import Tensor

FIRST, BELOW = 10, 0.5  # k and ε


def intruders(W0: Tensor, W: Tensor) -> Tensor:
    """Return the singular components of the intruders.

    Args:
        W0, W: the pretrained and the tuned weight, (d_out, d_in).

    Returns:
        (n, d_out, d_in) with n from 0 to ``FIRST``, each of rank 1.
    """
    known = torch.linalg.svd(W0, full_matrices=False).U
    U, S, Vh = torch.linalg.svd(W, full_matrices=False)
    U, S, Vh = U[:, :FIRST], S[:FIRST], Vh[:FIRST]
    new = (known.T @ U).abs().amax(0) < BELOW
    return torch.einsum("dk,k,ke->kde", U[:, new], S[new], Vh[new])


def turned(delta: Tensor) -> Tensor:
    """Return a change with the singular values of ``delta`` and random directions: the control."""
    U, S, Vh = torch.linalg.svd(delta, full_matrices=False)
    left, right = (torch.linalg.qr(torch.randn_like(side)).Q for side in (U, Vh.T))
    other: Tensor = left * S @ right.T
    return other


def halved(W: Tensor, components: Tensor) -> Tensor:
    """Return the tuned weight with its intruders, as `intruders` returned them, scaled by a half."""
    return W - 0.5 * components.sum(0)


def shrunk(W0: Tensor, W: Tensor, components: Tensor) -> Tensor:
    """Return the tuned weight with all of its change scaled down, as far as `halved` is from it."""
    away = (0.5 * components.sum(0)).norm() / (W - W0).norm().clamp_min(1e-12)
    less: Tensor = W0 + (1 - away).clamp_min(0) * (W - W0)
    return less
