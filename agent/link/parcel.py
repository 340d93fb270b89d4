"""A report as it is sent: JSON within the bound, with a lighter form for when it is refused or too large."""

from collections.abc import Sequence
from dataclasses import dataclass

from pydantic_core import PydanticSerializationError

from agent.protocol import MAX_BODY_BYTES, Report

BATCH_BYTES = 512 * 1024
"""A batch is closed before it passes this; half of the bound, so that a slow line delivers it in time."""
LARGEST_REPORT = MAX_BODY_BYTES - 1024
"""Bytes of one report; leaves room for what stands around it."""
LONGEST_SENTENCE = 2000
"""Characters of a reason's message or hint in the lighter form."""


@dataclass(frozen=True, slots=True)
class Parcel:
    """One report, ready to be sent."""

    report: Report
    content: bytes
    light: bool = False
    """Whether its evidence was left out."""

    @property
    def activity_id(self) -> int:
        """The activity that it reports on."""
        return self.report.activity_id

    def lighter(self, why: str) -> "Parcel":
        """Return it without its evidence, with a note of why in the evidence's place."""
        reason = self.report.reason
        changes = {
            "evidence": {"evidence_dropped": _plain(why)},
            "reason": reason
            and reason.model_copy(update={"message": _plain(reason.message), "hint": _plain(reason.hint)}),
        }
        report = self.report.model_copy(update=changes)
        return Parcel(self.report, report.model_dump_json().encode(), light=True)


def _plain(text: str | None) -> str | None:
    """Return text that any JSON parser takes, of bounded length."""
    return None if text is None else text[:LONGEST_SENTENCE].encode(errors="replace").decode()


def pack(report: Report) -> Parcel:
    """Make a report ready; one that is too large, or cannot be written as JSON, goes without its evidence."""
    try:
        content = report.model_dump_json().encode()
    except (PydanticSerializationError, UnicodeEncodeError) as error:
        return Parcel(report, b"").lighter(f"it cannot be written as JSON: {type(error).__name__}")
    if len(content) > LARGEST_REPORT:
        return Parcel(report, b"").lighter(f"the report was {len(content)} bytes, more than {LARGEST_REPORT}")
    return Parcel(report, content)


def batches(parcels: Sequence[Parcel]) -> list[list[Parcel]]:
    """Split reports into batches of bounded size, in order; one that is large goes alone."""
    result: list[list[Parcel]] = []
    size = 0
    for parcel in parcels:
        if not result or size + len(parcel.content) > BATCH_BYTES:
            result.append([])
            size = 0
        result[-1].append(parcel)
        size += len(parcel.content) + 1
    return result
