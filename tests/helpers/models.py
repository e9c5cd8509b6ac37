"""The small models that every test uses: those of `pedagogic_peft.testing`."""

from pedagogic_peft.testing.models import (  # noqa: F401
    ARCHITECTURES,
    BUILDERS,
    VOCAB,
    batch,
    build,
    gradients,
    logits,
    randomise,
)
