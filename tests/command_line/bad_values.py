"""What people, scripts and machines put where a command expects a path, a name or a number."""

from __future__ import annotations

import io
import os
import socket
import struct
import tarfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

TEXTS = {
    "empty": "",
    "blank": "   ",
    "line break": "a\nb",
    "carriage return": "a\rb",
    "tab": "a\tb",
    "terminal escape": "\x1b[31mred\x1b[0m",
    "terminal title": "\x1b]0;title\x07",
    "backspace": "a\bb",
    "delete": "a\x7fb",
    "C1 control": "a\x9bb",
    "text turned round": "gpj.\u202egnp",
    "line separator": "a\u2028b",
    "byte that is no UTF-8": "caf\udce9",
    "two such bytes": "\udcff\udcfe",
    "emoji": "\U0001f41d",
    "combining": "e\u0301",
    "decimal of another script": "\u0663",
    "dash": "-",
    "dashes": "--",
    "like an option": "-x",
    "like a long option": "--nosuch=1",
    "tilde": "~",
    "another's home": "~nobody/x",
    "percent": "%s%n%d%",
    "braces": "{0}{x!r}",
    "dollar": "$(id)${HOME}",
    "template": "$a ${b",
    "markup": "[bold]x[/] [/nothing]",
    "quotes": "'\"`",
    "semicolon": "a;b&c|d",
    "dot": ".",
    "dot dot": "..",
    "root": "/",
    "backslash": "C:\\photos\\x",
    "colon": "a:b",
    "only a colon": ":",
    "only an at": "@",
    "name and nothing": "ants:",
    "name and bad version": "ants:999999999999999999999999",
    "both": "ants@x:1",
    "star": "*",
    "open bracket": "[",
    "double star": "**",
    "equals": "=",
    "comma": ",,,",
    "long": "x" * 300,
    "very long": "x/" * 3000,
    "unknown scheme": "nosuch://x/y",
    "refused URL": "http://127.0.0.1:9/x.jpg",
    "folder kind": "folder:",
    "csv kind": "csv:",
    "tar kind": "tar:",
    "torchvision kind": "torchvision:NoSuch:/nowhere",
    "NaN": "nan",
    "infinity": "inf",
    "minus infinity": "-inf",
    "negative": "-1",
    "zero": "0",
    "huge": "9" * 400,
    "huge exponent": "1e999",
    "beyond Python": "9" * 5000,
    "fraction": "1/0",
    "hex": "0x10",
    "underscore": "1_000",
}


def contents() -> dict[str, bytes]:
    """Bytes of files that are not what they are taken for, by what is wrong with them."""
    zipped, tarred = io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(zipped, "w") as archive:
        archive.writestr("ants/manifest.json", "{}" * 500)
        archive.writestr("a/000.png", b"x" * 500)
    with tarfile.open(fileobj=tarred, mode="w") as tar:
        for name in ("a/000.png", "000.cls", "000.json", "000.jpg"):
            member = tarfile.TarInfo(name)
            member.size = 600
            tar.addfile(member, io.BytesIO(b"\xff" * 600))
    return {
        "nothing": b"",
        "junk": bytes(range(256)) * 8,
        "zeros": bytes(4096),
        "blanks": b" \n\n\t\n",
        "truncated JSON": b'{"keys": [{"name": "x", "sco',
        "list": b"[]",
        "number": b"17",
        "null": b"null",
        "string": b'"text"',
        "object of nothing": b"{}",
        "nested wrongly": (
            b'{"keys": {"a": 1}, "files": [], "labels": 3, "schema_version": "x", "images": {"a":'
            b' 1}, "variants": 3, "run_id": []}'
        ),
        "lists in lists": (
            b'{"keys": [[]], "images": [[]], "files": {"a": []}, "schema_version": 1, "variants":'
            b' [], "tolerance": "x"}'
        ),
        "deep JSON": b"[" * 100_000 + b"]" * 100_000,
        "deep objects": b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
        "huge number": b'{"schema_version": ' + b"9" * 5000 + b"}",
        "NaN": b'{"schema_version": NaN, "tolerance": Infinity}',
        "lone surrogate": (
            b'{"labels": ["\\ud800", "b"], "schema_version": 1, "keys": [{"name": "\\ud800"}]}'
        ),
        "UTF-16": '{"schema_version": 1}'.encode("utf-16"),
        "byte-order mark": b'\xef\xbb\xbf{"schema_version": 1}',
        "Latin-1": "path,label\ncafé.png,bière\n".encode("latin-1"),
        "CRLF table": b"path,label\r\na.png,x\r\nb.png,y\r\n",
        "CR table": b"path,label\ra.png,x\rb.png,y\r",
        "table of NUL": b"path,label\na\0.png,x\n",
        "table with one odd row": b"path,label\na.png,x\nb.png\nc.png,z,1,2\n",
        "table without a header": b"a.png,x\nb.png,y\n",
        "open quote": b'path,label\n"a.png,x\nb.png,y\n',
        "megabyte cell": b"path,label\n" + b"x" * 1_000_000 + b",y\n",
        "long line": b"x" * 300_000,
        "paths that cannot be": (
            b"path,label\n"
            + b"x" * 5000
            + b".png,a\n\x1b[31m.png,b\n../../etc/passwd,c\n,d\n\xf0\x9f\x90\x9d.png,\n"
        ),
        "JSON lines": (
            b'{"path": 17}\n[]\n{"path": null}\n{"path": "\\ud800.png"}\n{"path":'
            b' "a\\u0000.png"}\n{"pa'
        ),
        "truncated TOML": b'[loupe\nstore = "',
        "TOML": b"store = [1, 2]\nworkers = 'x'\n",
        "truncated zip": zipped.getvalue()[:-30],
        "zip of other things": zipped.getvalue(),
        "zip with a wrong length": (
            zipped.getvalue().replace(struct.pack("<I", 500), struct.pack("<I", 400_000_000))
        ),
        "truncated tar": tarred.getvalue()[:1500],
        "tar of other things": tarred.getvalue(),
        "gzip": b"\x1f\x8b\x08\x00" + b"\xff" * 60,
        "truncated parquet": b"PAR1" + b"\x15\x04" * 40 + b"PAR1",
        "truncated ONNX": b"\x08\x0a\x12\x05loupe\x3a\xff\xff\xff\x0f\x0a",
        "truncated safetensors": struct.pack("<Q", 10_000) + b'{"weight": {"dtype": "F32"',
        "safetensors without end": struct.pack("<Q", 2**62),
        "truncated PNG": b"\x89PNG\r\n\x1a\n" + b"\0\0\0\rIHDR\0\0\0\x08\0\0\0\x08\x08\x02\0\0\0",
        "JPEG header": b"\xff\xd8\xff\xe0\x00\x10JFIF",
        "pickle": b"\x80\x04\x95\x0c\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x94.",
    }


