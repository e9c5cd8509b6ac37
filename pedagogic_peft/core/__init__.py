"""The frame that every method stands in: deltas and their places, targets, the verbs.

Uses nothing of this package but itself; every other folder may use it. Read it first, then `methods`.
"""
