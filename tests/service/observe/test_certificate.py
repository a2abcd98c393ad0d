"""When a certificate ends, compared with what OpenSSL was told."""

import datetime as dt

import pytest

from service.observe.certificate import certificate_end
from tests.http.test_admission import certificate


def test_the_end_is_that_of_the_certificate(tmp_path):
    pem = certificate(tmp_path)[0].read_text(encoding="ascii")
    left = dt.datetime.fromtimestamp(certificate_end(pem) or 0.0, dt.UTC)
    remaining_s = (left - dt.datetime.now(dt.UTC)).total_seconds()
    assert 86_400 < remaining_s <= 2 * 86_400


@pytest.mark.parametrize(
    "text", ["", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"]
)
def test_what_is_no_certificate_has_no_end(text):
    assert certificate_end(text) is None
