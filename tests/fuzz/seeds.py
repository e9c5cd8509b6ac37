"""Valid checkpoints of every kind, small, as bytes: what the fuzzer begins with."""

import io
import json
import struct
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from helpers.methods import CASES
from helpers.models import build
from torch import nn
from transformers import AutoConfig, AutoModel

import pedagogic_peft as pp

KEY = "base_model.model.transformer.h.0.attn.c_attn.lora_A.weight"
FACTORS = {"lora_A": "lora_down", "lora_B": "lora_up"}


def of_diffusers(key: str) -> str:
    """Return diffusers' name of a tensor of PEFT."""
    return key.replace("base_model.model.", "unet.")


def of_kohya(key: str) -> str:
    """Return kohya-ss's."""
    path, factor, end = key.removeprefix("base_model.model.").rsplit(".", 2)
    return f"lora_unet_{path.replace('.', '_')}.{FACTORS[factor]}.{end}"


STRANGERS = {"diffusers": of_diffusers, "kohya-ss": of_kohya}
HUB = Path(__file__).parents[1] / "fixtures" / "adapterhub"
MORE = {
    "LoRA with a head": ("bert", pp.LoRA(r=2, modules_to_save=["classifier"])),
    "LoRA by patterns": (
        "gpt2",
        pp.LoRA(
            r=2,
            target_modules=["c_attn", "c_proj"],
            rank_pattern={"h.0.attn.c_attn": 3},
            alpha_pattern={"c_proj": 7},
        ),
    ),
    "LoRA on an embedding": ("llama", pp.LoRA(r=2, target_modules=["embed_tokens", "q_proj"])),
    "VeRA from its seed": ("gpt2", pp.VeRA(r=4, save_projection=False)),
    "prompt tuning, encoder-decoder": ("t5", pp.PromptTuning(num_virtual_tokens=3)),
    "LoRA with every bias": ("gpt2", pp.LoRA(r=2, bias="all", lora_bias=True)),
    "LoRA with tokens by name": (
        "llama",
        pp.LoRA(r=2, trainable_token_indices={"embed_tokens": [3, 1], "lm_head": [2]}),
    ),
    "LSTM": ("gpt2", pp.PTuning(num_virtual_tokens=3, encoder_reparameterization_type="LSTM")),
}


@dataclass(frozen=True)
class Seed:
    """A checkpoint: its configuration, the header of its tensors' file and their bytes."""

    model: Callable[[], nn.Module]
    load: Callable[..., nn.Module]
    files: tuple[str, str]
    config: Any
    header: dict[str, Any]
    data: bytes


def split(file: bytes) -> tuple[dict[str, Any], bytes]:
    """Return the header of a safetensors file and what follows it."""
    (size,) = struct.unpack("<Q", file[:8])
    return json.loads(file[8 : 8 + size]), file[8 + size :]


def join(header: Any, data: bytes) -> bytes:
    """Return a safetensors file."""
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


@cache
def seeds() -> dict[str, Seed]:
    """Return ``{name: checkpoint}``."""
    own = {name: ("gpt2", case.method) for name, case in CASES.items() if not case.prepare}
    own["LLaMA-Adapter"] = ("llama", CASES["LLaMA-Adapter"].method)
    found = {name: _saved(*pair) for name, pair in (own | MORE).items()}
    for kind in ("seq_bn", "double_seq_bn", "par_bn"):
        found[f"AdapterHub {kind}"] = _of_the_hub(HUB / "bert" / kind)
    for program, names in STRANGERS.items():
        found[program] = _of_strangers(found["LoRA"], names)
    found["LoRA, pickled"] = _pickled(found["LoRA"])
    return found


def _saved(name: str, method: Any) -> Seed:
    with tempfile.TemporaryDirectory() as folder:
        pp.save(pp.attach(build(name), method), folder)
        files = ("adapter_config.json", "adapter_model.safetensors")
        config, tensors = (Path(folder, file).read_bytes() for file in files)
    header, data = split(tensors)
    return Seed(lambda: build(name), pp.load, files, json.loads(config), header, data)


def _of_strangers(lora: Seed, names: Callable[[str], str]) -> Seed:
    """The tensors of a LoRA in another program's file, which has no configuration."""
    header = {names(key): entry for key, entry in lora.header.items() if key != "__metadata__"}
    said = {"unet.r": 4, "unet.lora_alpha": 16, "unet.target_modules": ["c_attn"]}
    if names(KEY).startswith("unet."):
        header["__metadata__"] = {"lora_adapter_metadata": json.dumps(said)}
    files = ("model_index.json", "pytorch_lora_weights.safetensors")
    return Seed(lora.model, pp.load, files, {}, header, lora.data)


def _pickled(lora: Seed) -> Seed:
    file = io.BytesIO()
    torch.save(safetensors.torch.load(join(lora.header, lora.data)), file)
    load = partial(pp.load, allow_bin=True)
    files = ("adapter_config.json", "adapter_model.bin")
    return Seed(lora.model, load, files, lora.config, {}, file.getvalue())


def _of_the_hub(folder: Path) -> Seed:
    def model() -> nn.Module:
        torch.manual_seed(0)
        return AutoModel.from_config(AutoConfig.from_pretrained(HUB / "bert" / "base")).eval()

    config = json.loads((folder / "adapter_config.json").read_text())
    [file] = (f for f in folder.iterdir() if f.name != "adapter_config.json")
    header, data = {}, file.read_bytes()  # a pickle has no header
    if file.suffix == ".safetensors":
        header, data = split(data)
    files = ("adapter_config.json", file.name)
    return Seed(model, pp.load_adapterhub, files, config, header, data)
