"""VeRA: Vector-based Random Matrix Adaptation (Kopiczko et al. 2023, arXiv:2310.11454).

All adapted maps share one random pair A, B, which is never trained. Each map trains two vectors
that scale its rows:

    h = W_0 x + Λ_b B Λ_d A x,    Λ_b = diag(b), Λ_d = diag(d)    (section 3.1)

A has as many columns as the widest input, B as many rows as the widest output; a smaller map uses
the first ones. b starts at zero, so the model is unchanged.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pedagogic_peft.core import validation
from pedagogic_peft.core.delta import Delta, Deltas
from pedagogic_peft.core.method import Method, Peft, field
from pedagogic_peft.core.sites import Modules, View
from pedagogic_peft.core.targets import Targets, sizes
from pedagogic_peft.methods.lora import LoRALinear


class VeRA(Method):
    """The hyper-parameters of a VeRA adaptation.

    Trained are r + d_out numbers for each map, so r can be far greater than in LoRA.

    Args:
        r: rank of the shared pair, at least 1.
        target_modules: which linear maps, as in `LoRA`.
        d_initial: the start of d; greater than 0.
        projection_prng_key: seed of A and B. With the same seed, r and targets they are PEFT's.
        save_projection: whether a checkpoint holds A and B, or the seed alone.
        dropout: probability of zeroing an entry of the input of A.
        modules_to_save: names of modules to train in full, such as a new classification head.

    Raises:
        ValueError: a value is of the wrong type or out of range; the message names it.

    Example:
        >>> from pedagogic_peft import VeRA, attach, count_parameters, load_base
        >>> model, tokenizer = load_base("pocket-gpt-tiny")
        >>> print(count_parameters(attach(model, VeRA(r=16))))
        trainable: 256 of 76,432 (0.33 %)
    """

    peft = Peft(
        "VERA", tensor="vera_lambda_b", keys={"dropout": "vera_dropout"}, ignored="init_weights"
    )

    r: int = field(256, validation.count)
    target_modules: Targets = field(None, validation.targets)
    d_initial: float = field(0.1, validation.positive)
    projection_prng_key: int = field(0, validation.whole)
    save_projection: bool = field(True, validation.flag)
    dropout: float = field(0.0, validation.probability)

    def deltas(self, view: View, places: Modules) -> Deltas:
        """Return ``{path: delta}`` for the modules to adapt."""
        shapes = {path: sizes(module) for path, module in places.items()}
        d_in, d_out = map(max, zip(*shapes.values(), strict=True))
        shared = Projections(self.r, d_in, d_out, self.projection_prng_key)
        return {p: VeRALinear(*s, shared, self.d_initial, self.dropout) for p, s in shapes.items()}


class Projections(nn.Module):
    """The shared pair: A (r, d_in) and B (d_out, r), frozen.

    Every delta of an adaptation has the same object as a child, so that the pair stays one when the
    model moves to a device. It is no part of the state dict; the seed restores it.

    Args:
        r, d_in, d_out: rank, and the greatest sizes of the adapted maps.
        key: seed. The entries are uniform in ±sqrt(6 / number of columns), drawn as in PEFT.
    """

    A: Tensor
    B: Tensor

    def __init__(self, r: int, d_in: int, d_out: int, key: int = 0):
        super().__init__()
        generator = torch.Generator().manual_seed(key)
        for name, rows, columns in (("A", r, d_in), ("B", d_out, r)):
            # Kaiming initialisation for rectifiers (He et al. 2015): variance 2 / columns.
            bound = math.sqrt(3) * math.sqrt(2) / math.sqrt(columns)
            values = torch.empty(rows, columns, dtype=torch.float32, device="cpu")
            self.register_buffer(name, values.uniform_(-bound, bound, generator=generator), False)


class VeRALinear(Delta):
    """ΔW = Λ_b B Λ_d A beside a linear map, with the first columns of A and the first rows of B.

    Args:
        d_in, d_out: sizes of the linear map's input and output.
        shared: A and B.
        d_initial, dropout: as in `VeRA`.
    """

    def __init__(
        self, d_in: int, d_out: int, shared: Projections, d_initial: float, dropout: float
    ):
        super().__init__()
        self.vera_lambda_d = nn.Parameter(torch.full((len(shared.A),), d_initial))
        self.vera_lambda_b = nn.Parameter(torch.zeros(d_out))
        self.shared, self.d_in, self.d_out = shared, d_in, d_out
        self.dropout = nn.Dropout(dropout) if dropout > 0 else nn.Identity()

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Return y + Λ_b B Λ_d A x, for x: (..., d_in) and y: (..., d_out)."""
        A, B = self.shared.A[:, : self.d_in].to(x), self.shared.B[: self.d_out].to(x)
        h = self.vera_lambda_d.to(x.dtype) * F.linear(self.dropout(x), A)  # (..., d_in) -> (..., r)
        return y + self.vera_lambda_b.to(x.dtype) * F.linear(h, B)  # (..., r) -> (..., d_out)

    def delta_weight(self) -> Tensor:
        """Return ΔW: (d_out, d_in), in float32."""
        b, d = self.vera_lambda_b.float(), self.vera_lambda_d.float()
        A, B = self.shared.A[:, : self.d_in].to(d), self.shared.B[: self.d_out].to(d)
        return (b[:, None] * B) @ (d[:, None] * A)

    merge_into = LoRALinear.merge_into  # adds delta_weight()
