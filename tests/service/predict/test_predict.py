"""`loupe predict`: what is in a photo, said without a server; a bad photo fails alone."""

import http.server
import json
import re
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import loupe
from models.errors import UrlRefused, UrlUnreachable
from models.package.manifest_file import read_manifest, write_manifest
from models.store.store import Store
from service.engine.classifier import Classifier
from service.predict import fetching
from tests.models.packages import build_package, record_again
from tests.training.photos import photo, write_photos
from training.edge.build import build

LABELS = ("ants", "bees", "wasps")


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    return build_package(tmp_path_factory.mktemp("made") / "package", labels=LABELS, cam=True)


@pytest.fixture(scope="module")
def bundle(package, tmp_path_factory):
    place = tmp_path_factory.mktemp("bundle") / "small.zip"
    return build(package, place, targets=("python",)).path


@pytest.fixture
def photos(tmp_path):
    return write_photos(tmp_path / "photos", {"red": 2, "blue": 1})


@pytest.fixture
def one(photos):
    return photos / "red/000.png"


def said(capsys, *arguments):
    status = loupe.run(["predict", *map(str, arguments)])
    return status, *capsys.readouterr()


def lines_of(out):
    return [json.loads(line) for line in out.splitlines()]


def test_a_photo_gets_the_answer_of_the_classifier(package, one, capsys):
    status, out, err = said(capsys, one, "--model", package, "--json")
    [line], [expected] = lines_of(out), Classifier.open(package).classify([one.read_bytes()])
    assert (status, err, line["photo"], line["abstained"]) == (0, "", str(one), False)
    assert [(p["label"], p["index"], p["probability"]) for p in line["predictions"]] == [
        tuple(prediction) for prediction in expected.predictions
    ]
    assert line["model"] == {"name": "package", "version": None}


def test_the_table_has_top_k_rows_and_fits_80_columns(package, one, capsys):
    long = one.with_name("漢" * 60 + ".png")
    long.write_bytes(one.read_bytes())
    status, out, _ = said(capsys, one, long, "--model", package, "--top-k", "2")
    rows = out.splitlines()
    assert status == 0
    assert re.match(r"photo +answer +share$", rows[0])
    assert len(rows) == 2 + 2 * 2 + 1
    assert rows[2].startswith("…")
    assert rows[2].split()[0].endswith("red/000.png")
    from rich.cells import cell_len

    assert max(map(cell_len, rows)) <= 80
    assert rows[-1].startswith("2 photos: ")


def test_a_bad_photo_fails_alone_and_the_status_says_so(package, photos, capsys):
    (photos / "red/junk.jpg").write_bytes(b"junk")
    (photos / "notes.txt").write_text("x")
    status, out, err = said(capsys, photos, "nosuch.png", "--model", package, "--json")
    found = [line for line in lines_of(out) if "blue" not in line["photo"]]
    lines = {Path(line["photo"]).name: line for line in found}
    assert status == 1
    assert list(lines) == ["000.png", "001.png", "junk.jpg", "nosuch.png"]
    assert [name for name, line in lines.items() if "error" in line] == ["junk.jpg", "nosuch.png"]
    assert lines["junk.jpg"]["error"]["code"] == "undecodable_image"
    assert lines["nosuch.png"]["error"]["detail"].startswith("there is no such file")
    status, out, err = said(capsys, photos, "--model", package)
    assert re.search(r"^error: .*junk\.jpg: received 4 bytes", err, re.MULTILINE)
    assert out.splitlines()[-1].endswith("failed 1")


def test_a_folder_without_photos_says_what_is_in_it(package, tmp_path, capsys):
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos/a.mp4").write_bytes(b"x")
    status, _, err = said(capsys, tmp_path / "videos", "--model", package)
    assert status == 1
    assert err.endswith("the folder has no photos: 1 file is not an image: .mp4\n")


def test_a_folder_called_like_a_photo_is_a_folder(package, photos, capsys):
    (photos / "red").rename(photos / "red.png")
    status, out, _ = said(capsys, photos, "--model", package, "--json")
    assert (status, len(lines_of(out))) == (0, 3)


