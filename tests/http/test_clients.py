"""What real HTTP clients send, on every route that takes an image, over real sockets."""

import base64
import gzip
import json
import shutil
import subprocess

import pytest

from tests.http.conftest import make_photo
from tests.http.server import Server, read_one

PHOTO = make_photo(5)
B64 = base64.b64encode(PHOTO).decode()
ROUTES = ("/v1/classify", "/predictions/zoo", "/classify")

TYPES = (
    "image/jpeg",
    "image/jpg",
    "IMAGE/PNG; charset=binary",
    "image/*",
    "image/heic",
    "image/svg+xml",
    "*/*",
    "application/octet-stream",
    "binary/octet-stream",
    "application/binary",
    "application/x-www-form-urlencoded",
    "text/plain;charset=UTF-8",
    "image/png, image/png",
    "",
    None,
)


def likeliest(answer: dict) -> str:
    """The first label of an answer, in any of the three forms."""
    return answer["predictions"][0]["label"] if "predictions" in answer else next(iter(answer))


@pytest.fixture(scope="module")
def label(classifier) -> str:
    (expected,) = classifier.classify([PHOTO])
    return expected.predictions[0].label


@pytest.mark.parametrize("path", ROUTES)
def test_the_bytes_decide_whatever_the_content_type_says(client, label, path):
    for kind in TYPES:
        response = client.post(
            path, content=PHOTO, headers={} if kind is None else {"content-type": kind}
        )
        assert response.status_code == 200, (kind, response.text)
        assert likeliest(response.json()) == label, kind
    twice = client.post(
        path, content=PHOTO, headers=[("content-type", "image/jpeg"), ("content-type", "text/html")]
    )
    assert likeliest(twice.json()) == label


