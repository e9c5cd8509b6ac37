"""The training loop, and snapshots from which a killed run goes on.

Uses `core`, `methods` and `files`. Used by `course` only.
"""
