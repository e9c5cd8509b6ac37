"""One file a method: its formula, its delta, and which modules it takes.

Uses `core` only. Used by `files`, `training` and `course`. A new method is a new file here.
"""
