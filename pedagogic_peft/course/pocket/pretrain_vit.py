"""Pretrain pocket-vit on upright digits: a minute on one core.

    python -m pedagogic_peft.course.pocket.pretrain_vit --out FOLDER

writes the model and ``pretraining.json``. The weights in the package were made by this command with its
defaults.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from transformers import ViTConfig, ViTForImageClassification

from pedagogic_peft.course.pocket import vision
from pedagogic_peft.course.pocket.pretrain import sha256
from pedagogic_peft.training.train import train


def build_model() -> ViTForImageClassification:
    """A vision transformer for 8 x 8 pixels in patches of 2 x 2: 3 layers of width 64."""
    config = ViTConfig(
        image_size=8,
        patch_size=2,
        num_channels=1,
        hidden_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=128,
        hidden_dropout_prob=0.1,
        num_labels=10,  # type: ignore[call-arg]  # an option of every configuration
    )
    return ViTForImageClassification(config)


def shifted(examples: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the images, and each moved by a pixel in eight directions: there are few of them.

    What leaves on one side enters on the other.
    """
    return [
        e | {"pixel_values": torch.roll(e["pixel_values"], (down, right), dims=(1, 2))}
        for e in examples
        for down in (-1, 0, 1)
        for right in (-1, 0, 1)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the finished model")
    parser.add_argument("--steps", type=int, default=2500, help="batches to train on")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    model = build_model()
    data = shifted(vision.digits("upright", "train"))
    train(model, data, steps=args.steps, batch_size=64, lr=2e-3, weight_decay=0.1, seed=args.seed)
    model.cpu().save_pretrained(args.out)
    facts = {
        "command": "python -m pedagogic_peft.course.pocket.pretrain_vit",
        "torch": torch.__version__,
        "steps": args.steps,
        "seed": args.seed,
        "parameters": sum(p.numel() for p in model.parameters()),
        "accuracy": {
            f"{domain}, {split}": round(vision.accuracy(model, vision.digits(domain, split)), 4)
            for domain, split in (
                ("upright", "train"),
                *((domain, "test") for domain in vision.DOMAINS),
            )
        },
        "sha256": {"model.safetensors": sha256((args.out / "model.safetensors").read_bytes())},
    }
    (args.out / "pretraining.json").write_text(json.dumps(facts, indent=2) + "\n")


if __name__ == "__main__":
    main()