SPELLINGS = {
    "lines": base64.encodebytes(PHOTO).decode(),
    "URL-safe without padding": base64.urlsafe_b64encode(PHOTO).decode().rstrip("="),
    "data URL": f"data:image/png;base64,{B64}",
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_base64_is_taken_by_every_route_that_takes_text(client, label, name):
    text = SPELLINGS[name]
    tensor = {"name": "image", "datatype": "BYTES", "shape": [1], "data": [text]}
    wanted = [{"name": "probabilities", "parameters": {"classification": 1}}]
    asked = [
        ("/v1/classify", {"json": {"images": [{"b64": text}]}}),
        ("/v1/classify", {"files": {"image": (None, text)}}),
        ("/predictions/zoo", {"json": {"data": text}}),
        ("/predictions/zoo", {"files": {"data": (None, text)}}),
        ("/classify", {"json": {"image": text, "top_k": 1}}),
        ("/classify", {"files": {"image": (None, text), "top_k": (None, b"1")}}),
    ]
    for path, sent in asked:
        response = client.post(path, **sent)
        assert response.status_code == 200, (path, sent, response.text)
        assert likeliest(response.json()) == label
    infer = client.post("/v2/models/zoo/infer", json={"inputs": [tensor], "outputs": wanted})
    assert infer.json()["outputs"][0]["data"][0].endswith(f":{label}"), infer.text


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_json_may_have_a_byte_order_mark_and_any_encoding_of_unicode(client, label, encoding):
    body = json.dumps({"images": [{"b64": B64}]}).encode(encoding)
    for kind in (
        "application/json",
        "application/json; charset=utf-8",
        "text/json",
        "application/vnd.api+json",
    ):
        assert (
            likeliest(
                client.post("/v1/classify", content=body, headers={"content-type": kind}).json()
            )
            == label
        )
    tensor = {"name": "image", "datatype": "BYTES", "shape": [1], "data": [B64]}
    assert (
        client.post(
            "/v2/models/zoo/infer", content=json.dumps({"inputs": [tensor]}).encode(encoding)
        ).status_code
        == 200
    )


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize(
    "field",
    ["image", "file", "data", "images", "images[]", "Image", "files[0]", "photo", "das Bild"],
)
def test_a_file_is_taken_in_the_field_that_the_client_chose(client, label, path, field):
    assert likeliest(client.post(path, files={field: PHOTO}).json()) == label


def test_several_files_in_the_fields_of_images_are_taken_in_their_order(client, classifier):
    photos = [make_photo(seed) for seed in range(4)]
    fields = zip(["images[]", "file", "images[]", "image"], photos, strict=True)
    results = client.post(
        "/v1/classify", files=[(field, ("a.png", photo)) for field, photo in fields]
    ).json()["results"]
    assert [one["predictions"][0]["label"] for one in results] == [
        one.predictions[0].label for one in classifier.classify(photos)
    ]


EMPTY_INPUT = (
    b'--x\r\nContent-Disposition: form-data; name="image"; filename=""\r\nContent-Type:'
    b" application/octet-stream\r\n\r\n\r\n"
)
FORM = {"content-type": "multipart/form-data; boundary=x"}


@pytest.mark.parametrize("field", [b"image", b"photo"])
@pytest.mark.parametrize("path", ["/v1/classify", "/predictions/zoo"])
def test_what_comes_beside_the_image_does_not_hide_it(client, label, path, field):
    """A browser's empty file input, and a text that is no option."""
    text = b"--x\r\nContent-Disposition: form-data; name=token\r\n\r\n7\r\n"
    file = (
        b"--x\r\nContent-Disposition: form-data; name="
        + field
        + b"; filename=a.png\r\n\r\n"
        + PHOTO
        + b"\r\n--x--\r\n"
    )
    assert (
        likeliest(client.post(path, content=EMPTY_INPUT + text + file, headers=FORM).json())
        == label
    )


def test_a_form_of_a_browser_without_a_choice_says_that_its_file_is_empty(client):
    problem = client.post("/v1/classify", content=EMPTY_INPUT + b"--x--\r\n", headers=FORM).json()
    assert problem["code"] == "empty_body"
    assert "received 'image' (an empty file)" in problem["detail"]


@pytest.mark.parametrize(
    ("files", "code", "detail"),
    [
        (
            [("a", PHOTO), ("b", PHOTO)],
            "bad_request",
            "received 'a' (a file), 'b' (a file): `curl -F image=@photo.jpg`",
        ),
        (
            [("image", PHOTO), ("mask", PHOTO)],
            "bad_request",
            "received 'image' (a file), 'mask' (a file)",
        ),
        ([("image", (None, b""))], "empty_body", "the field 'image' has no bytes"),
        (
            [("image", (None, b"photo.jpg"))],
            "undecodable_image",
            "the field 'image' is no base64 (9 characters",
        ),
        (
            [("image", PHOTO), ("top_k", (None, b"3"))],
            "bad_request",
            "the form has the field 'top_k'; options belong into the query, as ?top_k=...",
        ),
        ([("image", ("a.png", b""))], "empty_body", "the body has no bytes"),
        ([("url", (None, b"https://x"))], "bad_request", "received 'url' (text)"),
    ],
)
def test_a_form_that_cannot_be_used_is_told_what_it_holds(client, files, code, detail):
    problem = client.post("/v1/classify", files=files).json()
    assert problem["code"] == code, problem
    assert detail in problem["detail"]


def test_an_empty_file_among_others_keeps_its_place(client, label):
    results = client.post(
        "/v1/classify", files=[("image", ("a.png", b"")), ("image", ("b.png", PHOTO))]
    ).json()["results"]
    assert results[0]["error"]["code"] == "empty_body"
    assert likeliest(results[1]) == label


DISPOSITION = b"Content-Disposition: form-data; name=image"
PARTS = {
    ".NET": DISPOSITION + b"; filename=a.png; filename*=utf-8''a.png\r\n\r\n",
    "only an extended file name": DISPOSITION + b"; filename*=utf-8''na%C3%AFve.png\r\n\r\n",
    "no file name": DISPOSITION + b"\r\n\r\n",
    "OkHttp": (
        DISPOSITION + b'; filename="a.png"\r\nContent-Type: image/*\r\nContent-Length: 9\r\n\r\n'
    ),
    "Apache HttpClient": (
        DISPOSITION + b'; filename="a.png"\r\nContent-Type:'
        b" application/octet-stream\r\nContent-Transfer-Encoding: BINARY\r\n\r\n"
    ),
    "a browser's name": (
        b'Content-Disposition: form-data; name="image"; filename="C:\\\\photos\\\\na\xc3\xafve'
        b' ;\\"a.png"\r\n\r\n'
    ),
    "small letters": b'content-disposition:form-data;name="image";filename="a"\r\n\r\n',
}


@pytest.mark.parametrize(
    "kind", ["multipart/form-data; boundary=x", 'Multipart/Form-Data; charset=utf-8; BOUNDARY="x"']
)
@pytest.mark.parametrize("name", PARTS)
def test_parts_are_taken_as_clients_write_them(client, label, name, kind):
    body = b"--x\r\n" + PARTS[name] + PHOTO + b"\r\n--x--\r\nan epilogue"
    response = client.post("/v1/classify", content=body, headers={"content-type": kind})
    assert response.status_code == 200, response.text
    assert likeliest(response.json()) == label


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "GZIP", "gzip, gzip"])
def test_a_compressed_body_is_refused_in_words(client, encoding):
    response = client.post(
        "/v1/classify", content=gzip.compress(PHOTO), headers={"content-encoding": encoding}
    )
    assert (response.status_code, response.json()["code"]) == (415, "unsupported_content_type")
    assert "images are compressed already" in response.json()["detail"]


