"""Images from URLs: a real TLS server answers, and everything that might lead inside the network is
refused.
"""

import asyncio
import datetime as dt
import http.server
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from models.errors import ConfigError, DeadlineExceeded, TooBusy, UrlRefused, UrlUnreachable
from service.http.body.fetching import Fetcher, is_public, parse_hosts

HOST = "photos.example"
PHOTO = b"the bytes of a photo"
MAX_BYTES = 1000
PATIENCE_S = 30.0

PRIVATE = [
    "0.0.0.0",
    "0.1.2.3",
    "10.0.0.1",
    "100.64.0.1",
    "100.127.255.255",
    "127.0.0.1",
    "127.9.9.9",
    "169.254.169.254",
    "172.16.0.1",
    "172.31.255.255",
    "192.0.0.1",
    "192.0.0.9",
    "192.0.0.10",
    "192.0.2.1",
    "192.88.99.1",
    "192.168.0.1",
    "198.18.0.1",
    "198.51.100.1",
    "203.0.113.1",
    "224.0.0.1",
    "239.255.255.255",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::7f00:1",
    "::ffff:127.0.0.1",
    "::ffff:8.8.8.8",
    "::ffff:0:127.0.0.1",
    "64:ff9b::7f00:1",
    "64:ff9b::8.8.8.8",
    "64:ff9b:1::a00:1",
    "100::1",
    "2001::1",
    "2001:0:7f00:1::",
    "2001:2::1",
    "2001:10::1",
    "2001:20::1",
    "2001:db8::1",
    "2002:7f00:1::",
    "2002:0808:0808::1",
    "3fff::1",
    "5f00::1",
    "fc00::1",
    "fd00:ec2::254",
    "fe80::1",
    "fe80::1%eth0",
    "2606:4700::1111%eth0",
    "fec0::1",
    "ff02::1",
    "ff0e::1",
    "",
    "localhost",
    "127.1",
    "0x7f000001",
    "2130706433",
    "1.2.3",
    "8.8.8.8/32",
]
PUBLIC = [
    "1.1.1.1",
    "8.8.8.8",
    "172.32.0.1",
    "100.128.0.1",
    "192.0.1.1",
    "2606:4700::1111",
    "2a00:1450:4001::200e",
]


@pytest.mark.parametrize("address", PRIVATE)
def test_no_private_address_is_public(address):
    assert not is_public(address)


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses_are(address):
    assert is_public(address)


