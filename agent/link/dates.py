"""The dates of HTTP headers."""

from datetime import UTC, datetime
from email.utils import parsedate_to_datetime


def http_date(header: str | None) -> datetime | None:
    """Read an HTTP date (RFC 9110, 5.6.7); None if there is none that is valid."""
    if header is None:
        return None
    try:
        date = parsedate_to_datetime(header)
    except (ValueError, OverflowError):
        return None
    # "-0000" is UTC as well (RFC 5322, 3.3), and what the parser leaves without a zone.
    return date if date.tzinfo is not None else date.replace(tzinfo=UTC)
