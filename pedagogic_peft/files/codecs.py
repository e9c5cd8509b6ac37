"""From an adaptation to PEFT's configuration and tensors, and back: one codec a method.

Most methods need no more than `Codec`. One whose files hold something else than its hyper-parameters
and its deltas' own tensors has a class here, which is entered in `CODECS`; it serves derived methods too.
"""

import math
import re
from collections.abc import Iterable
from dataclasses import fields
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from pedagogic_peft.core import validation
from pedagogic_peft.core.delta import Deltas, Tensors, load_tensors, own_deltas, some, tensors_of
from pedagogic_peft.core.method import SELECTION, Method
from pedagogic_peft.core.sites import View
from pedagogic_peft.core.targets import (
    exactly,
    find_modules,
    is_conv1d,
    is_named,
    shortest_names,
)
from pedagogic_peft.files.parameters import (
    misread_maps,
    parameters_meant,
    ranks_of,
    renamed,
    split_experts,
    warn_of_renamed,
    wrapped,
)
from pedagogic_peft.files.peft import (
    PREFIX,
    TABLE,
    Checkpoint,
    Config,
    check_options,
    check_paths,
    split_prefix,
    split_trained_copies,
)
from pedagogic_peft.files.wrapped import own_biases, own_rows, peft_biases, warn_of_lost_bias
from pedagogic_peft.methods.adalora import AdaLoRA
from pedagogic_peft.methods.bottleneck import BottleneckAdapter
from pedagogic_peft.methods.dora import DoRA
from pedagogic_peft.methods.ia3 import IA3, IA3Input, IA3Output
from pedagogic_peft.methods.loha import Products
from pedagogic_peft.methods.lora import LoRA, look_up
from pedagogic_peft.methods.oft import OFT
from pedagogic_peft.methods.pissa import PiSSA
from pedagogic_peft.methods.prefix_tuning import Prefix, PrefixTuning
from pedagogic_peft.methods.prompt_tuning import PromptMethod, PTuning, SoftPrompt
from pedagogic_peft.methods.vera import Projections, VeRA, VeRALinear


class Codec:
    """The files of a method whose deltas' own tensors are all there is to save.

    Args:
        kind: the method's class.
    """

    def __init__(self, kind: type[Any]):
        self.kind, self.peft = kind, kind.peft

    def keys(self) -> dict[str, tuple[str, Any]]:
        """Return ``{key of the configuration: (hyper-parameter, PEFT's default)}``.

        What selects among the targets is none of them where the tensors' names say which are left.
        """
        found, own = {}, {f.name: f for f in fields(self.kind)}
        named = self.peft.tensor or "target_modules" not in own
        unsaved = {*self.peft.unsaved.split(), *(SELECTION if named else ())}
        for f in own.values():
            if f.name not in unsaved:
                default = {} if f.default_factory is dict else f.default
                key = self.peft.keys.get(f.name, f.name)
                found[key] = f.name, self.peft.defaults.get(f.name, default)
        return found

    def to_peft(self, view: View, method: Any, deltas: Deltas) -> Checkpoint:
        """Return the configuration and the tensors of a checkpoint."""
        config = {key: getattr(method, name) for key, (name, _) in self.keys().items()}
        heads = find_modules(view, method.modules_to_save)
        # To PEFT a name is the end of any path, so that "norm" means an input_layernorm as well.
        ends = tuple(method.modules_to_save)
        more = any(path.endswith(ends) for path in view.modules.keys() - heads.keys())
        config["modules_to_save"] = list(heads if more else ends) or None
        if self.peft.flag:
            config[self.peft.flag] = True
        tensors = tensors_of(deltas)
        if self.peft.tensor:
            adapted = {path: view.modules[path] for path in self.marks(tensors)}
            config["target_modules"] = shortest_names(view, adapted)
            if self.peft.type not in TABLE["without_fan_in_fan_out"].split():
                config["fan_in_fan_out"] = any(map(is_conv1d, adapted.values()))
        return config, {PREFIX + key: tensor for key, tensor in tensors.items()}

    def from_peft(self, view: View, config: Config, tensors: Tensors) -> tuple[Method, Deltas]:
        """Return the hyper-parameters of a checkpoint and ``{path: delta}`` with its tensors.

        Raises:
            ValueError: an option is not supported, or the tensors do not fit the model.
        """
        self.check_options(config)
        tensors, strange = split_prefix(PREFIX, tensors)
        validation.expect(not strange, "tensors", sorted(strange)[:3], f"names like {PREFIX}...")
        config, tensors = split_trained_copies(view, config, tensors)
        found = self.hyper_parameters(view, config, self.marks(tensors))
        method: Method = self.kind(**found)
        deltas = method.build(view)
        load_tensors(deltas, tensors)
        return method, deltas

    def marks(self, tensors: Tensors) -> dict[str, Tensor]:
        """Return ``{path: tensor}`` of each tensor that `Peft.tensor` names: where the targets are."""
        found = {re.fullmatch(rf"(.+)\.({self.peft.tensor})", key): t for key, t in tensors.items()}
        return {match[1]: tensor for match, tensor in found.items() if match}

    def hyper_parameters(self, view: View, config: Config, marks: Tensors) -> dict[str, Any]:
        """Return those of a checkpoint; ``marks`` are as in `marks`."""
        found = {name: config.get(key, default) for key, (name, default) in self.keys().items()}
        if self.peft.tensor:
            check_paths(view, config, marks, self.kind.can_adapt)
            found["target_modules"] = shortest_names(view, marks)
        return found

    def check_options(self, config: Config) -> None:
        """Raise a ValueError for an option that is switched on and not supported."""
        check_options(config, [*self.keys(), self.peft.flag, *self.peft.ignored.split()])


