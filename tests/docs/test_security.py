"""Each promise of SECURITY.md has a test, and the container files do what it says."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
FROM = (
    "network",
    "other users",
    "neighbouring container",
    "model file",
    "image",
    "training data",
    "supply chain",
)


def sections() -> dict[str, str]:
    """Text by heading."""
    parts = re.split(r"^## (.*)$", TEXT, flags=re.MULTILINE)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


def test_every_test_that_keeps_a_promise_exists():
    named = set(re.findall(r"`(tests/[^`]+)`", TEXT))
    assert len(named) >= 20
    assert sorted(name for name in named if not (ROOT / name).is_file()) == []


def test_security_lists_every_attacker():
    found = sections()
    assert len(found) == len(FROM)
    for heading, origin in zip(found, FROM, strict=True):
        assert origin in heading
        assert "\nPromised:\n" in found[heading]
        assert "\nNot promised: " in found[heading]


def test_every_promise_names_a_test():
    promised = [
        text.split("Promised:")[1].split("Not promised:")[0] for text in sections().values()
    ]
    rows = [row for text in promised for row in re.split(r"^- ", text, flags=re.MULTILINE)[1:]]
    assert len(rows) >= 20
    assert [row for row in rows if "`tests/" not in row] == []


def test_outdated_statements_do_not_return():
    for phrase in ("no authentication", "speaks plain HTTP", "No URL is ever fetched"):
        assert phrase not in TEXT
    assert "`LOUPE_API_KEYS_FILE`" in TEXT


def test_the_image_runs_without_root_on_a_read_only_file_system():
    dockerfile = (ROOT / "docker" / "Dockerfile").read_text(encoding="utf-8")
    users = re.findall(r"^USER (\d+):(\d+)$", dockerfile, re.MULTILINE)
    assert users
    assert "0" not in users[-1]
    compose = (ROOT / "docker" / "compose.yaml").read_text(encoding="utf-8")
    assert "read_only: true" in compose
    assert "cap_drop: [ALL]" in compose
