"""LoRA files of diffusers and kohya-ss, old pickles, and those of others, which are named."""

import json
import re
import warnings

import pytest
import torch
import transformers as hf
from helpers.asserts import assert_as_before, snapshot
from helpers.models import build, logits, randomise
from safetensors.torch import load_file, save_file
from torch import nn

import pedagogic_peft as pp
from pedagogic_peft import LoRA, attach, load, save
from pedagogic_peft.core.verbs import adaptations_of

peft = pytest.importorskip("peft")
WEIGHTS = "pytorch_lora_weights.safetensors"


class Attention(nn.Module):
    """Named as in a U-Net of diffusers."""

    def __init__(self):
        super().__init__()
        self.to_q, self.to_k, self.to_v = (nn.Linear(8, 8, bias=False) for _ in "qkv")
        self.to_out = nn.ModuleList([nn.Linear(8, 8), nn.Dropout(0.0)])

    def forward(self, x):
        return self.to_out[0](self.to_v(x) * torch.sigmoid(self.to_q(x) + self.to_k(x)))


class UNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.down_blocks = nn.ModuleList([nn.ModuleDict({"attn1": Attention()}) for _ in "ab"])
        self.proj_in = nn.Linear(8, 8)
        self.conv_in = nn.Conv2d(3, 8, 1)

    def forward(self, x):
        x = self.proj_in(x)
        for block in self.down_blocks:
            x = x + block["attn1"](x)
        return x


def unet():
    torch.manual_seed(0)
    return UNet().eval()


X = torch.randn(3, 8, generator=torch.Generator().manual_seed(1))
TARGETS = ["to_q", "to_v", "to_out.0", "proj_in"]


def theirs_and_tensors(alpha=4, r=4, **options):
    """A U-Net with PEFT's LoRA, as diffusers makes it, and the tensors with PEFT's names."""
    config = peft.LoraConfig(r=r, lora_alpha=alpha, target_modules=TARGETS, **options)
    theirs = peft.get_peft_model(unet(), config).eval()
    randomise(theirs)
    tensors = peft.get_peft_model_state_dict(theirs)
    tensors = {k.removeprefix("base_model.model."): t.contiguous() for k, t in tensors.items()}
    with torch.no_grad():
        return theirs(X), tensors


def diffusers(tensors):
    return {f"unet.{key}": tensor for key, tensor in tensors.items()}


def converted(tensors):
    """As `convert_state_dict_to_diffusers` names them."""
    words = {"lora_A": "lora.down", "lora_B": "lora.up"}
    return {re.sub("lora_[AB]", lambda m: words[m[0]], f"unet.{k}"): t for k, t in tensors.items()}


def processors(tensors):
    """As diffusers did until 2023; only attentions."""
    found = {}
    for key, tensor in converted(tensors).items():
        key = re.sub(r"to_out\.0\.lora", "to_out.lora", key)
        found[re.sub(r"\.(to_\w+)\.lora\.", r".processor.\1_lora.", key)] = tensor
    return found


def kohya(tensors, alpha=None):
    words, found = {"lora_A": "lora_down", "lora_B": "lora_up"}, {}
    for key, tensor in tensors.items():
        path, factor = re.fullmatch(r"(.+)\.(lora_[AB])\.weight", key).groups()
        name = "lora_unet_" + path.replace(".", "_")
        found[f"{name}.{words[factor]}.weight"] = tensor
        if alpha is not None:
            found[f"{name}.alpha"] = torch.tensor(alpha)
    return found


@pytest.mark.parametrize(
    "form", [diffusers, converted, processors, kohya, dict], ids=lambda f: f.__name__
)
def test_the_factors_by_any_name(form, tmp_path):
    expected, tensors = theirs_and_tensors()
    save_file(form(tensors), tmp_path / WEIGHTS)
    for place in (tmp_path, tmp_path / WEIGHTS):
        ours = load(unet(), place)
        torch.testing.assert_close(ours(X), expected)
    back = load(unet(), save(ours, tmp_path / "ours"))  # and from there on it is as any other
    assert torch.equal(back(X), ours(X))


