import json
from datetime import UTC, datetime
from typing import Any

from agent.link.parcel import BATCH_BYTES, LARGEST_REPORT, batches, pack
from agent.protocol import Reason, Report, ReportStatus


def report(number: int = 1, *, message: str | None = None, **evidence: Any) -> Report:
    reason = None if message is None else Reason(code="internal", message=message)
    status = ReportStatus.COMPLETED if reason is None else ReportStatus.REJECTED
    return Report(activity_id=number, status=status, finished_at=datetime.now(UTC), reason=reason, evidence=evidence)


def test_a_report_is_packed_as_it_is() -> None:
    parcel = pack(report(7, exit_code=0))
    assert json.loads(parcel.content)["evidence"] == {"exit_code": 0}
    assert (parcel.activity_id, parcel.light) == (7, False)


def test_what_cannot_be_json_goes_without_its_evidence_and_with_plain_text() -> None:
    for bad in (report(log="\ud800"), report(message="broken \udcff text", log=1), report(what=object())):
        parcel = pack(bad)
        content = json.loads(parcel.content)
        assert parcel.light
        assert "cannot be written as JSON" in content["evidence"]["evidence_dropped"]
    assert json.loads(pack(report(message="broken \udcff text")).content)["reason"]["message"] == "broken ? text"


def test_what_is_too_large_goes_without_evidence_and_with_a_bounded_sentence() -> None:
    parcel = pack(report(message="m" * 2 * LARGEST_REPORT))
    assert parcel.light
    assert len(parcel.content) < 5000


def test_batches_keep_the_order_and_the_bound() -> None:
    sizes = [10, BATCH_BYTES // 2, BATCH_BYTES // 2, 10, BATCH_BYTES * 2 - 3000, 10]
    parcels = [pack(report(number, log="x" * size)) for number, size in enumerate(sizes, start=1)]
    made = batches(parcels)
    assert [[parcel.activity_id for parcel in batch] for batch in made] == [[1, 2], [3, 4], [5], [6]]
    assert batches([]) == []
