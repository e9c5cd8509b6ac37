"""Hostile changes of a checkpoint that know its structure: values, names, sizes, bytes, links."""

import copy
import json
import struct
from typing import Any

from fuzz.seeds import Seed, join

NAMES = [
    "../../../etc/passwd",
    "/etc/passwd",
    "..",
    "",
    ".",
    "a" * 5000,
    "\x00",
    "naïve\u202e",
    "__class__.__init__",
    "base_model.model.__class__.lora_A.weight",
    "base_model.model..lora_A.weight",
    "base_model.model.transformer.h.99999999999999999999.attn.c_attn.lora_A.weight",
]
PATTERNS = [".*", "[", "(", "(?P<a", "(.+)+!", "(a|a)*b", "(?:.*.*)*x", "((((.)*)*)*)*y", "\\", "*"]
NUMBERS = [0, -1, 1, 2, 3, 7, 2**31 - 1, 2**31, 2**63 - 1, 2**63, 2**64, 10**30, -(10**30), 10**7]
REALS = [0.0, -0.0, 1e-300, 1e308, float("nan"), float("inf"), -float("inf"), 0.5, 1e-9]
OTHERS = [
    None,
    True,
    False,
    [],
    {},
    [None],
    [[]],
    {"a": {}},
    [0, -1],
    ["a", 1],
    {"": 0},
    {".*": 10**9},
]
WORDS = [*NAMES, *PATTERNS, "c_attn", "0"]


def _value(chance: Any) -> Any:
    what = chance.randint(0, 6)
    if what == 0:
        return [chance.choice(WORDS) for _ in range(chance.randint(0, 3))]
    if what == 1:
        return {chance.choice(WORDS): chance.choice(NUMBERS) for _ in range(chance.randint(1, 2))}
    return copy.deepcopy(chance.choice([NUMBERS, REALS, OTHERS, WORDS, NUMBERS][what - 2]))


# Keys that some method reads, so that they are also met in the configurations of others.
KEYS = """peft_type target_modules modules_to_save exclude_modules layers_to_transform layers_pattern r
    lora_alpha rank_pattern alpha_pattern use_rslora use_dora bias init_lora_weights fan_in_fan_out
    num_virtual_tokens token_dim encoder_hidden_size prefix_projection num_layers projection_prng_key
    save_projection d_initial feedforward_modules init_r target_r task_type rank adapter_len
    adapter_layers reduction_factor non_linearity scaling leave_out phm_dim name config
    trainable_token_indices lora_bias ensure_weight_tying""".split()
DTYPES = [
    "F32",
    "F16",
    "BF16",
    "F64",
    "I64",
    "I8",
    "U8",
    "BOOL",
    "F8_E4M3",
    "F8_E5M2",
    "C64",
    "Q9",
    7,
]


def mutated(seed: Seed, chance: Any) -> dict[str, bytes | str]:
    """Return ``{file name: bytes, or where a symbolic link leads}`` with one to three changes.

    Args:
        seed: the valid checkpoint.
        chance: a `random.Random`, or what Hypothesis has for one.
    """
    config, header, data = copy.deepcopy(seed.config), copy.deepcopy(seed.header), seed.data
    for _ in range(chance.randint(1, 3)):
        change = chance.choice([_config, _config, _header if header else _bytes, _bytes])
        if change is _config:
            _config(chance, config)
        elif change is _header:
            _header(chance, header)
        else:
            data = _bytes(chance, data)
    text = json.dumps(config).encode()
    tensors = join(header, data) if seed.header else data
    what = chance.randint(0, 11)
    if what == 0:
        text = _bytes(chance, text)
    elif what == 1:
        tensors = _bytes(chance, tensors)
    elif what == 2:
        depth = chance.choice([10, 1000, 100_000])
        text = b'{"a":' + chance.choice([b"[", b'{"a":']) * depth
    elif what == 3:
        size = chance.choice([0, 1, 7, 2**31, 2**40, 2**63, 2**64 - 1, len(tensors)])
        tensors = struct.pack("<Q", size) + tensors[8:]
    files: dict[str, bytes | str] = dict(zip(seed.files, (text, tensors), strict=True))
    if what == 4:
        links = [
            "/dev/zero",
            "/nowhere",
            ".",
            "/etc",
            "/etc/passwd",
            "/proc/self/mem",  # cannot be read from its beginning
            "/proc/self/pagemap",  # has no end
            seed.files[0],
            seed.files[1],
        ]
        files[chance.choice(seed.files)] = chance.choice(links)
    return files


def _config(chance: Any, config: Any) -> None:
    place = config
    while chance.randint(0, 1) and (inner := [v for v in place.values() if isinstance(v, dict)]):
        place = chance.choice(inner)
    key = chance.choice(sorted(place) + KEYS)
    if key in place and chance.randint(0, 4) == 0:
        del place[key]
    else:
        place[key] = copy.deepcopy(_value(chance))


def _header(chance: Any, header: Any) -> None:
    key = chance.choice(sorted(header))
    what = chance.randint(0, 8)
    entry = header[key]
    if key == "__metadata__" or not isinstance(entry, dict) or what == 0:
        header[key] = copy.deepcopy(_value(chance))
    elif what == 1:
        del header[key]
    elif what == 2:
        header[chance.choice(NAMES)] = header.pop(key)
    elif what == 3:
        header[key.replace(".0.", chance.choice([".1.", ".-1.", ".9.", "..", ".0.0."]))] = entry
    elif what == 4:
        entry["dtype"] = chance.choice(DTYPES)
    elif what == 5:
        _shape(chance, entry)
    elif what == 6:
        entry["data_offsets"] = [chance.choice(NUMBERS) for _ in "12"]
    elif what == 7:
        header[chance.choice(sorted(header))] = copy.deepcopy(entry)
    else:
        header["__metadata__"] = {chance.choice(WORDS): _value(chance) for _ in "12"}


def _shape(chance: Any, entry: Any) -> None:
    """Another shape, often one of as many numbers, which the file's own checks let pass."""
    shape = entry.get("shape")
    if not (isinstance(shape, list) and all(isinstance(n, int) for n in shape)):
        return
    total = 1
    for n in shape:
        total *= n
    options = [
        [],
        [total],
        [1, total],
        [total, 1],
        shape[::-1],
        [*shape, 1],
        [0],
        [0, 10**9],
        shape * 2,
    ]
    entry["shape"] = chance.choice([*options, [chance.choice(NUMBERS) for _ in "12"]])


def _bytes(chance: Any, data: bytes) -> bytes:
    at = chance.randint(0, max(0, len(data) - 1))
    random = bytes(chance.randint(0, 255) for _ in range(chance.randint(0, 8)))
    some = chance.choice([random, b"\xff" * 4, b"\x00\x00\xc0\x7f", b"\x7f\x80"])
    what = chance.randint(0, 3)
    if what == 0:
        return data[:at]
    if what == 1:
        return data[:at] + some + data[at:]
    if what == 2:
        return data[:at] + data[at + len(some) :]
    return data[:at] + some + data[at + len(some) :]