def odd_files(folder: Path) -> dict[str, Path]:
    """Paths to what is no usable file or folder, created in *folder*."""
    folder.mkdir()
    (folder / "file.txt").write_text("x")
    (folder / "folder").mkdir()
    (folder / "folder" / "x.txt").write_text("x")
    (folder / "empty").mkdir()
    (folder / "dangling").symlink_to("gone")
    (folder / "loop").symlink_to("loop")
    (folder / "circle").mkdir()
    (folder / "circle" / "again").symlink_to("../circle")
    for name, mode in (("secret.txt", 0o000), ("writeonly.txt", 0o200), ("readonly.txt", 0o444)):
        (folder / name).write_text("x")
        (folder / name).chmod(mode)
    for name, mode in (("closed", 0o000), ("unlisted", 0o311), ("fixed", 0o555)):
        (folder / name).mkdir()
        (folder / name / "x.txt").write_text("x")
        (folder / name).chmod(mode)
    os.mkfifo(folder / "pipe")
    listener = socket.socket(socket.AF_UNIX)
    # By descriptor: the address of a socket has at most 107 bytes.
    here = os.open(folder, os.O_RDONLY)
    listener.bind(f"/proc/self/fd/{here}/socket")
    os.close(here)
    listener.close()
    named = {name: folder / name for name in sorted(path.name for path in folder.iterdir())}
    return {f"an odd {what}": path for what, path in named.items()} | {
        "missing": folder / "missing",
        "in nothing": folder / "no" / "such" / "x",
        "below a file": folder / "file.txt" / "x",
        "in a closed folder": folder / "closed" / "x.txt",
        "new in a fixed folder": folder / "fixed" / "new",
        "new below a dangling link": folder / "dangling" / "new",
        "new below a loop": folder / "loop" / "new",
        "name of 255 bytes": folder / ("n" * 255),
        "name of 256 bytes": folder / ("n" * 256),
        "nothing at all": Path("/dev/null"),
        "full": Path("/dev/full"),
        "zero": Path("/dev/zero"),
        "of the kernel": Path("/proc/self/mem"),
    }


def bad_files(folder: Path, *, suffixes: Sequence[str]) -> dict[str, Path]:
    """Files of every content in `contents`, under each of *suffixes*."""
    folder.mkdir()
    found = {}
    for number, (what, content) in enumerate(contents().items()):
        for suffix in suffixes:
            path = folder / f"{number}{suffix}"
            path.write_bytes(content)
            found[f"{what} as {suffix or 'no suffix'}"] = path
    return found
