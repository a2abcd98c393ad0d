"""Base64 as clients write it: every spelling gives the same bytes, and what is none is named."""

import base64
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.http.body.base64_text import decode_base64

DATA = bytes(range(256))
PLAIN = base64.b64encode(DATA).decode()
SPELLINGS = {
    "plain": PLAIN,
    "URL-safe": base64.urlsafe_b64encode(DATA).decode(),
    "without padding": PLAIN.rstrip("="),
    "URL-safe without padding": base64.urlsafe_b64encode(DATA).decode().rstrip("="),
    "lines of MIME": base64.encodebytes(DATA).decode(),
    "lines of Windows": base64.encodebytes(DATA).decode().replace("\n", "\r\n"),
    "white space around and inside": f" \t{PLAIN[:7]}\v\f {PLAIN[7:]}\n",
    "a data URL": f"data:image/png;base64,{PLAIN}",
    "a data URL with parameters": f"data:image/svg+xml;charset=utf-8;base64,{PLAIN}",
    "a data URL without a type": f"data:;base64,{PLAIN}",
    "a data URL in capitals, with spaces": f"  DATA:image/PNG; BASE64, {PLAIN}",
    "a data URL that is escaped": (
        f"data:image/png;base64,{PLAIN.replace('+', '%2B').replace('/', '%2f').replace('=', '%3D')}"
    ),
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_every_spelling_gives_the_same_bytes(name):
    assert decode_base64(SPELLINGS[name]) == DATA


@pytest.mark.parametrize("text", ["", " \n", "====", "data:;base64,"])
def test_no_text_is_no_bytes(text):
    assert decode_base64(text) == b""


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("!!!!", "Only base64 data is allowed"),
        ("AAAAA", "5 characters are one too many or too few"),
        ("AA=AAA", "padding|Excess data"),
        ("AAA\u00e9", "character 3 is '\u00e9'"),
        ("AAA\ud800", "character 3 is"),
        ("AA\x00A", "Only base64 data is allowed"),
        ("photo.jpg", "9 characters"),
        ("data:image/png,AAAA", "the data URL has no `;base64,`"),
        ("data:image/png;base64", "the data URL has no `;base64,`"),
        ("data:", "the data URL has no `;base64,`"),
    ],
)
def test_what_is_none_is_named(text, words):
    with pytest.raises(ValueError, match=words):
        decode_base64(text)


@given(
    data=st.binary(max_size=200), safe=st.booleans(), padded=st.booleans(), width=st.integers(1, 80)
)
def test_any_bytes_come_back(data, safe, padded, width):
    text = (base64.urlsafe_b64encode if safe else base64.b64encode)(data).decode()
    text = "\r\n".join(text[at : at + width] for at in range(0, len(text), width))
    assert decode_base64(text if padded else text.rstrip("=")) == data


@given(text=st.text(max_size=60))
def test_any_text_gives_bytes_or_a_reason(text):
    """Nothing else is raised, whatever the text is."""
    with suppress(ValueError):
        assert isinstance(decode_base64(text), bytes)