# What a LoRA has beside A and B. Left out of files where it is as here: an older PEFT does not know it.
BESIDE = {
    "bias": "none",
    "lora_bias": False,
    "trainable_token_indices": None,
    "target_parameters": [],
}


class LoRACodec(Codec):
    """LoRA and what is derived from it.

    A delta may equal an ordinary LoRA of n times its rank: one of parts, or PiSSA's. Then the file has
    that LoRA, which PEFT can load, and one more key, which PEFT drops with a warning, keeps our values.
    Biases of the base, rows of its tables and LoRAs of parameters have names that say what PEFT has
    wrapped there: `files.wrapped` and `files.parameters`.
    """

    OWN: ClassVar = ("r", "alpha", "rank_pattern", "alpha_pattern", "parts")

    def __init__(self, kind: type[LoRA]):
        super().__init__(kind)
        self.own_key = kind.peft.flag if issubclass(kind, PiSSA) else "parts"

    def to_peft(self, view: View, method: Any, deltas: Deltas) -> Checkpoint:
        """Return PEFT's configuration and tensors."""
        rest, experts = split_experts(deltas)
        config, tensors = super().to_peft(view, method, rest)
        adapted = tuple(key.removeprefix(PREFIX) for key in self.marks(tensors))
        warn_of_renamed(view.model, adapted)
        weights = misread_maps(view, adapted, isinstance(method, DoRA))
        config["target_modules"] = shortest_names(view, set(adapted) - weights.keys())
        config["target_parameters"] = [*method.target_parameters, *weights.values()]
        paths = [*adapted, *(f"{path}.{name}" for path, d in experts.items() for name in d.loras)]
        n = 2 if isinstance(method, PiSSA) else len(method.parts) or 1
        stretch = math.sqrt(n) if method.use_rslora else n  # keeps the scaling
        config |= {"r": n * method.r, "lora_alpha": stretch * method.alpha}
        of_all = (method.rank_of, method.alpha_of)
        ranks, alphas = ({weights.get(p, p): of(p) for p in paths} for of in of_all)
        config["rank_pattern"] = {key: n * r for key, r in unlike(ranks, method.r).items()}
        alphas = unlike(alphas, method.alpha)
        config["alpha_pattern"] = {key: stretch * alpha for key, alpha in alphas.items()}
        own = self.OWN if method.parts or n > 1 else ()
        if weights and method.dropout:  # PEFT has none beside parameters
            own, config["lora_dropout"] = (*own, "dropout"), 0.0
        if own:
            config[self.own_key] = {name: getattr(method, name) for name in own}
        config = {k: v for k, v in config.items() if k not in BESIDE or v != BESIDE[k]}
        theirs = renamed(tensors_of(experts), wrapped(view, method.target_parameters))
        warn_of_lost_bias(view, deltas)
        tensors = peft_biases(tensors, self.marks(tensors), deltas)
        return config, tensors | {PREFIX + key: tensor for key, tensor in theirs.items()}

    def from_peft(self, view: View, config: Config, tensors: Tensors) -> tuple[Method, Deltas]:
        """Return the hyper-parameters and the filled deltas; raises as `Codec`."""
        self.check_options(config)
        inner, strange = split_prefix(PREFIX, tensors)
        there = wrapped(view, parameters_meant(view, config)).items()
        inner = renamed(inner, {path: own for own, path in there})
        own = own_rows(view, config, own_biases(view, config, inner, self.marks(inner)))
        prefixed = {PREFIX + key: tensor for key, tensor in own.items()}
        method, deltas = super().from_peft(view, config, prefixed | strange)
        warn_of_lost_bias(view, deltas)
        return method, deltas

    def check_options(self, config: Config) -> None:
        """Raise a ValueError for an option that is switched on and not supported."""
        # The rows of tied tables are one, always; modules trained in full are not tied here.
        alike = config.get("trainable_token_indices") and not config.get("modules_to_save")
        super().check_options({**config, "ensure_weight_tying": None} if alike else config)

    def hyper_parameters(self, view: View, config: Config, marks: Tensors) -> dict[str, Any]:
        """Return the hyper-parameters: targets and ranks of the tensors, the rest as configured."""
        modules = {path: A for path, A in marks.items() if ".loras." not in path}
        found = super().hyper_parameters(view, config, modules)
        found |= {key: config.get(key) or off for key, off in BESIDE.items()}
        check = validation.pattern(validation.positive)
        ranks, weights = ranks_of(view, marks), config.get("target_parameters") or []
        names = {p: f"{p}.weight" for p in modules if is_named(weights, f"{p}.weight")}
        given = check("alpha_pattern", found["alpha_pattern"] or {})
        alphas = {p: look_up(given, names.get(p, p), found["alpha"]) for p in ranks}
        found |= {
            "target_parameters": parameters_meant(view, config),
            "rank_pattern": unlike(ranks, found["r"]),
            "alpha_pattern": unlike(alphas, found["alpha"]),
        }
        return found | dict(config.get(self.own_key) or {})