def test_alpha_of_kohya_and_a_file_by_any_name(tmp_path):
    expected, tensors = theirs_and_tensors(alpha=2.0)
    save_file(kohya(tensors, alpha=2.0), tmp_path / "my_style-000010.safetensors")
    torch.testing.assert_close(load(unet(), tmp_path)(X), expected)
    assert not torch.allclose(load(unet(), tmp_path)(X), unet()(X), atol=1e-2)


def test_ranks_and_alphas_of_single_modules(tmp_path):
    patterns = {"rank_pattern": {"to_q": 2}, "alpha_pattern": {"down_blocks.1.attn1.to_q": 7}}
    expected, tensors = theirs_and_tensors(alpha=6, **patterns)
    found = kohya(tensors, alpha=6.0)
    found["lora_unet_down_blocks_1_attn1_to_q.alpha"] = torch.tensor(7.0)
    save_file(found, tmp_path / WEIGHTS)
    ours = load(unet(), tmp_path)
    torch.testing.assert_close(ours(X), expected)
    method = adaptations_of(ours).methods["default"]
    assert (method.r, method.alpha) == (4, 6) and len(method.rank_pattern) == 2


@pytest.mark.parametrize("options", [{"use_rslora": True}, {"use_dora": True}], ids=str)
def test_the_configuration_in_the_head_of_a_file_counts(options, tmp_path):
    expected, tensors = theirs_and_tensors(alpha=6, **options)
    said = {"r": 4, "lora_alpha": 6, "target_modules": TARGETS, **options}
    head = {"lora_adapter_metadata": json.dumps({f"unet.{k}": v for k, v in said.items()})}
    save_file(diffusers(tensors), tmp_path / WEIGHTS, head)
    torch.testing.assert_close(load(unet(), tmp_path)(X), expected)
    head = {"lora_adapter_metadata": json.dumps({"unet.use_something": True})}
    save_file(diffusers(tensors), tmp_path / WEIGHTS, head)
    refused(tmp_path, "use_something=True")


def clip():
    sizes = dict(hidden_size=16, intermediate_size=16, num_attention_heads=2, vocab_size=30)
    torch.manual_seed(0)
    return hf.CLIPTextModel(hf.CLIPTextConfig(num_hidden_layers=1, **sizes)).eval()


def test_a_file_for_several_models_serves_each(tmp_path):
    expected, tensors = theirs_and_tensors()
    text = {
        f"text_model.encoder.layers.0.self_attn.q_proj.lora_linear_layer.{way}.weight": torch.randn(
            shape
        )
        for way, shape in (("down", (4, 16)), ("up", (16, 4)))
    }
    both = diffusers(tensors) | {f"text_encoder.{key}": t for key, t in text.items()}
    save_file(both, tmp_path / WEIGHTS)
    with pytest.warns(
        UserWarning, match="Only 'unet' was loaded; the file also has .'text_encoder'"
    ):
        torch.testing.assert_close(load(unet(), tmp_path)(X), expected)
    ids, base = torch.arange(5)[None], clip()
    with pytest.warns(UserWarning, match="Only 'text_encoder'"):
        changed = load(clip(), tmp_path)
    assert not torch.allclose(changed(ids)[0], base(ids)[0], atol=1e-3)
    two = both | {f"text_encoder_2.{key}": 2 * t for key, t in text.items()}
    save_file(two, tmp_path / WEIGHTS)
    refused(tmp_path, "['text_encoder', 'text_encoder_2'] fit", "part=", model=clip)
    refused(tmp_path, "part='vae'", part="vae")
    refused(tmp_path, "UNet has no 2", "text_model", part="text_encoder")
    with pytest.warns(UserWarning, match="Only 'text_encoder_2'"):
        load(clip(), tmp_path, part="text_encoder_2")


def refused(place, *words, model=unet, error=ValueError, **options):
    model = model()
    before = snapshot(model)
    with warnings.catch_warnings(), pytest.raises(error) as caught:
        warnings.simplefilter("ignore")
        load(model, place, **options)
    assert_as_before(model, before)
    for word in (str(place), *words):
        assert word in str(caught.value), str(caught.value)


