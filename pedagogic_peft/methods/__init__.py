"""One file a method: its formula, its delta, and which modules it takes.

Uses `core` only. Used by `files`, `training` and `course`. A new method is a new file here.
"""

from pedagogic_peft.methods import attention_rows as attention_rows  # these two say which
from pedagogic_peft.methods import rows as rows  # deltas serve rows of a batch