class BottleneckCodec(Codec):
    """Parallel adapters in files without ``reads`` are older: they read the normalised state."""

    def hyper_parameters(self, view: View, config: Config, marks: Tensors) -> dict[str, Any]:
        """Return the hyper-parameters."""
        found = super().hyper_parameters(view, config, marks)
        old = found["placement"] == "parallel" and "reads" not in config
        return found | ({"reads": "normalised"} if old else {})


class ProductsCodec(Codec):
    """LoHa and LoKr: the patterns are kept for the modules that they mean, by whole paths."""

    def hyper_parameters(self, view: View, config: Config, marks: Tensors) -> dict[str, Any]:
        """Return the hyper-parameters; a rank, which scales too, is not always a tensor's size."""
        found = super().hyper_parameters(view, config, marks)
        for name, one in (("rank_pattern", "r"), ("alpha_pattern", "alpha")):
            pattern = validation.pattern(validation.positive)(name, found[name] or {})
            each = {path: look_up(pattern, path, found[one]) for path in marks}
            found[name] = {path: value for path, value in each.items() if value != found[one]}
        return found


class OFTCodec(Codec):
    """Neumann's series has another last term since PEFT 0.18, so files say which PEFT they are of."""

    SINCE = "0.18.0"

    def to_peft(self, view: View, method: Any, deltas: Deltas) -> Checkpoint:
        """Return PEFT's configuration and tensors."""
        config, tensors = super().to_peft(view, method, deltas)
        return config | {"peft_version": self.SINCE}, tensors

    def check_options(self, config: Config) -> None:
        """Raise a ValueError for an option that is not supported, or an older series."""
        super().check_options(config)
        version = re.match(r"(\d+)\.(\d+)", str(config.get("peft_version") or "0.0"))
        old = version is None or tuple(map(int, version.groups())) < (0, 18)
        if old and config.get("use_cayley_neumann", True):
            what = f"peft_version={config.get('peft_version')!r}, use_cayley_neumann: before PEFT"
            raise ValueError(f"{what} {self.SINCE} the series had another last term; train again")


