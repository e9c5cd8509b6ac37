"""The training loop a page shows, `train` built on it, and snapshots from which a killed run goes on.

Uses `core`, `methods` and `files`. Used by `course`.
"""
