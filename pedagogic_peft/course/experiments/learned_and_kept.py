"""What an adaptation learns and what it keeps, over rates and steps: pages 2.1 to 2.3.

    python -m pedagogic_peft.course.experiments.learned_and_kept    # what is missing: half an hour in all

Each cell adapts pocket-gpt to sentiment. Learned is the accuracy on reviews; kept are the story
questions still answered, and the loss on stories. Both are measured again with the intruder dimensions
(see `intruders`) scaled by a half, and, as a control, with the whole change scaled down as far. Two more
kinds of runs train the weight matrices alone, with AdamW and with Muon, and ask for the rank of the
change.
"""

import copy
import statistics
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pedagogic_peft import LoRA, attach, count_parameters, load_base, merge, train
from pedagogic_peft.core.sites import sites
from pedagogic_peft.core.targets import find_targets, is_linear
from pedagogic_peft.course.experiments import store
from pedagogic_peft.course.experiments.intruders import halved, intruders, shrunk, turned
from pedagogic_peft.course.experiments.store import Cell
from pedagogic_peft.course.pocket import tasks
from pedagogic_peft.course.pocket.lessons import lesson

RESULTS = Path(__file__).with_name("learned_and_kept.jsonl")
BATCH_SIZE = 12
SEEDS = (0, 1, 2, 3, 4)
LORA, FULL = "LoRA", "full fine-tuning"
ADAMW, MUON = "AdamW, matrices only", "Muon, matrices only"
SETTINGS: tuple[tuple[str, float, int], ...] = (  # method, learning rate, steps
    (LORA, 1e-2, 100),
    (LORA, 5e-3, 200),
    (LORA, 5e-3, 100),
    (FULL, 2e-3, 100),
    (FULL, 1e-3, 200),
    (FULL, 5e-3, 100),
    (ADAMW, 2e-3, 100),
    (ADAMW, 4e-3, 100),
    (MUON, 5e-2, 100),
    (MUON, 1e-2, 100),
)


@cache
def material(base: str = "pocket-gpt") -> dict[str, Any]:
    """Return the base, its tokenizer, the training data and what is measured on."""
    torch.set_num_threads(1)
    model, tokenizer = load_base(base)
    of = lesson(base)
    short = [e for e in of.sentiment(2000, seed=1) if len(e.prompt.split()) <= 16]
    return {
        "frozen": model.to("cuda" if torch.cuda.is_available() else "cpu"),
        "tokenizer": tokenizer,
        "labels": of.labels,
        "train": tasks.encode(tokenizer, short),
        "val": of.sentiment(250, seed=3, split="validation"),
        "test": of.sentiment(250, seed=2, split="test"),
        "questions": of.questions(100, seed=3),
        "stories": of.stories(30, seed=0),
    }


def equalised(matrix: Tensor) -> Tensor:
    """Return the matrix with its singular values pushed towards 1, by five steps of Newton and Schulz.

    The coefficients are Muon's (Jordan et al. 2024): values from about 0.003 of the norm upwards come
    out between 0.68 and 1.2, smaller ones stay smaller.
    """
    X: Tensor = matrix / (matrix.norm() + 1e-7)
    for _ in range(5):
        gram = X @ X.T
        X = 3.4445 * X + (-4.7750 * gram + 2.0315 * gram @ gram) @ X
    return X


class Muon(torch.optim.Optimizer):
    """Momentum, then `equalised`: Muon of matrices as `torch.optim.Muon` has it, without weight decay.

    PyTorch's works in bfloat16, which a CPU without such units emulates, about six times slower.
    """

    def __init__(self, params: Any, lr: float):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Move every matrix that has a gradient."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    momentum = self.state[p].setdefault("momentum", torch.zeros_like(p))
                    momentum.lerp_(p.grad, 0.05)
                    update = equalised(p.grad.lerp(momentum, 0.95))  # Nesterov's
                    p.sub_(group["lr"] * max(1, p.shape[0] / p.shape[1]) ** 0.5 * update)


def weight_matrices(model: nn.Module) -> list[str]:
    """Return the names of the weights of all linear maps of the layers."""
    return [f"{path}.weight" for path in find_targets(model, "all-linear", is_linear)]


def without_sites(model: nn.Module) -> nn.Module:
    """Return a copy of the model with its LoRA, if it has one, merged."""
    plain = copy.deepcopy(model)
    return merge(plain, unload=True) if any(True for _ in sites(plain)) else plain


def changes(model: nn.Module, frozen: nn.Module) -> dict[str, Tensor]:
    """Return ΔW of every weight matrix, a LoRA's too, in the shape in which the model stores it."""
    plain = without_sites(model)
    with torch.no_grad():
        return {
            name: (plain.get_parameter(name) - frozen.get_parameter(name)).cpu()
            for name in weight_matrices(frozen)
        }


def r90(matrix: Tensor) -> int:
    """Return how many singular components hold 90 % of the squared Frobenius norm."""
    squares = torch.linalg.svdvals(matrix).square()
    return int((squares.cumsum(0) < 0.9 * squares.sum()).sum()) + 1


