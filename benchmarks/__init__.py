"""Benchmarks of `pedagogic_peft` beside Hugging Face PEFT and the theoretical bound: `make bench`."""
