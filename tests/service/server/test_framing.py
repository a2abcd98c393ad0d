"""A head or chunk is read in one way, or refused with its reason."""

import re

import httptools
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.errors import HeadTooLarge, LoupeError, MalformedRequest
from service.server.framing import (
    MAX_CHUNK_LINE_BYTES,
    MAX_FIELDS,
    MAX_HEAD_BYTES,
    Chunks,
    body_bytes,
    check_beginning,
    check_request_line,
    without_upgrade,
)

CHUNKED = b"Transfer-Encoding: chunked\r\n"
REFUSED_HEADS = {
    "two lengths": b"POST / HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
    "the same length twice": b"POST / HTTP/1.1\r\nContent-Length: 5\r\ncontent-length: 5\r\n\r\n",
    "a list of lengths": b"POST / HTTP/1.1\r\nContent-Length: 5, 5\r\n\r\n",
    "a signed length": b"POST / HTTP/1.1\r\nContent-Length: +5\r\n\r\n",
    "a negative length": b"POST / HTTP/1.1\r\nContent-Length: -5\r\n\r\n",
    "a length in hex": b"POST / HTTP/1.1\r\nContent-Length: 0x5\r\n\r\n",
    "a length with an underscore": b"POST / HTTP/1.1\r\nContent-Length: 1_0\r\n\r\n",
    "a length with a superscript": b"POST / HTTP/1.1\r\nContent-Length: \xb2\r\n\r\n",
    "an empty length": b"POST / HTTP/1.1\r\nContent-Length:\r\n\r\n",
    "an endless length": b"POST / HTTP/1.1\r\nContent-Length: " + b"9" * 19 + b"\r\n\r\n",
    "length and chunks": b"POST / HTTP/1.1\r\nContent-Length: 5\r\n" + CHUNKED + b"\r\n",
    "chunked twice": b"POST / HTTP/1.1\r\n" + CHUNKED + CHUNKED + b"\r\n",
    "chunked, chunked": b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked, chunked\r\n\r\n",
    "gzip, chunked": b"POST / HTTP/1.1\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
    "identity": b"POST / HTTP/1.1\r\nTransfer-Encoding: identity\r\n\r\n",
    "xchunked": b"POST / HTTP/1.1\r\nTransfer-Encoding: xchunked\r\n\r\n",
    "chunked behind a vertical tab": b"POST / HTTP/1.1\r\nTransfer-Encoding: \x0bchunked\r\n\r\n",
    "chunks under 1.0": b"POST / HTTP/1.0\r\n" + CHUNKED + b"\r\n",
    "a space before the colon": b"POST / HTTP/1.1\r\nContent-Length : 5\r\n\r\n",
    "a tab before the colon": b"POST / HTTP/1.1\r\nTransfer-Encoding\t: chunked\r\n\r\n",
    "a folded line": b"POST / HTTP/1.1\r\nX: a\r\n Content-Length: 5\r\n\r\n",
    "a folded coding": b"POST / HTTP/1.1\r\nTransfer-Encoding:\r\n chunked\r\n\r\n",
    "a first line folded": b"POST / HTTP/1.1\r\n X: a\r\n\r\n",
    "a line without a colon": b"POST / HTTP/1.1\r\nX\r\n\r\n",
    "a line without a name": b"POST / HTTP/1.1\r\n: x\r\n\r\n",
    "a bare line feed": b"POST / HTTP/1.1\r\nX: a\nContent-Length: 5\r\n\r\n",
    "a bare carriage return": b"POST / HTTP/1.1\r\nX: a\rContent-Length: 5\r\n\r\n",
    "a NUL in a value": b"POST / HTTP/1.1\r\nX: a\x00b\r\n\r\n",
    "a NUL in a name": b"POST / HTTP/1.1\r\nX\x00: a\r\n\r\n",
    "a NUL in the target": b"POST /\x00 HTTP/1.1\r\n\r\n",
    "a space in the target": b"POST /a b HTTP/1.1\r\n\r\n",
    "a target of UTF-8": "POST /ä HTTP/1.1\r\n\r\n".encode(),
    "CONNECT": b"CONNECT example.org:443 HTTP/1.1\r\nHost: example.org\r\n\r\n",
    "CONNECT to a path": b"CONNECT / HTTP/1.1\r\n\r\n",
    "another scheme": b"GET ftp://x/ HTTP/1.1\r\n\r\n",
    "a relative target": b"GET v1/models HTTP/1.1\r\n\r\n",
    "a host with a space": b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n",
    "a host with a path": b"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n",
    "a fragment": b"GET /livez#x HTTP/1.1\r\nHost: a\r\n\r\n",
    "two hosts": b"GET / HTTP/1.1\r\nHost: a\r\nhost: b\r\n\r\n",
    "HTTP/0.9": b"GET /\r\n\r\n",
    "HTTP/2.0": b"PRI * HTTP/2.0\r\n\r\n",
    "HTTP/1.2": b"GET / HTTP/1.2\r\n\r\n",
    "http in small letters": b"GET / http/1.1\r\n\r\n",
    "a tab": b"GET\t/ HTTP/1.1\r\n\r\n",
    "a space in front": b" GET / HTTP/1.1\r\n\r\n",
    "a method in small letters": b"get / HTTP/1.1\r\n\r\n",
}
# So that each is refused for what it is called, and not for a host that is missing.
REFUSED_HEADS = {
    name: head if b"\nhost:" in head.lower() else head.replace(b"\r\n", b"\r\nHost: x\r\n", 1)
    for name, head in REFUSED_HEADS.items()
}
REFUSED_HEADS["no host"] = b"GET / HTTP/1.1\r\n\r\n"
REFUSED_CHUNKS = {
    "0x": b"0x5\r\nhello\r\n0\r\n\r\n",
    "a sign": b"+5\r\nhello\r\n0\r\n\r\n",
    "a negative size": b"-1\r\n",
    "no size": b"\r\nhello\r\n0\r\n\r\n",
    "an extension alone": b";a=b\r\n",
    "a space in front": b" 5\r\nhello\r\n0\r\n\r\n",
    "a space behind": b"5 \r\nhello\r\n0\r\n\r\n",
    "a size beyond 32 bits": b"100000005\r\nhello\r\n",
    "a size that wraps around": b"FFFFFFFFFFFFFFFE\r\n",
    "a bare line feed": b"5\nhello\n0\n\n" + b" " * MAX_CHUNK_LINE_BYTES,
    "a line feed in an extension": b"5;a\nb\r\nhello\r\n0\r\n\r\n",
    "a NUL in an extension": b"5;\x00\r\nhello\r\n0\r\n\r\n",
    "a longer chunk": b"5\r\nhello!\r\n0\r\n\r\n",
    "a shorter chunk": b"5\r\nhell\r\n0\r\n\r\n",
    "a trailer without a colon": b"0\r\nGET / HTTP/1.1\r\n\r\n",
    "a folded trailer": b"0\r\nX: a\r\n b\r\n\r\n",
}


