"""The one size switch: pages run on another base by changing ``BASE`` alone.

The base is a small checkpoint and the data are small files, both written here, with the form of the
real ones; trainings are cut to a few steps. So this tests that the lesson runs, not what it finds.
"""

import copy
import json
import re
import sys
import types
from functools import partial
from pathlib import Path

import datasets
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers

import pedagogic_peft
from pedagogic_peft.course.experiments import (
    again,
    learned_and_kept,
    lora_family,
    lora_grid,
    tuning,
)
from pedagogic_peft.course.pocket import tasks

ROOT = Path(__file__).parents[2]
CHAPTERS = ROOT / "chapters"
REAL = {"lora_on_real_models"}  # the page of a real base and what ships trained for it
LORA = sorted({path.stem for path in (CHAPTERS / "02_lora").glob("*.ipynb")} - REAL)
PAGES = [f"02_lora/{name}" for name in LORA] + [
    "01_introduction/train_a_little",
    "03_adapters/bottleneck",
    "03_adapters/write_your_own",
    "04_soft_prompts/prompt_tuning",
    "04_soft_prompts/prefix_tuning",
    "04_soft_prompts/style_and_format",
    "06_practice/with_hugging_face",
    "07_conclusion/conclusion",
]
# Not the pages on adapters that ship trained for pocket-gpt (one_base_many_tasks, composing), on a
# comparison stored for it (adapter_family), and on what its pretraining held (what_prompts_cannot_do).
BASES = {  # or llama, which most of today's models are like: wider, bfloat16, with fewer keys than queries
    "02_lora/lora_beyond_text": ["vit"],
    "02_lora/lora_family": ["gpt2"],  # hundreds of trainings, so a narrow one
    "02_lora/lora_in_use": ["gpt2"],
    "02_lora/why_low_rank": ["gpt2"],
    "03_adapters/bottleneck": ["llama", "gpt2"],
    "04_soft_prompts/prompt_tuning": ["llama", "gpt2"],
    "07_conclusion/conclusion": ["gpt2"],
}
SAID = {  # of the runs that are stored for pocket-gpt alone
    "02_lora/lora_from_scratch": "and in the claims table, are of pocket-gpt, not of",
    "03_adapters/bottleneck": "The stored runs adapted pocket-gpt, not",
    "04_soft_prompts/prompt_tuning": "directly, from random values (stored: pocket-gpt):",
    "04_soft_prompts/prefix_tuning": "Stored runs of pocket-gpt, not of",
}
WORDS = "the film was long but not dull , a warm tale of bread and two old friends".split()


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """A folder with a GPT-2, a Llama, a ViT, and data under the names of the real ones."""
    root = tmp_path_factory.mktemp("hub")
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(["<|endoftext|>", *letters])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    end = {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, **end)
    tokenizer.save_pretrained(root / "gpt2")
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    tokenizer.save_pretrained(root / "llama")
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=len(vocabulary), n_embd=32, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0
    )
    # GPT-2's own activation is a chain of small steps; this is the same function in one
    config.activation_function = "gelu_pytorch_tanh"
    config.attn_pdrop = config.embd_pdrop = config.resid_pdrop = 0.0
    transformers.GPT2LMHeadModel(config).save_pretrained(root / "gpt2")
    llama = transformers.LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        bos_token_id=0,
        eos_token_id=0,
    )
    wide = transformers.LlamaForCausalLM(llama).to(torch.bfloat16)
    wide.save_pretrained(root / "llama")
    vit = transformers.ViTConfig(
        hidden_size=32,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=16,
        patch_size=4,
        num_labels=10,
    )
    transformers.ViTForImageClassification(vit).save_pretrained(root / "vit")
    size = {"height": 16, "width": 16}
    transformers.ViTImageProcessor(size=size).save_pretrained(root / "vit")
    write_data(root)
    return root