T = torch.ones(8, 4)


@pytest.mark.parametrize(
    "tensors, words",
    [
        ({"lora_unet_proj_in.hada_w1_a": T}, ["hada_w1_a", "LyCORIS"]),
        ({"lora_unet_proj_in.lokr_w1": T}, ["LyCORIS"]),
        ({"lora_unet_proj_in.dora_scale": T}, ["dora_scale", "kohya-ss's DoRA"]),
        ({"lora_unet_input_blocks_4_1_proj_in.lora_down.weight": T.T}, ["UNet has no 1", "diffusers"]),
        ({"lora_unet_conv_in.lora_down.weight": T.T, "lora_unet_conv_in.lora_up.weight": T}, ["Conv2d"]),
        ({"layers.0.attn.q_proj.lora_a.weight": T.T}, ["torchtune wrote it", "adapter_config.json"]),
        ({"unet.proj_in.lora_B.weight": T}, ["no A (down)"]),
        ({"unet.proj_in.lora_A.weight": T.T}, ["missing", "lora_B.weight"]),
        ({"unet.proj_in.lora_A.weight": T.T, "unet.proj_in.lora.down.weight": T.T}, ["one tensor for"]),
        ({"unet.proj_in.lora_A.weight": T.T, "unet.proj_in.alpha": -T[0, 0]}, ["alpha"]),
        ({"unet.proj_in.weight": T}, ["unet.proj_in.weight is no tensor of a LoRA"]),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)  # fmt: skip
def test_what_cannot_be_read_is_named_with_who_converts_it(tensors, words, tmp_path):
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, tmp_path / WEIGHTS)
    refused(tmp_path, *words)


def test_names_that_mean_two_modules_without_their_dots_are_not_guessed(tmp_path):
    def two():
        model = nn.ModuleDict({"a": nn.ModuleDict({"b": nn.Linear(4, 4)}), "a_b": nn.Linear(4, 4)})
        return model.eval()

    factors = {"lora_down": torch.ones(1, 4), "lora_up": torch.ones(4, 1)}
    save_file({f"lora_unet_a_b.{k}.weight": t for k, t in factors.items()}, tmp_path / WEIGHTS)
    refused(tmp_path, "has no", model=two)


def test_folders_of_others_are_told_apart(tmp_path):
    gpt2 = {"model": lambda: build("gpt2")}
    (tmp_path / "adapter_0.pt").write_bytes(b"")
    refused(tmp_path, "torchtune", **gpt2, error=FileNotFoundError)
    (tmp_path / "adapter_config.json").write_text(
        '{"lora_parameters": {"rank": 8}, "lora_alpha": 3}'
    )
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    refused(tmp_path, "peft_type is None", "mlx_lm.fuse", **gpt2)
    (tmp_path / "adapter_config.json").write_text('{"model_class": "BertModel"}')
    refused(tmp_path, "load_adapterhub", **gpt2)


def test_a_part_of_a_file_for_one_model_is_refused(tmp_path):
    save(attach(build("gpt2"), LoRA(r=2)), tmp_path)
    refused(tmp_path, "part='unet'", model=lambda: build("gpt2"), part="unet")


# Claim: an old pickle is read only if that is asked for, and only tensors are taken from it


@pytest.fixture
def pickle(tmp_path):
    """A folder with a LoRA of GPT-2 as PEFT saved it before safetensors."""
    model = attach(build("gpt2"), LoRA(r=2))
    randomise(model)
    save(model, tmp_path)
    old = tmp_path / "adapter_model.safetensors"
    torch.save(load_file(old), tmp_path / "adapter_model.bin")
    old.unlink()
    return tmp_path, model


def test_a_pickle_is_read_only_when_that_is_allowed(pickle):
    folder, model = pickle
    words = "allow_bin=True", "PEFT makes a adapter_model.safetensors"
    refused(folder, *words[:1], model=lambda: build("gpt2"), error=FileNotFoundError)
    for place in (folder, folder / "adapter_model.bin"):
        assert torch.equal(
            logits(load(build("gpt2"), place, allow_bin=True), "gpt2"), logits(model, "gpt2")
        )


