"""The story world: a small English, its tasks, and pocket-gpt, the base model pretrained on it."""