class Photos(http.server.BaseHTTPRequestHandler):
    """Answers by path, and remembers what it was asked."""

    protocol_version = "HTTP/1.1"
    seen: list[dict[str, str]]
    finished: threading.Event

    def do_GET(self) -> None:
        self.seen.append(dict(self.headers) | {"path": self.path})
        match self.path:
            case "/photo" | "/photo?a=b":
                self.answer(200, PHOTO)
            case "/redirect":
                self.answer(302, b"", Location=f"https://{HOST}/photo")
            case "/missing":
                self.answer(404, b"no")
            case "/large":
                self.answer(200, b"x" * (MAX_BYTES + 1))
            case "/compressed":
                self.answer(200, b"x", **{"Content-Encoding": "gzip"})
            case "/slow":
                self.send_response(200)
                self.send_header("Content-Length", "10")
                self.end_headers()
                self.wfile.write(b"x")
                self.wfile.flush()
                self.finished.wait(PATIENCE_S)

    def answer(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


class QuietServer(http.server.ThreadingHTTPServer):
    def handle_error(self, *_: object) -> None:
        """A client that refuses the certificate breaks the connection: that is the test."""


@pytest.fixture(scope="module")
def certificate(tmp_path_factory) -> Path:
    """A file with a key and a certificate for HOST, signed by itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, HOST)])
    now = dt.datetime.now(dt.UTC)
    built = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(HOST)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    file = tmp_path_factory.mktemp("tls") / "server.pem"
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    file.write_bytes(private + built.public_bytes(serialization.Encoding.PEM))
    return file


class Site:
    """A running server and how to fetch from it."""

    def __init__(self, port: int, certificate: Path, seen: list[dict[str, str]]) -> None:
        self.port = port
        self.seen = seen
        self.certificate = certificate
        self.resolved: list[str] = []
        self.addresses = ["127.0.0.1"]

    def fetcher(
        self, *, hosts: str = "", timeout_s: float = PATIENCE_S, trusted: bool = True
    ) -> Fetcher:
        """Trusts the server's certificate, and lets loopback pass for public."""

        async def resolver(host: str, port: int) -> list[str]:
            self.resolved.append(host)
            return self.addresses

        return Fetcher(
            parse_hosts(hosts or f"other.example, {HOST}:{self.port}"),
            max_bytes=MAX_BYTES,
            timeout_s=timeout_s,
            resolver=resolver,
            allowed_address=lambda address: address == "127.0.0.1" or is_public(address),
            tls=ssl.create_default_context(cafile=self.certificate) if trusted else None,
        )

    def url(self, path: str) -> str:
        return f"https://{HOST}:{self.port}{path}"


@pytest.fixture
def site(certificate) -> Iterator[Site]:
    seen: list[dict[str, str]] = []
    finished = threading.Event()
    handler = type("Handler", (Photos,), {"seen": seen, "finished": finished})
    with QuietServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = False
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.socket = context.wrap_socket(
            server.socket, server_side=True, do_handshake_on_connect=False
        )
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield Site(server.server_address[1], certificate, seen)
        finally:
            finished.set()
            server.shutdown()
            thread.join(PATIENCE_S)


def fetch(
    fetcher: Fetcher,
    url: str,
    *,
    within_s: float = PATIENCE_S,
    hold: Callable[[int], None] = lambda more_bytes: None,
) -> bytes:
    return asyncio.run(fetcher.fetch(url, deadline=time.monotonic() + within_s, hold=hold))


def test_an_allowed_host_is_asked_by_its_name_at_the_address_that_was_checked(site):
    assert fetch(site.fetcher(), site.url("/photo?a=b#part")) == PHOTO
    (seen,) = site.seen
    assert (seen["Host"], seen["path"]) == (f"{HOST}:{site.port}", "/photo?a=b")
    assert seen["Accept-Encoding"] == "identity"
    assert {"Cookie", "Authorization", "Referer"} & set(seen) == set()
    assert site.resolved == [HOST], (
        "once, so that a second answer of the name server cannot lead elsewhere"
    )


@pytest.mark.parametrize(
    ("path", "words"),
    [
        (
            "/redirect",
            "photos.example answered with status 302; expected 200, redirects are not followed",
        ),
        ("/missing", "photos.example answered with status 404"),
        ("/large", "photos.example sent more than 1,000 bytes"),
        ("/compressed", "photos.example sent the image compressed"),
    ],
)
def test_what_is_no_image_is_unreachable(site, path, words):
    with pytest.raises(UrlUnreachable, match=words):
        fetch(site.fetcher(), site.url(path))
    assert len(site.seen) == 1


def test_a_slow_host_is_left_at_the_time_limit(site):
    started = time.monotonic()
    with pytest.raises(UrlUnreachable, match=r"photos.example did not send the image within 0.3 s"):
        fetch(site.fetcher(timeout_s=0.3), site.url("/slow"))
    assert time.monotonic() - started < PATIENCE_S / 2


def test_the_requests_deadline_ends_the_fetching_before_the_time_limit_of_urls(site):
    started = time.monotonic()
    with pytest.raises(
        DeadlineExceeded,
        match=r"photos.example did not send the image before the request's deadline",
    ):
        fetch(site.fetcher(), site.url("/slow"), within_s=0.3)
    assert time.monotonic() - started < PATIENCE_S / 2
    with pytest.raises(DeadlineExceeded):
        fetch(site.fetcher(), site.url("/photo"), within_s=-1.0)
    assert len(site.seen) == 1, "after the deadline nobody is asked"


def test_every_byte_that_came_is_held_and_none_more_than_there_is_room_for(site):
    held: list[int] = []
    assert fetch(site.fetcher(), site.url("/photo"), hold=held.append) == PHOTO
    assert sum(held) == len(PHOTO)

    def full(more_bytes: int) -> None:
        raise TooBusy("request bodies hold 100 of 100 bytes", retry_after_s=1.0)

    with pytest.raises(TooBusy):
        fetch(site.fetcher(), site.url("/photo"), hold=full)


def test_the_tls_context_is_made_once_and_off_the_event_loop(site, monkeypatch):
    made: list[threading.Thread] = []

    def make(**_: object) -> ssl.SSLContext:
        made.append(threading.current_thread())
        return ssl.create_default_context(cafile=site.certificate)

    monkeypatch.setattr(httpx, "create_ssl_context", make)
    fetcher = site.fetcher(trusted=False)

    async def several() -> list[bytes]:
        deadline = time.monotonic() + PATIENCE_S
        return await asyncio.gather(
            *(
                fetcher.fetch(site.url("/photo"), deadline=deadline, hold=lambda more_bytes: None)
                for _ in range(5)
            )
        )

    assert asyncio.run(several()) == [PHOTO] * 5
    (thread,) = made
    assert thread is not threading.main_thread()


def test_a_name_of_other_letters_is_listed_resolved_and_checked_in_the_form_of_dns(site):
    """Two rules for such names disagree on some letters: what is listed, what is resolved and what
    the certificate says is one text.
    """
    site.addresses = ["10.0.0.1"]
    for listed in ("fa\u00df.example", "xn--fa-hia.example", "FA\u00df.example"):
        with pytest.raises(UrlRefused, match="has an address that is not public"):
            fetch(site.fetcher(hosts=listed), "https://fa\u00df.example/photo")
    assert set(site.resolved) == {"xn--fa-hia.example"}


@pytest.mark.parametrize(
    "listed",
    [
        "https://photos.example",
        "photos.example/a",
        "photos.example?a",
        "user@photos.example",
        ":443",
        "a b",
        "a#b",
        "a:x",
    ],
)
def test_a_host_that_is_none_is_refused_at_the_start(listed):
    with pytest.raises(ConfigError, match=r"^LOUPE_URL_HOSTS has "):
        parse_hosts(f"photos.example, {listed}")


def test_a_certificate_that_nobody_vouches_for_is_refused(site):
    with pytest.raises(UrlUnreachable, match=r"photos.example could not be asked: ConnectError"):
        fetch(site.fetcher(trusted=False), site.url("/photo"))
    assert site.seen == []


def test_a_certificate_of_another_name_is_refused(site):
    with pytest.raises(UrlUnreachable, match=r"other.example could not be asked: ConnectError"):
        fetch(
            site.fetcher(hosts=f"other.example:{site.port}"),
            f"https://other.example:{site.port}/photo",
        )
    assert site.seen == []


@pytest.mark.parametrize("address", [address for address in PRIVATE if address != "127.0.0.1"])
def test_a_host_with_one_private_address_is_refused_whatever_the_others_are(site, address):
    site.addresses = ["127.0.0.1", address]
    with pytest.raises(UrlRefused, match=r"photos.example has an address that is not public$"):
        fetch(site.fetcher(), site.url("/photo"))
    assert site.seen == []


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://photos.example/a", "the URL begins with 'http'; expected https"),
        ("file:///etc/passwd", "the URL begins with 'file'; expected https"),
        ("ftp://photos.example/a", "the URL begins with 'ftp'"),
        ("data:image/png;base64,AAAA", "the URL begins with 'data'"),
        ("//photos.example/a", "the URL begins with ''"),
        ("", "the URL begins with ''"),
        ("https://user:secret@photos.example/a", "the URL carries a user name or password"),
        ("https://photos.example@evil.example/a", "the URL carries a user name or password"),
        (
            "https://evil.example/a",
            "host 'evil.example' is not one that images may be fetched from",
        ),
        ("https://photos.example.evil.example/a", "host 'photos.example.evil.example' is not"),
        ("https://evil.example#photos.example", "host 'evil.example' is not"),
        ("https://photos.example:22/a", "host 'photos.example:22' is not"),
        ("https://photos.example./a", "host 'photos.example.' is not"),
        ("https://127.0.0.1/a", "host '127.0.0.1' is not"),
        ("https://[::1]/a", "host '::1' is not"),
        ("https://0x7f.1/a", "host '0x7f.1' is not"),
        ("https://", "host '' is not"),
        ("https:///photos.example/a", "host '' is not"),
        ("https://photos.example:99999/a", "host 'photos.example:99999' is not"),
        ("https://photos.example/\x00", "is not a URL"),
        ("https://[/a", "host '%5B' is not"),
        (
            "https://photos.example/" + "a" * 2048,
            "the URL has 2071 characters; at most 2048 are taken",
        ),
    ],
)
def test_what_may_not_be_asked_is_refused_before_any_name_is_resolved(site, url, words):
    with pytest.raises(UrlRefused, match=words.replace("?", r"\?")):
        fetch(site.fetcher(hosts=HOST), url)
    assert (site.resolved, site.seen) == ([], [])