class Harm:
    def __reduce__(self):
        return print, ("harm",)


def compressed(tensors, file):
    import zipfile

    torch.save(tensors, file)
    with zipfile.ZipFile(file) as old:
        entries = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as new:
        for name, content in entries.items():
            new.writestr(name, content)


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda t, file: torch.save(t | {"more": Harm()}, file), "weights_only"),
        (lambda t, file: torch.save(t | {"more": 3}, file), "something else than tensors"),
        (lambda t, file: torch.save(list(t.values()), file), "something else than tensors"),
        (lambda t, file: torch.save(t | {"x": torch.ones(1).expand(10**12)}, file), "something else"),
        (lambda t, file: torch.save(t | {"x": torch.ones(2, device="meta")}, file), "something else"),
        (lambda t, file: torch.save(t | {"x": torch.eye(3).to_sparse()}, file), "something else"),
        (compressed, "compressed"),
        (lambda t, file: file.write_bytes(b"no pickle"), "not a whole file"),
    ],
    ids=["code", "a number", "a list", "expanded", "on meta", "sparse", "compressed", "text"],
)  # fmt: skip
def test_a_pickle_with_anything_but_tensors_is_refused(make, words, pickle, capsys):
    folder, _ = pickle
    file = folder / "adapter_model.bin"
    make(torch.load(file, weights_only=True), file)
    refused(folder, words, model=lambda: build("gpt2"), allow_bin=True)
    assert capsys.readouterr().out == ""


def test_an_old_repository_is_read_when_that_is_allowed(pickle, monkeypatch):
    import huggingface_hub

    folder, _ = pickle

    def from_folder(repository, file):
        if not (folder / file).exists():
            raise FileNotFoundError(file)
        return str(folder / file)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", from_folder)
    with pytest.raises(FileNotFoundError, match="adapter_model.safetensors"):
        load(build("gpt2"), "someone/a-lora")
    load(build("gpt2"), "someone/a-lora", allow_bin=True)
    expected, tensors = theirs_and_tensors()
    for file in list(folder.iterdir()):
        file.unlink()
    save_file(diffusers(tensors), folder / WEIGHTS)
    torch.testing.assert_close(load(unet(), "someone/a-lora")(X), expected)


def test_what_unsloth_writes_is_pefts(tmp_path):
    """A regular expression for the targets, and keys of its own inside of auto_mapping."""
    regex = (
        r"(?:.*?(?:language|text).*?(?:self_attn|attention|attn|mlp).*?(?:q_proj|v_proj).*?)|"
        r"(?:\bmodel\.layers\.[\d]{1,}\.(?:self_attn|attention|mlp)\.(?:(?:q_proj|v_proj)))"
    )
    theirs = peft.get_peft_model(build("llama"), peft.LoraConfig(r=2, target_modules=regex)).eval()
    randomise(theirs)
    theirs.save_pretrained(tmp_path)
    file = tmp_path / "adapter_config.json"
    config = json.loads(file.read_text())
    config["auto_mapping"] = {"base_model_class": "LlamaForCausalLM", "unsloth_fixed": True}
    file.write_text(json.dumps(config))
    ours = load(build("llama"), tmp_path)
    torch.testing.assert_close(logits(ours, "llama"), logits(theirs, "llama"))
    assert pp.count_parameters(ours).trainable > 0


def test_what_torchtune_exports_is_pefts(tmp_path):
    """A configuration of five keys."""
    theirs = peft.get_peft_model(
        build("llama"), peft.LoraConfig(r=2, lora_alpha=8, target_modules=["q_proj"])
    ).eval()
    randomise(theirs)
    theirs.save_pretrained(tmp_path)
    config = {
        "r": 2,
        "lora_alpha": 8,
        "target_modules": ["q_proj"],
        "peft_type": "LORA",
        "base_model_name_or_path": None,
    }
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    (tmp_path / "adapter_model.pt").write_bytes(b"")
    torch.testing.assert_close(
        logits(load(build("llama"), tmp_path), "llama"), logits(theirs, "llama")
    )
