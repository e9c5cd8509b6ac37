"""What a check says, in words, and the report of all of them."""

import textwrap
from dataclasses import dataclass

HOLDS, NOT_APPLICABLE, FAILS = "holds", "does not apply", "FAILS"


class Failed(Exception):
    """Raised by a check that does not hold.

    Args:
        seen: what was seen, with its number.
        look: what to look at.
    """

    def __init__(self, seen: str, look: str):
        super().__init__(f"{seen}; look at {look}")
        self.seen, self.look = seen, look


class DoesNotApply(Exception):
    """Raised by a check that has no meaning here; the message says why."""


class MethodFails(AssertionError):
    """Raised by `check_method` with ``raise_if_failed``; the message is the report."""


@dataclass(frozen=True)
class Finding:
    """What one check found on one architecture.

    Attributes:
        check: the name of the check.
        architecture: the name of the model.
        verdict: "holds", "does not apply" or "FAILS".
        expected: what the method promises.
        seen: what was seen if it fails; the reason if it does not apply.
        look: what to look at if it fails.
    """

    check: str
    architecture: str
    verdict: str
    expected: str
    seen: str = ""
    look: str = ""

    def __str__(self) -> str:
        title = f"{self.check}, {self.architecture}: {self.verdict}"
        if self.verdict != FAILS:
            return f"{title}: {self.seen}" if self.seen else title
        return "\n".join([title, *self.explained()])

    def explained(self) -> list[str]:
        """Return the lines that say what was expected, what was seen, and what to look at."""
        said = {"expected": self.expected, "seen": self.seen, "look at": self.look}
        lines = []
        for what, words in said.items():
            first, others = f"    {what:9s} ", " " * 14
            lines += textwrap.wrap(words, 100, initial_indent=first, subsequent_indent=others)
        return lines


@dataclass(frozen=True, repr=False)
class Report:
    """What `check_method` found; printed, it is a table and then every failure in words.

    Attributes:
        method: the method's hyper-parameters, as text.
        findings: one of each check on each architecture.
    """

    method: str
    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Whether something was checked, and nothing fails."""
        return not self.failed and any(f.verdict == HOLDS for f in self.findings)

    @property
    def failed(self) -> tuple[Finding, ...]:
        """The findings that fail."""
        return tuple(f for f in self.findings if f.verdict == FAILS)

    def raise_if_failed(self) -> None:
        """Raise `MethodFails`, with the report as its message, unless it is ok."""
        if not self.ok:
            raise MethodFails(f"\n{self}")

    def __str__(self) -> str:
        return "\n".join([self._summary(), "", *self._table(), *self._failures(), *self._reasons()])

    __repr__ = __str__

    def _summary(self) -> str:
        verdicts = [finding.verdict for finding in self.findings]
        counts = f"{verdicts.count(HOLDS)} hold, {verdicts.count(NOT_APPLICABLE)} do not apply"
        return f"{self.method}: {counts}, {verdicts.count(FAILS)} fail"

    def _table(self) -> list[str]:
        checks = list(dict.fromkeys(f.check for f in self.findings))
        architectures = list(dict.fromkeys(f.architecture for f in self.findings))
        cells = {(f.check, f.architecture): f.verdict for f in self.findings}
        left, width = max(map(len, checks), default=0), max(map(len, architectures), default=0) + 2
        lines = [" " * left + "".join(f"{a:>{width}}" for a in architectures)]
        for check in checks:
            row = [cells.get((check, a), "").replace(NOT_APPLICABLE, "-") for a in architectures]
            lines.append(f"{check:{left}}" + "".join(f"{cell:>{width}}" for cell in row))
        return lines

    def _failures(self) -> list[str]:
        """Each check's first failure in words, with the names of the architectures."""
        lines: list[str] = []
        for check in dict.fromkeys(f.check for f in self.failed):
            here = [f for f in self.failed if f.check == check]
            where = ", ".join(f.architecture for f in here)
            lines += ["", f"{check}: {FAILS} on {where}", *here[0].explained()]
        return lines

    def _reasons(self) -> list[str]:
        """Why checks do not apply, each reason once."""
        found: dict[tuple[str, str], list[str]] = {}
        for f in self.findings:
            if f.verdict == NOT_APPLICABLE:
                found.setdefault((f.seen, f.check), []).append(f.architecture)
        merged: dict[tuple[str, tuple[str, ...]], list[str]] = {}
        for (reason, check), where in found.items():
            merged.setdefault((reason, tuple(where)), []).append(check)
        lines = [""] if merged else []
        for (reason, where_), checks in merged.items():
            words = f"{', '.join(checks)} ({', '.join(where_)}): {reason}"
            lines += textwrap.wrap(words, 100, initial_indent="- ", subsequent_indent="  ")
        return lines