def test_other_places_than_http_are_refused_with_what_reads_them(package, capsys):
    status, _, err = said(capsys, "s3://bucket/photo.jpg", "--model", package)
    assert status == 1
    assert "`loupe score` reads buckets" in err
    status, _, err = said(capsys, "http://[x/photo.jpg", "--model", package)
    assert status == 1
    assert err.startswith("error: http://[x/photo.jpg: this is not a URL: ")


def test_an_abstained_answer_says_so(package, one, tmp_path, capsys):
    import shutil

    careful = shutil.copytree(package, tmp_path / "careful")
    write_manifest(careful, read_manifest(careful).model_copy(update={"abstain_threshold": 0.9999}))
    record_again(careful)
    plain = said(capsys, one, "--model", careful)[1]
    assert "no answer: below 100.0%" in plain
    assert lines_of(said(capsys, one, "--model", careful, "--json")[1])[0]["abstained"]


def test_heat_maps_lie_beside_a_photo_but_never_among_a_folders_photos(
    package, photos, one, capsys
):
    before = sorted(photos.rglob("*"))
    status, out, _ = said(capsys, photos, "--model", package, "--explain")
    assert status == 0
    assert sorted(photos.rglob("*")) == before
    heats = sorted((photos.parent / "photos.heat").rglob("*.png"))
    assert [path.relative_to(photos.parent / "photos.heat").as_posix() for path in heats] == [
        "blue/000.png.heat.png",
        "red/000.png.heat.png",
        "red/001.png.heat.png",
    ]
    assert out.count("heat map: ") == 3
    said(capsys, one, "--model", package, "--explain")
    with Image.open(f"{one}.heat.png") as picture:
        assert picture.size == (8, 8)
    # Then that picture is no photo of the folder.
    assert len(lines_of(said(capsys, photos, "--model", package, "--json")[1])) == 3


def test_two_photos_of_one_name_get_two_heat_maps(package, photos, tmp_path, capsys):
    same = [photos / "red/000.png", photos / "blue/000.png"]
    options = ("--model", package, "--explain", "--out", tmp_path / "heat", "--json")
    _, out, _ = said(capsys, *same, *options)
    places = [Path(line["heat_map"]) for line in lines_of(out)]
    assert [place.name for place in places] == ["000.png.heat.png", "2-000.png.heat.png"]
    assert all(place.is_file() for place in places)


def test_a_model_without_maps_refuses_to_explain(bundle, one, capsys):
    status, _, err = said(capsys, one, "--model", bundle, "--explain")
    assert status == 1
    assert "small computes no heat maps" in err


def test_out_without_explain_is_refused(package, one, tmp_path, capsys):
    assert said(capsys, one, "--model", package, "--out", tmp_path / "x")[0] == 2


def test_an_edge_bundle_and_a_packed_model_answer_as_their_package(
    package, bundle, one, tmp_path, capsys
):
    store = Store(tmp_path / "store")
    store.publish(package, name="insects")
    packed = tmp_path / "packed.zip"
    assert (
        loupe.run(["models", "pack", "insects", "--out", str(packed), "--store", str(store.root)])
        == 0
    )
    import zipfile

    with zipfile.ZipFile(bundle) as archive:
        archive.extractall(tmp_path / "unpacked")
    capsys.readouterr()
    found = [
        lines_of(said(capsys, one, "--model", model, "--json", "--store", store.root)[1])[0]
        for model in (package, bundle, tmp_path / "unpacked", packed, "insects", "insects:1")
    ]
    # The bundle's graph is cut down, and may add in another order.
    first, *others = [[p["probability"] for p in line["predictions"]] for line in found]
    for other in others:
        np.testing.assert_allclose(other, first, atol=1e-6)
    assert found[-1]["model"] == {"name": "insects", "version": 1}