class Fields:
    """What httptools reads in a head."""

    def __init__(self):
        self.url = b""
        self.fields = []
        self.complete = False

    def on_url(self, url):
        self.url += url

    def on_header(self, name, value):
        self.fields.append((name.lower(), value))

    def on_headers_complete(self):
        self.complete = True


def read_head(head):
    """Path and length of the body, as `Connection` asks for them.

    Raises `LoupeError` or `HttpParserError`.
    """
    read = Fields()
    parser = httptools.HttpRequestParser(read)
    parser.feed_data(without_upgrade(head))
    if not read.complete:
        raise MalformedRequest("no end")
    version = parser.get_http_version()
    check_request_line(read.url, version=version)
    return httptools.parse_url(read.url).path, body_bytes(read.fields, version=version)


@pytest.mark.parametrize("head", REFUSED_HEADS.values(), ids=REFUSED_HEADS)
def test_a_head_that_two_parsers_could_read_differently_is_refused(head):
    """By us, or by the parser: what it takes, it takes in its strict form alone."""
    with pytest.raises((MalformedRequest, httptools.HttpParserError, httptools.HttpParserUpgrade)):
        read_head(head)


@pytest.mark.parametrize(
    ("head", "path", "length"),
    [
        (b"GET /livez HTTP/1.0\r\n\r\n", b"/livez", 0),
        (b"GET /livez HTTP/1.0\r\nHost: x\r\n\r\n", b"/livez", 0),
        (b"GET /v1/models?a=/b HTTP/1.1\r\nHost: x\r\nContent-Length:5\r\n\r\n", b"/v1/models", 5),
        (b"HEAD / HTTP/1.1\r\nHost:\r\nContent-Length: \t 7 \t\r\n\r\n", b"/", 7),
        (
            (
                b"POST http://any.host:8/v1/classify HTTP/1.1\r\nHost: x\r\ntransfer-ENCODING:"
                b" Chunked\r\n\r\n"
            ),
            b"/v1/classify",
            None,
        ),
        (b"OPTIONS /a HTTP/1.1\r\nHost: x\r\nX-Empty:\r\nX-Text: caf\xe9\t\xff\r\n\r\n", b"/a", 0),
        (b"GET  / HTTP/1.1\r\nHost: x\r\n\r\n", b"/", 0),
    ],
)
def test_a_usual_head_is_read(head, path, length):
    assert without_upgrade(head) is head
    assert read_head(head) == (path, length)


