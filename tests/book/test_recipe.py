"""The recipe for 7 billion parameters on page 6.7: TRL reads it; its twin differs in place and size."""

import ast
import json
from pathlib import Path

import pytest
import yaml

pytest.importorskip("trl")
PAGE = Path(__file__).parents[2] / "chapters" / "06_practice" / "instruction_tuning.ipynb"
PLACE = {"model_name_or_path", "dataset_name", "chat_template_path", "output_dir"}
SIZE = {"dtype", "attn_implementation", "bf16", "max_steps", "disable_tqdm"}


def assigned(name: str):
    """Return what a cell of the page assigns to a name, as a syntax tree."""
    for cell in json.loads(PAGE.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "code" and f"{name} = " in source:
            for node in ast.parse(source).body:
                if isinstance(node, ast.Assign) and node.targets[0].id == name:
                    return node.value
    raise AssertionError(f"the page assigns nothing to {name}")


@pytest.fixture(scope="module")
def recipe() -> dict:
    return yaml.safe_load(ast.literal_eval(assigned("RECIPE")))


def test_the_twin_exchanges_what_names_the_place_and_the_size_and_nothing_else():
    keys = {key.value for key in assigned("TWIN").keys}
    assert keys == PLACE | SIZE


def test_trl_knows_every_setting_and_takes_it_as_it_stands(recipe, tmp_path):
    from trl.scripts.sft import make_parser

    on_a_cpu = {"bf16": False}  # TrainingArguments refuses bf16 where no GPU has it
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe | on_a_cpu))
    parsed = make_parser().parse_args_and_config(
        ["--config", str(tmp_path / "recipe.yaml")], fail_with_unknown_args=True
    )
    taken = {key: value for part in parsed for key, value in vars(part).items()}
    assert taken.pop("report_to") == []  # "none"
    for key, value in (recipe | on_a_cpu).items():
        assert taken.get(key, value) == value, key
    assert taken["assistant_only_loss"] and taken["packing"]
    assert taken["lora_target_modules"] == "all-linear"


def test_what_the_text_says_of_it_holds(recipe):
    assert recipe["learning_rate"] == 10 * 2e-5  # of full fine-tuning in TRL
    assert recipe["per_device_train_batch_size"] * recipe["gradient_accumulation_steps"] < 32
    assert recipe["lora_alpha"] == 32


def test_beside_four_bits_trl_keeps_the_lora_in_sixteen_as_the_text_says(tmp_path):
    pytest.importorskip("bitsandbytes")
    import datasets
    import peft
    import torch
    import transformers
    from trl import SFTConfig, SFTTrainer

    from pedagogic_peft import load_base

    base, tokenizer = load_base("pocket-gpt-tiny")
    base.save_pretrained(tmp_path / "base")
    model = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "base",
        quantization_config=transformers.BitsAndBytesConfig(load_in_4bit=True),
        dtype=torch.bfloat16,
        device_map="cpu",
    )
    trainer = SFTTrainer(
        model,
        SFTConfig(output_dir=str(tmp_path), bf16=False, report_to="none"),
        train_dataset=datasets.Dataset.from_list([{"prompt": "tom", "completion": " was"}] * 2),
        processing_class=tokenizer,
        peft_config=peft.LoraConfig(target_modules="all-linear"),
    )
    types = {n: p.dtype for n, p in trainer.model.named_parameters()}
    assert {t for n, t in types.items() if "lora_" in n} == {torch.bfloat16}
    assert types["base_model.model.model.embed_tokens.weight"] == torch.bfloat16  # not put into 32
