"""For the same numbers, logits and gradients equal those of Hugging Face PEFT."""

import pytest
import torch
from helpers.models import ARCHITECTURES, batch, build, logits
from torch import nn

from pedagogic_peft import LoRA, attach, count_parameters, merge
from pedagogic_peft.core.architectures import DEFAULT_TARGETS
from pedagogic_peft.core.sites import sites

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore")  # PEFT warns of what is meant here


def their_model(name: str, **config) -> nn.Module:
    """Return the model adapted by PEFT, its tensors random."""
    model = peft.get_peft_model(build(name), peft.LoraConfig(**config)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def our_keys(parameters) -> dict:
    """Translate PEFT's parameter names into ours; the base's are the architecture's."""
    ours = {}
    for key, value in parameters:
        key = key.removeprefix("base_model.model.").replace(".base_layer.", ".")
        for part in ("lora_A", "lora_B"):
            key = key.replace(f".{part}.default.", f".deltas.default.{part}.")
        for part in ("lora_embedding_A", "lora_embedding_B"):
            key = key.replace(f".{part}.default", f".deltas.default.{part}")
        key = key.replace(".original_module.", ".")
        ours[key.replace(".modules_to_save.default.", ".deltas.default.module.")] = value
    return ours


def assert_equal_models(name: str, ours: nn.Module, theirs: nn.Module):
    numbers = our_keys(theirs.named_parameters())
    assert set(numbers) == {key for key, _ in ours.named_parameters()}
    ours.load_state_dict(numbers, strict=False)
    torch.testing.assert_close(logits(ours, name), logits(theirs, name), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(logits(ours, name), logits(build(name), name), atol=1e-2)
    for model in (ours, theirs):
        model(**batch(name)).loss.backward()
    expected = our_keys((k, p.grad) for k, p in theirs.named_parameters() if p.grad is not None)
    found = {key: p.grad for key, p in ours.named_parameters() if p.grad is not None}
    assert set(found) == set(expected)
    for key, gradient in found.items():
        scale = expected[key].abs().max().item()
        torch.testing.assert_close(gradient, expected[key], rtol=1e-4, atol=1e-5 * scale + 1e-8)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_logits_and_gradients_equal_pefts(name):
    targets = list(DEFAULT_TARGETS[build(name).config.model_type])
    theirs = their_model(name, r=4, lora_alpha=16, target_modules=targets)
    ours = attach(build(name), LoRA(r=4, alpha=16))  # our default targets
    assert_equal_models(name, ours, theirs)
    assert (count_parameters(ours).trainable, count_parameters(ours).total) == (
        theirs.get_nb_trainable_parameters()
    )


@pytest.mark.parametrize(
    "name, options",
    [
        ("gpt2", {"target_modules": r".*h\.1\.(attn|mlp)\.c_\w+"}),
        ("gpt2", {"target_modules": ["c_attn", "c_fc"], "use_rslora": True}),
        ("llama", {"target_modules": ["embed_tokens", "q_proj"]}),
        ("bert", {"target_modules": ["query"], "modules_to_save": ["classifier"]}),
        ("roberta", {"target_modules": ["dense"], "modules_to_save": ["classifier"]}),
        (
            "llama",
            {
                "target_modules": ["q_proj", "v_proj"],
                "rank_pattern": {"layers.0.self_attn.q_proj": 2, "v_proj": 6},
                "alpha_pattern": {"v_proj": 3},
            },
        ),
    ],
)
def test_options_mean_what_they_mean_in_peft(name, options):
    theirs = their_model(name, r=4, lora_alpha=8, **options)
    ours = attach(build(name), LoRA(r=4, alpha=8, **options))
    assert_equal_models(name, ours, theirs)


@pytest.mark.parametrize("name", ["gpt2", "llama", "t5"])
def test_all_linear_means_what_it_means_in_peft_for_language_models(name):
    theirs = their_model(name, target_modules="all-linear")
    ours = attach(build(name), LoRA(target_modules="all-linear"))
    adapted = {
        path
        for path, module in theirs.get_base_model().named_modules()
        if hasattr(module, "lora_A")
    }
    assert {path for path, _ in sites(ours)} == adapted


@pytest.mark.parametrize("name", ["gpt2", "bert", "llama"])
def test_merged_weights_equal_pefts(name):
    targets = list(DEFAULT_TARGETS[build(name).config.model_type])
    theirs = their_model(name, r=4, lora_alpha=16, target_modules=targets)
    ours = attach(build(name), LoRA(r=4, alpha=16))
    ours.load_state_dict(our_keys(theirs.named_parameters()), strict=False)
    merge(ours, unload=True)
    expected = theirs.merge_and_unload().state_dict()
    for key, weight in ours.state_dict().items():
        torch.testing.assert_close(weight, expected[key], rtol=1e-5, atol=1e-6)


def test_initial_values_are_drawn_as_in_peft():
    torch.manual_seed(3)
    theirs = peft.get_peft_model(build("llama"), peft.LoraConfig(target_modules=["q_proj"]))
    torch.manual_seed(3)
    ours = attach(build("llama"), LoRA(target_modules=["q_proj"]))
    for (path, site), other in zip(
        sites(ours), (m for m in theirs.modules() if hasattr(m, "lora_A")), strict=True
    ):
        A, B = site.deltas["default"].lora_A.weight, site.deltas["default"].lora_B.weight
        theirs_A = other.lora_A["default"].weight
        assert A.shape == theirs_A.shape and A.dtype == theirs_A.dtype, path
        assert A.std().item() == pytest.approx(theirs_A.std().item(), rel=0.15)
        assert torch.equal(B, other.lora_B["default"].weight)