def write_data(root):
    noise = np.random.default_rng(0)

    def text(n):
        return " ".join(noise.choice(WORDS, n)).replace(",", ";")

    tables = {
        "stanfordnlp/sst2": ["sentence,label", *(f"{text(8)},{i % 2}" for i in range(120))],
        "corbt/all-recipes": ["input", *(text(12) for _ in range(20))],
        "Salesforce/wikitext": ["text", *(text(22) for _ in range(20))],
        "EleutherAI/lambada_openai": ["text", *(text(8) for _ in range(20))],
    }
    for name, rows in tables.items():
        (root / name).mkdir(parents=True)
        for split in ("train", "validation", "test"):
            (root / name / f"{split}.csv").write_text("\n".join(rows))
    for split, n in (("train", 60), ("test", 10)):
        for label in range(10):
            folder = root / "uoft-cs/cifar10" / split / str(label)
            folder.mkdir(parents=True)
            for k in range(n):
                pixels = noise.integers(0, 255, (16, 16, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{k}.png")


@pytest.fixture(scope="module")
def records():
    """Of the many small trainings that two pages ask for, once: {(experiment, base): records}."""
    return {}


def stored(results, records, base):
    key = results.__module__, base
    if key not in records:
        records[key] = results(base)
    return copy.deepcopy(records[key])


@pytest.fixture
def few_steps(hub, records, monkeypatch, tmp_path):
    """Fetch from the folder, train shortly, and write into a folder of this test's own."""
    fetch, learn = datasets.load_dataset, pedagogic_peft.train

    def load_dataset(name, *args, **options):
        return fetch(str(hub / name), **options)

    def cut(at, all_if_watched):
        def train(*args, steps, **options):
            watched = (
                "after_step" in options
            )  # AdaLoRA, of which the page shows ranks after all steps
            return learn(
                *args, steps=steps if watched and all_if_watched else min(steps, at), **options
            )

        return train

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(pedagogic_peft, "train", cut(at=20, all_if_watched=True))
    for module in (learned_and_kept, lora_grid, lora_family, tuning):
        monkeypatch.setattr(module, "train", cut(at=1, all_if_watched=False))
    for module in (lora_family, lora_grid, learned_and_kept):
        monkeypatch.setattr(module, "results", partial(stored, module.results, records))
    monkeypatch.setattr(lora_family, "score", lambda task, model, *rest: 0.5)
    unscored = types.SimpleNamespace(**vars(tasks) | {"word_accuracy": lambda *reviews: 0.5})
    monkeypatch.setattr(lora_grid, "tasks", unscored)  # of hundreds of models
    monkeypatch.chdir(tmp_path)
    (tmp_path / "repository").symlink_to(ROOT)  # where a page on Colab has its clone
    monkeypatch.delenv(again.GATE, raising=False)  # these are a reader's runs
    monkeypatch.setattr(plt, "show", plt.close)


SAME_RECORDS = (("02_lora/lora_family", "02_lora/lora_in_use", "07_conclusion/conclusion"),)


def cases():
    """Yield each page with each of its bases; pages that read the same records run in one process."""
    for name in PAGES:
        groups = [str(pages) for pages in SAME_RECORDS if name in pages]
        marks = [pytest.mark.xdist_group(group) for group in groups]
        for base in BASES.get(name, ["llama"]):
            yield pytest.param(name, base, marks=marks, id=f"{name}-{base}")


@pytest.mark.parametrize("name, kind", cases())
def test_a_page_runs_on_another_base(name, kind, hub, few_steps, monkeypatch, capsys):
    base = hub / kind
    cells = json.loads((CHAPTERS / f"{name}.ipynb").read_text())["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    switched, main = 0, types.ModuleType("__main__")
    monkeypatch.setitem(sys.modules, "__main__", main)  # where a page's own classes are looked up
    for source in code:
        source, found = re.subn(r'^BASE = "[^"]*"', f"BASE = {str(base)!r}", source, flags=re.M)
        switched += found
        plain = source.replace("%pip", "pass  #").replace("!git", "pass  #")
        exec(compile(plain, name, "exec"), vars(main))
        if found and isinstance(loaded := vars(main).get("base"), torch.nn.Module):
            assert loaded.dtype == torch.float32, "in bfloat16 full fine-tuning hardly moves"
    assert switched == 1, "one variable, and nothing else, changes the base"
    assert SAID.get(name, "") in capsys.readouterr().out
