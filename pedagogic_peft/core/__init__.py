"""The frame that every method stands in: deltas and their places, targets, the verbs.

Uses nothing of this package but itself. Read it first, then `methods`; both can be read without the rest.
"""
