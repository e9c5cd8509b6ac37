"""Write the fixtures of test_adapters.py with the `adapters` library (AdapterHub).

That library pins an older transformers, so it needs an environment of its own:

    python -m venv hub && hub/bin/pip install adapters==1.3.0 torch
    hub/bin/python tests/make_adapterhub_fixtures.py

For tiny random models this saves the base, adapters with random values in several configurations,
inputs, and the logits that the library computes with them.
"""

import copy
import shutil
from pathlib import Path

import adapters
import torch
import transformers as hf
from adapters.composition import Fuse, Stack
from safetensors.torch import save_file

FOLDER = Path(__file__).parent / "fixtures" / "adapterhub"
VOCAB, WIDTH = 40, 16
BERT = dict(
    vocab_size=VOCAB,
    hidden_size=WIDTH,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=24,
    max_position_embeddings=20,
    num_labels=3,
    initializer_range=0.2,
)


def models():
    yield "bert", hf.BertForSequenceClassification(hf.BertConfig(**BERT))
    yield "roberta", hf.RobertaForSequenceClassification(hf.RobertaConfig(**BERT))
    distilbert = hf.DistilBertConfig(
        vocab_size=VOCAB,
        dim=WIDTH,
        n_layers=2,
        n_heads=2,
        hidden_dim=24,
        max_position_embeddings=20,
        num_labels=3,
        initializer_range=0.2,
    )
    yield "distilbert", hf.DistilBertForSequenceClassification(distilbert)
    gpt2 = hf.GPT2Config(
        vocab_size=VOCAB,
        n_embd=WIDTH,
        n_layer=2,
        n_head=2,
        n_positions=20,
        bos_token_id=1,
        eos_token_id=2,
        initializer_range=0.2,
    )
    yield "gpt2", hf.GPT2LMHeadModel(gpt2)


def configurations(model: str):
    """Yield the name of each configuration and its options, by the library's names."""
    yield "double_seq_bn", adapters.DoubleSeqBnConfig(reduction_factor=4)
    if model != "gpt2":
        yield "seq_bn", adapters.SeqBnConfig(reduction_factor=4)
    yield "par_bn", adapters.ParBnConfig(reduction_factor=4)
    if model == "bert":
        yield (
            "seq_bn-gelu",
            adapters.SeqBnConfig(
                reduction_factor=8, non_linearity="gelu", leave_out=[0], scaling=2.0
            ),
        )
        yield "compacter", adapters.CompacterConfig(reduction_factor=4)  # refused, by name


def main() -> None:
    torch.manual_seed(0)
    for model_name, base in models():
        folder = FOLDER / model_name
        shutil.rmtree(folder, ignore_errors=True)
        base.eval().save_pretrained(folder / "base")
        ids = torch.randint(3, VOCAB, (2, 7))
        mask = torch.ones_like(ids)
        mask[1, 5:] = 0
        recorded = {"input_ids": ids, "attention_mask": mask}
        for name, config in configurations(model_name):
            model = copy.deepcopy(base)
            adapters.init(model)
            model.add_adapter("task", config=config)
            model.set_active_adapters("task")
            with torch.no_grad():
                for key, parameter in model.named_parameters():
                    if ".adapters.task." in key:
                        parameter.add_(0.3 * torch.randn_like(parameter))
                recorded[name] = model.eval()(ids, attention_mask=mask).logits.contiguous()
            safe = name != "double_seq_bn"  # so that both kinds of file are read
            model.save_adapter(folder / name, "task", with_head=False, use_safetensors=safe)
        if model_name == "bert":
            recorded |= compositions(base, folder, ids, mask)
        save_file(recorded, folder / "recorded.safetensors")


def compositions(base, folder: Path, ids: torch.Tensor, mask: torch.Tensor) -> dict:
    """Return the logits of two adapters as a stack and fused, and the fusion's tensors."""
    model = copy.deepcopy(base)
    adapters.init(model)
    model.load_adapter(str(folder / "seq_bn"), load_as="a", use_safetensors=True)
    model.add_adapter("b", config=adapters.SeqBnConfig(reduction_factor=4))
    model.add_adapter_fusion(["a", "b"])
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if ".adapters.b." in key or "adapter_fusion_layer" in key:
                parameter.add_(0.3 * torch.randn_like(parameter))
            if "adapter_fusion_layer" in key and key.endswith("bias"):
                parameter.zero_()  # the paper's Q and K have none
    model.save_adapter(folder / "b", "b", with_head=False, use_safetensors=True)
    recorded = {
        key: p.detach()
        for key, p in model.named_parameters()
        if "fusion" in key and "bias" not in key
    }
    for name, setup in {"stack": Stack("a", "b"), "fusion": Fuse("a", "b")}.items():
        model.set_active_adapters(setup)
        with torch.no_grad():
            recorded[name] = model.eval()(ids, attention_mask=mask).logits.contiguous()
    return recorded


if __name__ == "__main__":
    main()
