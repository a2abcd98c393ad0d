"""Keys, rates, CORS, TLS and the log over real sockets, with two workers."""

import json
import re
import ssl
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from service.gate.admission import COSTLY_BURST, COSTLY_PER_S
from service.observe.logs import REFUSALS_PER_S
from tests.http.conftest import make_photo
from tests.http.server import (
    ANSWER_PATIENCE_S,
    POLL_S,
    Server,
    free_port,
    loupe,
    read_all,
    refused,
    serving,
)

PHOTO = make_photo(0)
RATE_BURST = 6


def new_key(file: Path, name: str, *scopes: str) -> str:
    options = [part for scope in scopes for part in ("--scope", scope)]
    done = subprocess.run(
        loupe("keys", "add", name, "--file", file, *options),
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 that signs itself, and its key."""
    chain, key = folder / "chain.pem", folder / "key.pem"
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-days",
        "2",
        "-subj",
        "/CN=127.0.0.1",
        "-addext",
        "subjectAltName=IP:127.0.0.1",
    ]
    subprocess.run([*command, "-out", chain, "-keyout", key], check=True, capture_output=True)
    return chain, key


@pytest.fixture(scope="module")
def keys(tmp_path_factory) -> dict[str, str]:
    file = tmp_path_factory.mktemp("keys") / "keys.json"
    return {
        "file": str(file),
        "app": new_key(file, "app"),
        "ops": new_key(file, "ops", "admin"),
        "gone": new_key(file, "gone"),
    }


@pytest.fixture(scope="module")
def guarded(tmp_path_factory, store, keys) -> Iterator[Server]:
    limits = {
        "rate_limit_per_s": 0.001,
        "rate_limit_burst": RATE_BURST,
        "metrics_access": "admin",
        "cors_origins": "https://page.example",
    }
    folder = tmp_path_factory.mktemp("guarded")
    with serving(
        folder,
        store=store,
        workers=2,
        api_keys_file=keys["file"],
        log_format="json",
        ready=False,
        **limits,
    ) as server:
        server._wait_until(lambda: server.log.count('"message":"ready: ') == 2, "not ready")
        yield server
        assert server.stop() == 0
        assert "Traceback" not in server.log


def post(server: Server, **headers: str) -> httpx.Response:
    """On a connection of its own: whichever worker takes it."""
    return httpx.post(
        f"{server.url}/v1/classify",
        content=PHOTO,
        headers=headers,
        timeout=ANSWER_PATIENCE_S,
        trust_env=False,
    )


def code(response: httpx.Response) -> tuple[int, str]:
    return response.status_code, response.json()["code"]


def test_a_key_is_asked_for_and_taken_from_either_header(guarded, keys):
    nobody = post(guarded)
    assert code(nobody) == (401, "unauthorised")
    assert nobody.headers["www-authenticate"] == 'Bearer realm="loupe"'
    assert nobody.json()["request_id"] == nobody.headers["x-request-id"]
    assert code(post(guarded, x_api_key="x", **{"X-API-Key": keys["app"] + "x"})) == (
        401,
        "unauthorised",
    )
    assert code(post(guarded, Authorization=f"Basic {keys['app']}")) == (401, "unauthorised")
    assert post(guarded, Authorization=f"Bearer {keys['app']}").status_code == 200
    assert post(guarded, **{"X-API-Key": keys["app"]}).status_code == 200


def test_a_flood_of_wrong_keys_from_one_address_is_limited_for_both_workers_and_in_the_log(guarded):
    """From another address of this machine than the other tests, which continue meanwhile."""
    flood = httpx.HTTPTransport(local_address="127.0.0.2")
    with httpx.Client(transport=flood, timeout=ANSWER_PATIENCE_S, trust_env=False) as client:
        began = time.monotonic()
        # A connection for each: both workers take some.
        head = {"X-API-Key": "wrong", "Connection": "close"}
        found = [
            client.post(f"{guarded.url}/v1/classify", content=PHOTO, headers=head)
            for _ in range(3 * COSTLY_BURST)
        ]
        took_s = time.monotonic() - began
    compared = sum(answer.status_code == 401 for answer in found)
    assert {answer.status_code for answer in found} == {401, 429}
    assert COSTLY_BURST <= compared <= COSTLY_BURST + COSTLY_PER_S * took_s + 1
    assert code(found[-1]) == (429, "rate_limited")
    assert code(post(guarded, **{"X-API-Key": "wrong"})) == (401, "unauthorised")
    lines = [line for line in guarded.log.splitlines() if '"client":"127.0.0.2"' in line]
    # Two workers, two statuses, and the second under way.
    assert 0 < len(lines) <= 4 * REFUSALS_PER_S * (took_s + 2)


def test_a_key_may_do_what_its_scopes_say(guarded, keys):
    assert code(post(guarded, **{"X-API-Key": keys["ops"]})) == (403, "forbidden")
    scrape = f"{guarded.url}/metrics"
    assert code(httpx.get(scrape, trust_env=False)) == (401, "unauthorised")
    assert code(httpx.get(scrape, headers={"X-API-Key": keys["app"]}, trust_env=False)) == (
        403,
        "forbidden",
    )
    shown = httpx.get(scrape, headers={"X-API-Key": keys["ops"]}, trust_env=False)
    assert shown.status_code == 200
    assert 'loupe_rejected_total{reason="unauthorised"}' in shown.text


def test_the_schema_of_bentomls_client_is_a_route_as_others(guarded, keys):
    address = f"{guarded.url}/schema.json"
    assert code(httpx.get(address, trust_env=False)) == (401, "unauthorised")
    fresh = new_key(Path(keys["file"]), "schema")
    began = time.monotonic()
    while (
        answer := httpx.get(address, headers={"X-API-Key": fresh}, trust_env=False)
    ).status_code == 401:
        assert time.monotonic() - began < ANSWER_PATIENCE_S
        time.sleep(POLL_S)
    assert answer.json()["routes"][0]["route"] == "/classify"
    assert answer.headers["x-request-id"] in guarded.log
    scrape = httpx.get(
        f"{guarded.url}/metrics", headers={"X-API-Key": keys["ops"]}, trust_env=False
    )
    assert 'loupe_requests_total{code="200",route="/schema.json"}' in scrape.text
    statuses = [
        httpx.get(address, headers={"X-API-Key": fresh}, trust_env=False).status_code
        for _ in range(4 * RATE_BURST)
    ]
    # A worker that does not know the key yet says 401.
    assert set(statuses) <= {200, 401, 429}
    assert statuses.count(429) > 0


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/"])
def test_probes_and_the_page_ask_for_no_key(guarded, path):
    assert httpx.get(f"{guarded.url}{path}", trust_env=False).status_code == 200


def test_a_removed_key_is_refused_without_a_restart(guarded, keys):
    subprocess.run(loupe("keys", "remove", "gone", "--file", keys["file"]), check=True)
    began = time.monotonic()
    while post(guarded, **{"X-API-Key": keys["gone"]}).status_code != 401:
        assert time.monotonic() - began < ANSWER_PATIENCE_S
        time.sleep(POLL_S)


def test_a_rate_is_counted_once_for_both_workers(guarded, keys):
    """However the connections are spread: a worker that counted for itself would let twice as many
    through.
    """
    fresh = new_key(Path(keys["file"]), "fresh")
    began = time.monotonic()
    while (first := post(guarded, **{"X-API-Key": fresh})).status_code == 401:
        assert time.monotonic() - began < ANSWER_PATIENCE_S
        time.sleep(POLL_S)
    answers = [first]
    while len(answers) < 4 * RATE_BURST:
        answer = post(guarded, **{"X-API-Key": fresh})
        # The other worker may not know the key yet.
        answers += [answer] * (answer.status_code != 401)
        assert time.monotonic() - began < ANSWER_PATIENCE_S
    passed = [answer for answer in answers if answer.status_code == 200]
    limited = [answer for answer in answers if answer.status_code == 429]
    assert len(passed) == RATE_BURST
    assert {code(answer) for answer in limited} == {(429, "rate_limited")}
    # At one in a thousand seconds the next comes in less than that.
    assert all(900 < int(answer.headers["retry-after"]) <= 1000 for answer in limited)


def test_a_page_of_an_allowed_origin_may_read_even_a_refusal(guarded, keys):
    allowed = post(guarded, Origin="https://page.example")
    assert (allowed.status_code, allowed.headers["access-control-allow-origin"]) == (
        401,
        "https://page.example",
    )
    assert (
        "access-control-allow-origin" not in post(guarded, Origin="https://other.example").headers
    )
    asked = {
        "Origin": "https://page.example",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "x-api-key",
    }
    preflight = httpx.options(f"{guarded.url}/v1/classify", headers=asked, trust_env=False)
    assert (preflight.status_code, preflight.headers["access-control-allow-headers"]) == (
        200,
        "x-api-key",
    )


def test_the_log_has_a_line_of_json_for_each_request_and_none_of_the_image(guarded, keys):
    answer = post(guarded, **{"X-Request-Id": "find-me", "X-API-Key": "nobody"})
    assert answer.status_code == 401
    # The line is written after the answer.
    guarded.wait_logged('"find-me"')
    lines = [json.loads(line) for line in guarded.log.splitlines() if '"message":"request"' in line]
    (mine,) = [line for line in lines if line["request_id"] == "find-me"]
    assert (mine["status"], mine["code"], mine["route"], mine["method"], mine["client"]) == (
        401,
        "unauthorised",
        "admission",
        "POST",
        "127.0.0.1",
    )
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", mine["time"])
    good = next(line for line in lines if line["status"] == 200 and line["route"] == "/v1/classify")
    assert (good["code"], good["client"], good["body_bytes"]) == (None, "app", len(PHOTO))
    assert good["duration_ms"] > 0.0
    assert good["answer_bytes"] > 100
    assert keys["app"] not in guarded.log


SUITES_REFUSED = ("ECDHE-RSA-AES128-SHA", "AES128-SHA", "ECDHE-RSA-AES256-SHA", "AES256-SHA")
"""CBC with SHA-1."""
SUITES_TAKEN = (
    "ECDHE-RSA-AES128-GCM-SHA256",
    "ECDHE-RSA-AES256-GCM-SHA384",
    "ECDHE-RSA-CHACHA20-POLY1305",
)


def handshake(
    server: Server, *, ciphers: str = "", version: ssl.TLSVersion | None = None
) -> tuple[str, str]:
    """Cipher and version that *server* agrees to with a client that has no others."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if version is not None:
        context.minimum_version = context.maximum_version = version
    if ciphers:
        # Without the bounds of this machine's OpenSSL: it is the server that shall refuse.
        context.set_ciphers(f"{ciphers}:@SECLEVEL=0")
    with server.connect() as connection, context.wrap_socket(connection) as secured:
        secured.sendall(b"GET /livez HTTP/1.0\r\n\r\n")
        assert secured.recv(20).startswith(b"HTTP/1.1 200 ")
        cipher = secured.cipher()
        assert cipher is not None
        return cipher[0], str(secured.version())


def test_answers_come_over_tls_of_today_and_nothing_without(tmp_path, store):
    chain, key = certificate(tmp_path)
    with serving(
        tmp_path, store=store, tls_certificate=chain, tls_key=key, keep_alive_s=1, ready=False
    ) as server:
        server._wait_until(lambda: server.log.count(" ready: ") == 1, "not ready")
        trusting = ssl.create_default_context(cafile=str(chain))
        with httpx.Client(
            base_url=f"https://127.0.0.1:{server.port}", verify=trusting, trust_env=False
        ) as client:
            assert client.get("/readyz").status_code == 200
            assert client.post("/v1/classify", content=PHOTO).json()["model"] == {
                "name": "zoo",
                "version": 1,
            }
        plain = server.ask_raw(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b"HTTP" not in plain
        assert f"https://127.0.0.1:{server.port}" in server.log
        with (
            server.connect() as connection,
            trusting.wrap_socket(connection, server_hostname="127.0.0.1") as kept,
        ):
            kept.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
            # Until the server closes, which the client's patience would not outlast by default.
            assert read_all(kept).startswith(b"HTTP/1.1 200 ")
        assert handshake(server)[1] == "TLSv1.3"
        for suite in SUITES_TAKEN:
            assert handshake(server, ciphers=suite, version=ssl.TLSVersion.TLSv1_2) == (
                suite,
                "TLSv1.2",
            )
        for suite in SUITES_REFUSED:
            with pytest.raises(
                (ssl.SSLError, ConnectionResetError), match=r"HANDSHAKE_FAILURE|EOF|reset"
            ):
                handshake(server, ciphers=suite, version=ssl.TLSVersion.TLSv1_2)
        for version in (ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1):
            with (
                pytest.warns(DeprecationWarning, match="TLSv1"),
                pytest.raises(
                    (ssl.SSLError, ConnectionResetError), match=r"PROTOCOL_VERSION|EOF|reset"
                ),
            ):
                handshake(server, ciphers="ALL", version=version)
        assert server.stop() == 0
        assert "Traceback" not in server.log


def test_a_key_that_belongs_to_another_certificate_is_refused_in_one_line(tmp_path, store):
    chain, _ = certificate(tmp_path)
    (tmp_path / "other").mkdir()
    _, other = certificate(tmp_path / "other")
    done = refused(
        tmp_path, "--store", store, "--port", free_port(), tls_certificate=chain, tls_key=other
    )
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert done.stderr.startswith(
        f"error: the TLS certificate {chain} with key {other} cannot be used: "
    )


def test_a_missing_file_of_keys_is_refused_in_one_line(tmp_path, store):
    done = refused(tmp_path, "--store", store, "--port", free_port(), api_keys_file="none.json")
    assert (
        done.stderr
        == "error: the file of API keys none.json cannot be read: No such file or directory; `loupe"
        " keys add NAME --file none.json` makes one\n"
    )
