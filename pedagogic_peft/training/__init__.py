"""What happens during training: the loop of the pages, `train`, snapshots, AdaLoRA's budget, LoRA+'s rates.

Uses `core`, `methods` and `files`. Used by `course`.
"""