class AdaLoRACodec(Codec):
    """A file of PEFT may hold fewer than init_r triplets.

    Those that are missing return as zeros, which compute nothing and get no gradient.
    """

    def to_peft(self, view: View, method: Any, deltas: Deltas) -> Checkpoint:
        """Return PEFT's configuration and tensors, with the triplets that have lost their λ."""
        config, tensors = super().to_peft(view, method, deltas)
        return config | {
            "total_step": method.tinit + method.tfinal + 1
        }, tensors  # PEFT demands one

    def from_peft(self, view: View, config: Config, tensors: Tensors) -> tuple[Method, Deltas]:
        """Return the hyper-parameters and the filled deltas; raises as `Codec`."""
        r = config.get("init_r", 12)
        padded = {key: self.padded(key, tensor, r) for key, tensor in tensors.items()}
        return super().from_peft(view, config, padded)

    def padded(self, key: str, tensor: Tensor, r: int) -> Tensor:
        """Return a factor of a checkpoint with r triplets, the missing ones zero."""
        is_P = key.endswith(".lora_B")  # (d_out, r); the others are (r, ...)
        if not key.endswith((".lora_A", ".lora_B", ".lora_E")) or tensor.dim() != 2:
            return tensor
        missing = max(r - tensor.shape[is_P], 0)
        return F.pad(tensor, (0, missing) if is_P else (0, 0, 0, missing))


class VeRACodec(Codec):
    """The shared pair is in the file, or its seed alone."""

    SHARED: ClassVar = {"A": "base_model.vera_A", "B": "base_model.vera_B"}

    def to_peft(self, view: View, method: Any, deltas: Deltas) -> Checkpoint:
        """Return PEFT's configuration and tensors."""
        config, tensors = super().to_peft(view, method, deltas)
        if method.save_projection:
            tensors |= {self.SHARED[name]: t for name, t in _shared(deltas).named_buffers()}
        return config, tensors

    def from_peft(self, view: View, config: Config, tensors: Tensors) -> tuple[Method, Deltas]:
        """Return the hyper-parameters and the filled deltas; raises as `Codec`."""
        saved = {name: tensors[key] for name, key in self.SHARED.items() if key in tensors}
        own = {key: tensor for key, tensor in tensors.items() if key not in self.SHARED.values()}
        method: Any
        method, deltas = super().from_peft(view, config, own)
        if saved or method.save_projection:
            self.read_pair(_shared(deltas), saved)
        return method, deltas

    @classmethod
    def read_pair(cls, pair: Projections, tensors: Tensors) -> None:
        """Give the shared pair the values of a checkpoint, {"A": ..., "B": ...}.

        Raises:
            ValueError: one is missing, of another shape, or not finite.
        """
        for name, own in pair.named_buffers():
            new = tensors.get(name)
            if new is None or new.shape != own.shape or not new.isfinite().all():
                found, wanted = getattr(new, "shape", None), list(own.shape)
                raise ValueError(
                    f"{cls.SHARED[name]} is {found}: expected finite numbers, {wanted}"
                )
            own.copy_(new)


class IA3Codec(Codec):
    """The shape of a vector says what it scales: (1, d_in) an input, (d_out, 1) an output."""

    def to_peft(self, view: View, method: Any, deltas: Deltas) -> Checkpoint:
        """Return PEFT's configuration and tensors; a vector is as long as its map's output."""
        config, tensors = super().to_peft(view, method, deltas)
        outputs = [path for path, delta in deltas.items() if isinstance(delta, IA3Output)]
        inputs = [path for path, delta in deltas.items() if isinstance(delta, IA3Input)]
        return config | self.names(view, outputs, inputs), tensors

    def hyper_parameters(self, view: View, config: Config, marks: Tensors) -> dict[str, Any]:
        """Return the hyper-parameters."""
        inputs = [path for path, l in marks.items() if l.shape[1:].numel() > 1]
        names = self.names(view, marks.keys() - set(inputs), inputs)
        return super().hyper_parameters(view, config, marks) | names

    def names(self, view: View, outputs: Iterable[str], inputs: Iterable[str]) -> dict[str, Any]:
        """Return names for both; PEFT wants the second list to be part of the first, word for word."""
        outputs, inputs = list(outputs), list(inputs)
        others, feedforward = shortest_names(view, outputs), shortest_names(view, inputs)
        clear = not any(
            path.endswith(tuple(feedforward)) for path in outputs
        )  # PEFT tests only that
        if clear and isinstance(others, list) and isinstance(feedforward, list):
            both: Any = sorted(others + feedforward)
            return {"target_modules": both, "feedforward_modules": feedforward}
        both = exactly(outputs + inputs)
        return {"target_modules": both, "feedforward_modules": inputs and exactly(inputs)}


