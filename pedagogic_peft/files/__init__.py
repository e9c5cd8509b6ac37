"""Checkpoints: ours and those of Hugging Face PEFT and AdapterHub, reading strangers' files, safe writing.

Uses `core` and `methods`. Used by `training` and `course`. To learn the methods you can skip it.
"""
