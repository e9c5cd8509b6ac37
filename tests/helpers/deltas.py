"""What sits in a model."""

from pedagogic_peft.core.sites import sites


def deltas_of(model):
    return [place.deltas["default"] for _, place in sites(model)]
