"""A few short texts to train a small model on."""

EXAMPLES = [{"input_ids": [3 + i, 4, 5, 6 + i % 4]} for i in range(12)]
for _example in EXAMPLES:
    _example["labels"] = _example["input_ids"]
