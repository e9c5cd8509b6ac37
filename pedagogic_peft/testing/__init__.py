"""Is it a method? What every method promises, checked on small random models of several architectures.

    from pedagogic_peft.testing import check_method

    print(check_method(LoRA(r=4)))

Uses `core`, `methods`, `files` and `training`, and none of them uses it. It needs no pytest, so that a
notebook and an assignment can call it; the library's own tests run the same checks.
"""

from pedagogic_peft.testing.checks import CHECKS
from pedagogic_peft.testing.models import ARCHITECTURES
from pedagogic_peft.testing.report import DoesNotApply, Failed, Finding, MethodFails, Report
from pedagogic_peft.testing.run import check_method
from pedagogic_peft.testing.subject import EXACT, FREE, NEAR, Subject

__all__ = ["ARCHITECTURES", "CHECKS", "EXACT", "FREE", "NEAR"]
__all__ += ["DoesNotApply", "Failed", "Finding", "MethodFails", "Report", "Subject", "check_method"]