def with_rank(frozen: nn.Module, deltas: dict[str, Tensor], r: int) -> nn.Module:
    """Return the frozen model plus the best approximation of rank r of every change."""
    model = copy.deepcopy(frozen)
    for name, delta in deltas.items():
        U, S, Vh = torch.linalg.svd(delta, full_matrices=False)
        weight = model.get_parameter(name)
        weight.data += (U[:, :r] * S[:r] @ Vh[:r]).to(weight.device)
    return model


def adapted(method: str, lr: float, steps: int, seed: int, base: str) -> nn.Module:
    """Return a copy of the base, trained."""
    own = material(base)
    torch.manual_seed(seed)
    model: nn.Module = copy.deepcopy(own["frozen"])
    optimizer = None
    if method == LORA:
        attach(model, LoRA(r=8, alpha=16, target_modules="all-linear"))
    if method in (ADAMW, MUON):
        model.requires_grad_(False)
        matrices = [model.get_parameter(n).requires_grad_() for n in weight_matrices(model)]
        if method == MUON:
            optimizer = Muon(matrices, lr=lr)
    settings: dict[str, Any] = {"batch_size": BATCH_SIZE, "progress": False}
    train(model, own["train"], lr=lr, steps=steps, seed=seed, optimizer=optimizer, **settings)
    return model


def judged(model: nn.Module, base: str) -> dict[str, float]:
    """Return what a model has learned and what it has kept; see `run`."""
    own = material(base)
    reviews, labels = own["test"], own["labels"]
    return {
        "test": tasks.word_accuracy(model, own["tokenizer"], reviews, labels),
        "questions": tasks.word_accuracy(model, own["tokenizer"], own["questions"]),
        "stories": round(tasks.loss_per_token(model, own["tokenizer"], own["stories"]), 4),
    }


def of_intruders(model: nn.Module, deltas: dict[str, Tensor], base: str) -> dict[str, Any]:
    """Return how many intruder dimensions there are, and what the model can do with less of them."""
    frozen = material(base)["frozen"]
    less_of_them, less_of_all = without_sites(model), without_sites(model)
    found, control = [], []
    for name, delta in deltas.items():
        W0 = frozen.get_parameter(name).detach().cpu()
        components = intruders(W0, W0 + delta)
        found.append(len(components))
        control.append(len(intruders(W0, W0 + turned(delta))))
        less_of_them.get_parameter(name).data.copy_(halved(W0 + delta, components))
        less_of_all.get_parameter(name).data.copy_(shrunk(W0, W0 + delta, components))
    counts = {
        "intruders": statistics.mean(found),
        "intruders_turned": statistics.mean(control),
    }
    scores = {"halved": judged(less_of_them, base), "shrunk": judged(less_of_all, base)}
    named = {f"{key}_{how}": value for how, own in scores.items() for key, value in own.items()}
    return counts | named


def run(method: str, lr: float, steps: int, seed: int, base: str = "pocket-gpt") -> Cell:
    """Train one cell and measure it.

    Returns:
        val, test: accuracy on 250 validation and on 250 test reviews. questions: share of 100 story
        questions answered. stories: loss on 30 stories in nats per token. moved: mean over the
        matrices of ‖ΔW‖ / ‖W0‖. r90: its median over the matrices.

        Where the matrices alone were trained, rank_4: test accuracy with every ΔW cut to rank 4. Of the
        others, intruders: their mean number over the matrices, among the first ten directions;
        intruders_turned: the same for a change with the same singular values in random directions; and
        test, questions, stories once more with _halved (intruders) and _shrunk (all of ΔW, as far).
    """
    own = material(base)
    model = adapted(method, lr, steps, seed, base)
    deltas = changes(model, own["frozen"])
    weights = {name: own["frozen"].get_parameter(name).detach().cpu() for name in deltas}
    found: dict[str, Any] = {
        "val": tasks.word_accuracy(model, own["tokenizer"], own["val"], own["labels"]),
        **judged(model, base),
        "moved": round(
            statistics.mean((d.norm() / weights[n].norm()).item() for n, d in deltas.items()), 4
        ),
        "r90": statistics.median(map(r90, deltas.values())),
        "trainable": count_parameters(model).trainable,
    }
    if method in (ADAMW, MUON):
        cut = with_rank(own["frozen"], deltas, 4)
        return found | {"rank_4": judged(cut, base)["test"]}
    return found | of_intruders(model, deltas, base)


def cells(base: str = "pocket-gpt") -> list[Cell]:
    """Return every cell. Another base's rates are smaller in one proportion."""
    own, pocket = lesson(base), lesson("pocket-gpt")
    lora, full = own.lr_lora / pocket.lr_lora, own.lr_full / pocket.lr_full
    return [
        {
            "method": method,
            "lr": (lora if method == LORA else full) * lr,
            "steps": steps,
            "seed": seed,
        }
        for method, lr, steps in SETTINGS
        for seed in SEEDS
    ]


def results(base: str = "pocket-gpt") -> list[Cell]:
    """Return the experiment's records for a base; see `store.results`."""
    return store.results(RESULTS, base, cells, run)


if __name__ == "__main__":
    store.run_missing(cells(), run, RESULTS)
