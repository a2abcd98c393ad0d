"""When the server's certificate ends, for an alert before it does."""

from __future__ import annotations

import re
import ssl
from datetime import UTC, datetime

_TIME = rb"(?:\x17\x0d(\d{12})Z|\x18\x0f(\d{14})Z)"
_VALIDITY = re.compile(rb"\x30[\x1e-\x22]" + _TIME + _TIME)
"""A SEQUENCE of two times, as UTCTime or GeneralizedTime. Source: RFC 5280, 4.1."""
_PEM = re.compile(r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)


def certificate_end(pem: str) -> float | None:
    """When the first certificate of the chain *pem* ends, in seconds since 1970.

    None if there is none that can be read.
    """
    first = _PEM.search(pem)
    if first is None:
        return None
    found = _VALIDITY.search(ssl.PEM_cert_to_DER_cert(first[0]))
    if found is None:
        return None
    short, long = found[3], found[4]
    # RFC 5280, 4.1.2.5.1: a year of two digits is between 1950 and 2049.
    text = long or (b"19" if short >= b"50" else b"20") + short
    return datetime.strptime(text.decode(), "%Y%m%d%H%M%S").replace(tzinfo=UTC).timestamp()