def test_a_damaged_bundle_is_refused(bundle, one, tmp_path, capsys):
    import zipfile

    changed = tmp_path / "changed.zip"
    with zipfile.ZipFile(bundle) as old, zipfile.ZipFile(changed, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            new.writestr(name, content + b"x" if name == "variants/fp32.onnx" else content)
    status, _, err = said(capsys, one, "--model", changed)
    assert status == 1
    assert "variants/fp32.onnx was changed after export" in err
    cut = tmp_path / "cut.zip"
    cut.write_bytes(bundle.read_bytes()[:-40])
    assert said(capsys, one, "--model", cut)[0] == 1


def test_the_only_model_of_the_store_needs_no_name(package, one, tmp_path, capsys):
    store = Store(tmp_path / "store")
    status, _, err = said(capsys, one, "--store", store.root)
    assert status == 1
    assert "has no model" in err
    store.publish(package, name="insects")
    assert said(capsys, one, "--store", store.root)[0] == 0
    store.publish(package, name="more")
    status, _, err = said(capsys, one, "--store", store.root)
    assert status == 1
    assert "several models (insects, more); say which with --model" in err


def test_standard_input_is_a_photo_too(package, one):
    words = [sys.executable, "-m", "loupe", "predict", "-", "--model", str(package), "--json"]
    root = Path(loupe.__file__).parent
    done = subprocess.run(words, input=one.read_bytes(), capture_output=True, check=True, cwd=root)
    assert json.loads(done.stdout)["photo"] == "-"


@pytest.mark.slow
def test_it_starts_without_torch_in_about_a_second(package, one):
    """CPU time, because other work of the machine must not count; 0.6 s when it was written."""
    root = Path(loupe.__file__).parent
    code = (
        "import loupe, resource, sys\n"
        f"assert loupe.run(['predict', {str(one)!r}, '--model', {str(package)!r}]) == 0\n"
        "used = resource.getrusage(resource.RUSAGE_SELF)\n"
        "print('torch' in sys.modules, used.ru_utime + used.ru_stime)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root
    )
    torch, seconds = done.stdout.split()[-2:]
    assert torch == "False"
    assert float(seconds) < 2.0


def test_predicting_imports_no_torch(package, one):
    root = Path(loupe.__file__).parent
    code = f"import loupe, sys; loupe.run(['predict', {str(one)!r}, '--model', {str(package)!r}])"
    code += "; print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root
    )
    assert done.stdout.splitlines()[-1] == "False"


class _Site(http.server.BaseHTTPRequestHandler):
    """Answers by path."""

    def do_GET(self):
        picture = photo("red", 0)
        answers = {
            "/photo.png": (200, {"Content-Type": "image/png"}, picture),
            "/page": (200, {"Content-Type": "text/html; charset=utf-8"}, b"<html></html>"),
            "/moved": (302, {"Location": "/photo.png"}, b""),
            "/away": (302, {"Location": self.server.away}, b""),
            "/round": (302, {"Location": "/round"}, b""),
        }
        status, headers, body = answers.get(self.path, (404, {}, b"no"))
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def site(monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Site)
    port = server.server_port
    server.away = f"http://localhost:{port}/photo.png"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_url_is_fetched_also_behind_a_redirect(site, package, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    urls = (f"{site}/photo.png", f"{site}/moved")
    status, out, _ = said(capsys, *urls, "--model", package, "--json", "--explain")
    assert status == 0
    first, second = lines_of(out)
    assert first["predictions"] == second["predictions"]
    assert (first["heat_map"], second["heat_map"]) == ("photo.png.heat.png", "moved.heat.png")


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/page", "this is a web page; give the address of the picture in it"),
        ("/nothing", "the server answered 404 Not Found"),
        ("/round", "more than 5 redirects"),
    ],
)
def test_a_url_without_a_photo_says_what_came(site, path, words):
    with pytest.raises(UrlUnreachable, match=words):
        fetching.fetch(f"{site}{path}", max_bytes=2**20)


def test_a_url_may_not_lead_into_a_private_network(site):
    """The user typed one host, and a stranger's redirect names another."""
    with pytest.raises(UrlRefused, match="redirects to localhost, which is in a private network"):
        fetching.fetch(f"{site}/away", max_bytes=2**20)


def test_a_url_may_not_send_without_end(site):
    with pytest.raises(UrlUnreachable, match="more than 10 bytes came"):
        fetching.fetch(f"{site}/photo.png", max_bytes=10)


def test_a_server_that_is_not_there_is_one_failed_photo(package, capsys):
    status, _, err = said(capsys, "http://127.0.0.1:9/x.png", "--model", package)
    assert status == 1
    assert err.startswith("error: http://127.0.0.1:9/x.png: no photo came: ")