def test_an_upgrade_is_not_seen_by_the_parser_behind():
    head = (
        b"POST / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings\r\nUPGRADE:"
        b" h2c\r\nupgrade: websocket\r\nContent-Length: 3\r\n\r\n"
    )
    assert (
        without_upgrade(head)
        == b"POST / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings\r\nContent-Length:"
        b" 3\r\n\r\n"
    )
    assert read_head(head) == (b"/", 3)


def test_a_head_of_too_many_fields_is_refused():
    fields = [b"X-%d: y\r\n" % number for number in range(MAX_FIELDS - 1)]
    assert read_head(b"GET / HTTP/1.1\r\nHost: x\r\n" + b"".join(fields) + b"\r\n") == (b"/", 0)
    with pytest.raises(HeadTooLarge, match=r"^the header has 101 fields; at most 100 are taken$"):
        read_head(b"GET / HTTP/1.1\r\nHost: x\r\n" + b"".join([*fields, b"Y: z\r\n", b"\r\n"]))


def test_what_can_never_become_a_head_is_refused_at_once():
    check_beginning(bytearray(b"GET / HTTP/1.1\r\nX: y\r"), searched=0)
    check_beginning(bytearray(b"GET / HTTP/1.1\r\nX: y\r\n"), searched=21)
    with pytest.raises(HeadTooLarge, match="16,384 bytes"):
        check_beginning(
            bytearray(b"GET / HTTP/1.1\r\nX-Big: ".ljust(MAX_HEAD_BYTES, b"x")), searched=20
        )
    with pytest.raises(MalformedRequest, match="LF alone"):
        check_beginning(bytearray(b"GET / HTTP/1.1\n"), searched=14)
    with pytest.raises(MalformedRequest, match="is this TLS"):
        check_beginning(bytearray(b"\x16\x03\x01\x02\x00\x01"), searched=0)


@pytest.mark.parametrize("body", REFUSED_CHUNKS.values(), ids=REFUSED_CHUNKS)
@pytest.mark.parametrize("step", [1, 4096], ids=["byte by byte", "at once"])
def test_chunks_that_two_parsers_could_read_differently_are_refused(body, step):
    chunks = Chunks()
    with pytest.raises(MalformedRequest):
        all(chunks.take(body[at : at + step]) for at in range(0, len(body), step))


@given(
    pieces=st.lists(st.binary(min_size=1, max_size=300), max_size=5),
    cuts=st.lists(st.integers(1, 40), min_size=1),
    behind=st.binary(max_size=9),
)
def test_chunks_come_out_plain_however_they_are_cut(pieces, cuts, behind):
    body = (
        b"".join(b"00%X;name=value\r\n%b\r\n" % (len(piece), piece) for piece in pieces)
        + b"0;x\r\nX-Trailer: y\r\n\r\n"
    )
    plain = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"
    chunks, out, rest, at, turn = Chunks(), b"", b"", 0, 0
    data = body + behind
    while at < len(data) and not chunks.done:
        step = cuts[turn % len(cuts)]
        taken, rest = chunks.take(data[at : at + step])
        out, at, turn = out + taken, at + step, turn + 1
    assert chunks.done
    assert out == plain
    assert rest + data[at:] == behind


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (b"5;" + b"x" * 10**6, MalformedRequest),
        (b"".join([b"1;" + b"x" * 200 + b"\r\na\r\n"] * 100), HeadTooLarge),
        (b"0\r\n" + b"X: y\r\n" * 10**5, HeadTooLarge),
    ],
    ids=["one extension", "many extensions", "trailers"],
)
def test_extensions_and_trailers_are_bounded(body, error):
    with pytest.raises(error):
        Chunks().take(body)


@given(
    st.from_regex(
        re.compile(
            rb"(GET|POST) /[\x00-\xff]{0,30} HTTP/1\.1\r\n([a-zA-Z -]{0,20}[:"
            rb" \t][\x00-\xff]{0,20}\r\n){0,4}\r\n"
        ),
        fullmatch=True,
    )
)
def test_any_other_bytes_are_read_or_refused(head):
    try:
        path, _ = read_head(head)
    except (LoupeError, httptools.HttpParserError, httptools.HttpParserUpgrade):
        return
    assert path.startswith(b"/")


@pytest.mark.parametrize("name", [b"host", b"content-length", b"transfer-encoding"])
def test_a_field_that_frames_is_refused_twice_even_with_the_same_value(name):
    """By its name: CPython keeps one object for equal values of one byte."""
    value = b"5"
    with pytest.raises(MalformedRequest, match=f"more than one {name.decode()}"):
        body_bytes([(b"host", b"x"), (name, value), (name, value)], version="1.1")