def test_without_hosts_nothing_is_fetched(site):
    fetcher = Fetcher(parse_hosts(" , "), max_bytes=MAX_BYTES, timeout_s=1.0)
    with pytest.raises(
        UrlRefused,
        match="this service fetches no URLs; send the image itself, or set LOUPE_URL_HOSTS",
    ):
        fetch(fetcher, site.url("/photo"))


def test_a_real_resolver_and_the_real_rule_refuse_the_machine_itself():
    """`localhost` on the list changes nothing: the list names hosts, the rule judges addresses."""
    fetcher = Fetcher(parse_hosts("localhost"), max_bytes=MAX_BYTES, timeout_s=PATIENCE_S)
    with pytest.raises(UrlRefused, match="localhost has an address that is not public"):
        fetch(fetcher, "https://localhost/a")


def test_a_name_without_an_address_is_unreachable():
    async def nowhere(host: str, port: int) -> list[str]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    fetcher = Fetcher(
        parse_hosts(HOST), max_bytes=MAX_BYTES, timeout_s=PATIENCE_S, resolver=nowhere
    )
    with pytest.raises(UrlUnreachable, match=r"photos.example has no address"):
        fetch(fetcher, f"https://{HOST}/a")


def test_every_ipv4_network_that_is_no_unicast_is_covered():
    """The first and last address of each block that IANA lists as not globally reachable."""
    blocks = [
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",
        "127.0.0.0/8",
        "169.254.0.0/16",
        "172.16.0.0/12",
        "192.168.0.0/16",
        "224.0.0.0/4",
    ]
    blocks += ["192.0.2.0/24", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "240.0.0.0/4"]
    for block in map(ipaddress.ip_network, blocks):
        assert not is_public(str(block[0])), block
        assert not is_public(str(block[-1])), block