class PromptCodec(Codec):
    """PEFT saves what comes out of training, and no network that made it.

    That is one matrix ``prompt_embeddings``: n x numbers for each token. We add the network, so that
    training can go on; PEFT reads over it.
    """

    # {hyper-parameter: its value where no network makes the prompt}
    plain: ClassVar[dict[str, Any]] = {}

    def to_peft(self, view: View, method: Any, deltas: Deltas) -> Checkpoint:
        """Return PEFT's configuration and tensors: the prompt, and for us the network as well."""
        prompts = _prompts(deltas)
        copies = {path: deltas[path] for path in deltas.keys() - own_deltas(deltas).keys()}
        P = torch.cat([delta.prompt() for delta in prompts.values()], dim=1)  # (n, numbers)
        kinds, kind = TABLE["task_types"].items(), type(view.model).__name__
        # PEFT needs a task, and its other tasks need a trained head.
        tasks = [task for end, task in kinds if kind.endswith(end) and (copies or "LM" in task)]
        config = super().to_peft(view, method, {})[0] | {"token_dim": P.shape[1]}
        task = tasks[0] if tasks else "FEATURE_EXTRACTION"
        config |= {"num_transformer_submodules": 1, "task_type": task}
        tensors = {f"base_model.{key}": tensor for key, tensor in tensors_of(copies).items()}
        if any(getattr(method, name) != value for name, value in self.plain.items()):
            tensors |= {f"prompt_encoder.{key}": t for key, t in tensors_of(prompts).items()}
        return config, tensors | {"prompt_embeddings": P}

    def from_peft(self, view: View, config: Config, tensors: Tensors) -> tuple[Method, Deltas]:
        """Return the hyper-parameters of a checkpoint and the filled deltas; raises as `Codec`."""
        self.check_options(config)
        saved, rest = split_prefix("base_model.", tensors)
        network, rest = split_prefix("prompt_encoder.", rest)
        config, copies = split_trained_copies(view, config, saved)
        if rest.keys() not in ({"prompt_embeddings"}, {"prefix"}):
            raise ValueError(f"Expected a tensor prompt_embeddings; there are {list(tensors)}")
        [(name, P)], n = rest.items(), config.get("num_virtual_tokens")
        if len(P) not in (n, 2 * (n or 0)):  # for encoder-decoders PEFT saves 2 n, and uses n
            raise ValueError(f"num_virtual_tokens={n}, but {name} has {len(P)} rows")
        found = self.hyper_parameters(view, config, {})
        method: Method = self.kind(**found | ({} if network else self.plain))
        deltas = method.build(view)
        own = network or self.split(view.model, config, P[:n], _prompts(deltas))
        load_tensors(deltas, {**own, **copies})
        return method, deltas

    def split(
        self, model: Any, config: Config, P: Tensor, prompts: dict[str, Any]
    ) -> dict[str, Tensor]:
        """Return the deltas' own tensors ``{path.key: tensor}`` from a checkpoint's P."""
        return {f"{path}.prompt_embeddings": P for path in prompts}


class PTuningCodec(PromptCodec):
    """A prompt that PEFT saved has no network."""

    plain: ClassVar = {"encoder_reparameterization_type": None}


