"""OFT: orthogonal fine-tuning (Qiu et al. 2023, arXiv:2306.07280; as OFTv2, arXiv:2506.19847).

The input of a linear map is rotated before the frozen map sees it. The rotation is block-diagonal, and
Cayley's transform makes each block from a skew-symmetric Q:

    h = W_0 Rᵀ x,    R = diag(R_1, ..., R_n),    R_i = (I - Q_i) (I + Q_i)⁻¹,    Q_iᵀ = -Q_i

R_i and Q_i are k x k, with n k = d_in. Trained are the k (k - 1) / 2 entries of each Q_i above its
diagonal. They start at zero, so R = I and the model is unchanged. The rows of W_0 Rᵀ have the lengths of
W_0's, and the angles between them; those of a sum W_0 + ΔW have others.
"""

from typing import Any

import torch
from torch import Tensor, nn

from pedagogic_peft.core import validation
from pedagogic_peft.core.delta import Delta
from pedagogic_peft.core.method import Method, Peft, field
from pedagogic_peft.core.targets import Targets, is_conv1d, sizes


def check_terms(what: str, value: Any) -> Any:
    """Return the value if it is a whole number of at least 2."""
    return validation.whole(what, value, least=2)


class OFT(Method):
    """The hyper-parameters of an OFT adaptation, with Hugging Face PEFT's names and defaults.

    PEFT cannot read a checkpoint for GPT-2's `Conv1D`, because it has no OFT there. Its constrained variant
    (``coft``) and its OFT of embeddings and convolutions are not here.

    Args:
        r: n, the number of blocks; 0 if `oft_block_size` says it.
        oft_block_size: k, the size of a block; 0 if r says it. What does not divide d_in is replaced by
            the divisor that is nearest, with a warning.
        target_modules: which linear maps, as in `LoRA`.
        module_dropout: in training, the probability of not rotating a block. (PEFT 0.21 has the
            option, but no linear map uses it.)
        block_share: whether all blocks of a map are one.
        use_cayley_neumann: whether R_i is a sum of powers of Q_i, which needs no inverse, and is nearly
            a rotation while Q_i is small. As in PEFT it is near to (I + Q_i) (I - Q_i)⁻¹, the transpose
            of the R_i above.
        num_cayley_neumann_terms: how many powers, at least 2; 5 are I + 2 Q + 2 Q² + 2 Q³ + Q⁴.
        modules_to_save: names of modules to train in full, such as a new classification head.

    Raises:
        ValueError: a value is of the wrong type or out of range, or r and oft_block_size are both given
            or both 0; the message names it.

    Example:
        >>> from pedagogic_peft import OFT, attach, count_parameters, load_base
        >>> model, tokenizer = load_base("pocket-gpt-tiny")
        >>> print(count_parameters(attach(model, OFT(oft_block_size=8))))
        trainable: 672 of 76,848 (0.87 %)
    """

    peft = Peft("OFT", tensor=r"oft_R\.weight", ignored="eps init_weights")

    r: int = field(0, validation.whole)
    oft_block_size: int = field(32, validation.whole)
    target_modules: Targets = field(None, validation.targets)
    module_dropout: float = field(0.0, validation.probability)
    block_share: bool = field(False, validation.flag)
    use_cayley_neumann: bool = field(True, validation.flag)
    num_cayley_neumann_terms: int = field(5, check_terms)

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.r == 0) == (self.oft_block_size == 0):
            what = f"r={self.r}, oft_block_size={self.oft_block_size}"
            raise ValueError(f"{what}: give one of the two, and 0 for the other")

    def delta(self, path: str, module: Any) -> nn.Module:
        """Return the delta for one module."""
        (d_in, _), wanted = sizes(module), self.r or self.oft_block_size
        found = nearest_divisor(d_in, wanted)
        if found != wanted:
            what = f"r={wanted}" if self.r else f"oft_block_size={wanted}"
            validation.warn(
                f"{what} does not divide {d_in}, the input of {path!r}: {found} is used"
            )
        n = found if self.r else d_in // found
        terms = self.num_cayley_neumann_terms if self.use_cayley_neumann else None
        return OFTLinear(d_in, n, self.block_share, terms, self.module_dropout)


class OFTLinear(Delta):
    """Rᵀ x in the place of a linear map's input x.

    Args:
        d_in: size of the input.
        n: how many blocks, a divisor of d_in.
        share: whether they are one.
        terms: of Neumann's series; None: the inverse itself.
        dropout: the probability of not rotating a block, in training.
    """

    def __init__(self, d_in: int, n: int, share: bool, terms: int | None, dropout: float):
        super().__init__()
        self.n, self.k, self.terms, self.dropout = n, d_in // n, terms, dropout
        entries = torch.zeros(1 if share else n, self.k * (self.k - 1) // 2)
        self.oft_R = nn.ParameterDict({"weight": entries})  # above the diagonals, row by row

    def rotations(self) -> Tensor:
        """Return R_1, ..., R_n: (n, k, k), in float32."""
        entries = self.oft_R["weight"].float()
        rows, columns = torch.triu_indices(self.k, self.k, 1, device=entries.device)
        upper = entries.new_zeros(len(entries), self.k, self.k)
        upper[:, rows, columns] = entries
        with torch.autocast(entries.device.type, enabled=False):
            R = cayley(upper - upper.mT, self.terms).expand(self.n, -1, -1)
        if self.training and self.dropout:
            kept = torch.rand(self.n, 1, 1, device=R.device) >= self.dropout
            R = torch.where(kept, R, torch.eye(self.k, device=R.device))
        return R

    def before(self, x: Tensor) -> Tensor:
        """Return Rᵀ x, for x: (..., d_in); in float32, because a rotation is mostly near 1."""
        wide = torch.promote_types(x.dtype, torch.float32)
        blocks = x.to(wide).unflatten(-1, (self.n, self.k))  # (..., d_in) -> (..., n, k)
        new = torch.einsum("...nk,nkc->...nc", blocks, self.rotations().to(wide))  # each x_iᵀ R_i
        return new.flatten(-2).to(x.dtype)

    @torch.no_grad()
    def merge_into(self, base: Any) -> None:
        """Rotate the weight's rows: W_0 Rᵀ, computed in float32 (at least), then rounded once."""
        R = torch.block_diag(*self.rotations())  # (d_in, d_in)
        W = base.weight.to(torch.promote_types(base.weight.dtype, torch.float32))
        R = R.to(W.dtype)
        base.weight.copy_(R @ W if is_conv1d(base) else W @ R.T)


def cayley(Q: Tensor, terms: int | None) -> Tensor:
    """Return the rotation of each skew-symmetric matrix; both (n, k, k).

    Args:
        terms: None: (I - Q) (I + Q)⁻¹. A number: so many powers of Q for its transpose, of which the
            last counts half. As in PEFT, 3 is 4, and the two of 2 are I + 2 Q.
    """
    eye = torch.eye(Q.shape[-1], dtype=Q.dtype, device=Q.device).expand_as(Q)
    if terms is None:
        inverse: Tensor = torch.linalg.solve(eye + Q, eye - Q, left=False)
        return inverse
    R, power, last = eye + 2 * Q, Q, max(terms - 1, 3) if terms > 2 else 1
    for i in range(2, last + 1):
        power = power @ Q
        R = R + (power if i == last else 2 * power)
    return R


def nearest_divisor(d: int, wanted: int) -> int:
    """Return the divisor of d that is nearest to a number; of two equally near, the smaller."""
    return min((n for n in range(1, d + 1) if d % n == 0), key=lambda n: (abs(n - wanted), n))