@pytest.mark.parametrize(
    "path",
    [
        "/v1/classify/",
        "/v1/classify?top%5Fk=1",
        "/v1/%63lassify?top_k=1",
        "/v1/classify?top_k=3&top_k=1",
        "/v1/classify/?top_k=1&",
    ],
)
def test_paths_and_queries_as_clients_write_them(client, label, path):
    assert likeliest(client.post(path, content=PHOTO).json()) == label


def test_a_slash_at_the_end_changes_neither_the_answer_nor_what_a_route_asks_for(client):
    for path in ("/v1/models", "/v1/models/zoo", "/v2", "/metrics", "/openapi.json"):
        assert client.get(f"{path}/").status_code == client.get(path).status_code == 200
    assert client.head("/v1/models/").status_code == 200
    moved = client.get("/docs/")
    assert (moved.status_code, moved.headers["location"]) == (307, "../docs")


RAW = {
    "Expect: 100-continue": (
        b"HTTP/1.1",
        b"Expect: 100-continue\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200",
    ),
    "HTTP/1.0, as nginx asks": (b"HTTP/1.0", b"Connection: close\r\n", b"HTTP/1.1 200"),
    "headers of proxies": (
        b"HTTP/1.1",
        b"Via: 1.1 x\r\nX-Forwarded-For: a, b\r\nForwarded: for=x\r\nCF-Ray: 1\r\nAccept: */*\r\n",
        b"HTTP/1.1 200",
    ),
}


@pytest.mark.parametrize("name", RAW)
def test_requests_as_clients_and_proxies_write_them(server: Server, name):
    version, headers, expected = RAW[name]
    length = b"Content-Length: %d\r\nConnection: close\r\n\r\n" % len(PHOTO)
    answer = server.ask_raw(
        b"POST /v1/classify " + version + b"\r\nHost: x\r\n" + headers + length + PHOTO
    )
    assert answer.startswith(expected)


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_a_body_in_chunks_of_any_size_is_one_image(server: Server, size):
    pieces = [PHOTO[at : at + size] for at in range(0, len(PHOTO), size)]
    chunked = (
        b"".join(b"%X;name=value\r\n%b\r\n" % (len(piece), piece) for piece in pieces)
        + b"0\r\nTrailer: x\r\n\r\n"
    )
    with server.connect() as connection:
        connection.sendall(
            b"POST /v1/classify HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + chunked
        )
        assert read_one(connection)[0] == 200


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl on the PATH")
def test_curl_as_the_readme_and_the_guides_call_it(server: Server, tmp_path, label):
    photo = tmp_path / "photo.jpg"
    photo.write_bytes(PHOTO)
    for options in (
        ["--data-binary", f"@{photo}"],
        ["-T", photo, "-X", "POST"],
        ["-F", f"image=@{photo}"],
        ["-F", f"upload=@{photo};type=image/*"],
    ):
        for path in ROUTES:
            command = [
                "curl",
                "--silent",
                "--show-error",
                "--noproxy",
                "*",
                *map(str, options),
                f"{server.url}{path}",
            ]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            assert likeliest(json.loads(done.stdout)) == label, (options, path, done.stdout)