class PrefixCodec(PromptCodec):
    """One row of P holds the keys and values of all layers for one virtual token.

    To PEFT all layers are of one shape, (heads, size); smaller ones use a corner of it (Gemma 4). In an
    encoder-decoder its layer l uses entry 2 l of the M in the file, modulo M.
    """

    plain: ClassVar = {"prefix_projection": False}

    def to_peft(self, view: View, method: Any, deltas: Deltas) -> Checkpoint:
        """Return PEFT's configuration and tensors: keys and values, and for us the network as well.

        What PEFT cannot compute has a tensor of another name than PEFT reads, so that it refuses the
        file: other targets, positions not shifted, layers without attention, layers of several shapes
        in other models than Gemma 4.
        """
        model: Any = view.model
        config, tensors = super().to_peft(view, method, deltas)
        prompts: dict[str, Any] = _prompts(deltas)
        shapes = [delta.shape for delta in prompts.values()]
        largest = _, _, heads, size = tuple(map(max, zip(*shapes, strict=True)))
        numbers = [getattr(view.modules[p], "layer_idx", i) for i, p in enumerate(prompts)]
        alike = len(set(shapes)) == 1
        alike = alike or ("gemma4" in model.config.model_type and largest in shapes)
        to_all = alike and numbers == list(range(len(shapes)))
        selected = ("target_modules", *SELECTION)
        some_only = any(getattr(method, name) for name in selected)
        known = to_all and method.shift_positions and not some_only
        layers = []
        for delta in prompts.values():
            KV = delta.keys_and_values()  # (n, 2, heads of this layer, size in this layer)
            layers.append(F.pad(KV, (0, size - KV.shape[3], 0, heads - KV.shape[2])))
            if known and model.config.is_encoder_decoder:
                layers.append(torch.zeros_like(layers[-1]))  # an entry that PEFT does not use
                config["num_transformer_submodules"] = 2
        sizes = {"num_attention_heads": heads, "token_dim": heads * size}
        config |= {"num_layers": len(layers), **sizes}
        config["init_weights"] = "zero" if method.init_weights == "zero" else None
        del tensors["prompt_embeddings"]
        P = torch.stack(layers, dim=1).flatten(1)
        if not known:
            return config, tensors | {"prefix": P}
        for key in (*selected, "shift_positions"):
            del config[key]  # PEFT knows no such keys
        return config, tensors | {"prompt_embeddings": P}

    def split(
        self, model: Any, config: Config, P: Tensor, prompts: dict[str, Any]
    ) -> dict[str, Tensor]:
        """Return the layers' keys and values.

        Raises:
            ValueError: the model has layers of another number or size.
        """
        shapes = [delta.shape for delta in prompts.values()]
        _, _, heads, size = map(max, zip(*shapes, strict=True))
        if len(set(shapes)) > 1:  # PEFT may have taken room for more than the largest of ours
            heads = config["num_attention_heads"]
            size = config["token_dim"] // heads
        L, M = len(shapes), P.shape[1] / (2 * heads * size)
        halves = model.config.is_encoder_decoder and "shift_positions" not in config
        if (M < L or M % 1) if halves else M != L:
            what = f"The prefix has {P.shape[1]} numbers for each virtual token; this model has"
            raise ValueError(f"{what} {L} layers * 2 * {heads} heads * {size}")
        if small := [
            path for path, (*_, h, d) in zip(prompts, shapes, strict=True) if h > heads or d > size
        ]:
            raise ValueError(f"The prefix of {heads} heads * {size} leaves out {some(small)}")
        layers, found = P.reshape(len(P), int(M), 2, heads, size).unbind(1), {}
        first: dict[Any, int] = {}
        for l, (path, delta) in enumerate(prompts.items()):
            l = first.setdefault(delta, l)  # two layers may have one prefix
            own = layers[2 * l % int(M) if halves else l]
            found[f"{path}.prefix"] = own[..., : delta.shape[2], : delta.shape[3]]
        return found


CODECS: dict[type[Method], type[Codec]] = {
    Method: Codec,
    BottleneckAdapter: BottleneckCodec,
    LoRA: LoRACodec,
    Products: ProductsCodec,
    OFT: OFTCodec,
    AdaLoRA: AdaLoRACodec,
    VeRA: VeRACodec,
    IA3: IA3Codec,
    PromptMethod: PromptCodec,
    PTuning: PTuningCodec,
    PrefixTuning: PrefixCodec,
}


def codec_of(kind: type[Method]) -> Codec:
    """Return the codec of a method's class: its own, or that of the nearest class it is derived from."""
    return next(CODECS[parent](kind) for parent in kind.__mro__ if parent in CODECS)


def unlike(values: dict[str, Any], default: Any) -> dict[str, Any]:
    """Return a `rank_pattern` for ``{path: value}`` of all adapted modules: those unlike the default.

    A key means the end of a path. One that is the end of another path is tied to the beginning.
    """
    found = {}
    for path, value in values.items():
        if value != default:
            clear = re.fullmatch(r"[\w.]+", path) and not any(
                p.endswith("." + path) for p in values
            )
            found[path if clear else f"^{re.escape(path)}"] = value
    return found


def _prompts(deltas: Deltas) -> dict[str, Any]:
    return {path: d for path, d in deltas.items() if isinstance(d, SoftPrompt | Prefix)}


def _shared(deltas: Deltas) -> Projections:
    return next(delta.shared for delta in deltas.values() if isinstance(delta, VeRALinear))
