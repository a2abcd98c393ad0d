"""API keys: what is written down, who is known, and what is refused."""

import json
import logging
import stat
from pathlib import Path

import pytest
from click.testing import CliRunner

from loupe import cli
from models.errors import ConfigError
from service import keys as module
from service.keys import KeyRing, add_key, read_keys, remove_key


@pytest.fixture
def file(tmp_path) -> Path:
    return tmp_path / "keys.json"


def test_a_key_is_known_by_itself_alone_and_its_file_does_not_hold_it(file):
    secret = add_key(file, name="app", scopes=("predict",))
    assert secret.startswith("loupe_")
    assert len(secret) > 40
    assert secret not in file.read_text(encoding="utf-8")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    ring = KeyRing(file)
    assert ring.owner(secret).name == "app"
    for near in (secret[:-1], secret + "x", secret.upper(), "", "\udcff"):
        assert ring.owner(near) is None


def test_each_key_leads_to_its_own_name_and_a_removed_one_to_nobody(file, monkeypatch):
    monkeypatch.setattr(module, "LOOK_AGAIN_S", 0.0)
    secrets = {name: add_key(file, name=name, scopes=("predict", "admin")) for name in ("a", "b", "c")}
    ring = KeyRing(file)
    assert [ring.owner(secret).name for secret in secrets.values()] == ["a", "b", "c"]
    remove_key(file, name="b")
    assert [key.name for key in read_keys(file)] == ["a", "c"]
    assert ring.owner(secrets["b"]) is None
    assert ring.owner(secrets["c"]).scopes == ("predict", "admin")


def test_a_file_that_was_spoilt_leaves_the_keys_as_they_were(file, monkeypatch, caplog):
    monkeypatch.setattr(module, "LOOK_AGAIN_S", 0.0)
    monkeypatch.setattr(logging.getLogger("loupe"), "propagate", True)
    secret = add_key(file, name="app", scopes=("predict",))
    ring = KeyRing(file)
    file.write_text("{", encoding="utf-8")
    assert ring.owner(secret).name == "app"
    assert ring.owner(secret).name == "app"
    (record,) = caplog.records
    assert record.getMessage().startswith(f"the API keys stay as they were: {file} is no file of API keys: ")


@pytest.mark.parametrize("content", ["", "[]", '{"keys": 1}', '{"keys": [{"name": "a"}]}', '{"keys": [{"nom": "a", "scopes": []}]}'])
def test_what_is_no_file_of_keys_is_refused(file, content):
    file.write_text(content, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"is no file of API keys: .*`loupe keys add` writes one$"):
        read_keys(file)


@pytest.mark.parametrize(("field", "value"), [("scopes", ["root"]), ("sha256", "abcd")])
def test_a_key_with_an_unknown_scope_or_hash_is_refused(file, field, value):
    add_key(file, name="app", scopes=("predict",))
    document = json.loads(file.read_text(encoding="utf-8"))
    document["keys"][0][field] = value
    file.write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"the key of 'app' has an unknown scope or no SHA-256; scopes are predict, admin$"):
        read_keys(file)


def test_the_commands_add_list_and_remove(file):
    run = CliRunner()
    added = run.invoke(cli, ["keys", "add", "app", "--scope", "admin", "--scope", "predict", "--file", str(file)])
    assert KeyRing(file).owner(added.output.strip()).scopes == ("admin", "predict")
    listed = run.invoke(cli, ["keys", "list", "--file", str(file)]).output
    assert listed.split()[:2] == ["app", "admin,predict"]
    again = run.invoke(cli, ["keys", "add", "app", "--file", str(file)])
    assert str(again.exception) == f"{file} has a key of 'app' already; `loupe keys remove app` takes it away"
    assert run.invoke(cli, ["keys", "remove", "app", "--file", str(file)]).exit_code == 0
    assert str(run.invoke(cli, ["keys", "remove", "app", "--file", str(file)]).exception) == f"{file} has no key of 'app'; it has none"
    assert str(run.invoke(cli, ["keys", "add", "../x", "--file", str(file)]).exception).startswith("key name '../x' cannot be used: expected ")


def test_without_a_file_the_command_says_how_to_name_one(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LOUPE_API_KEYS_FILE", raising=False)
    module_settings = pytest.importorskip("service.settings")
    module_settings.service_settings.cache_clear()
    assert str(CliRunner().invoke(cli, ["keys", "list"]).exception) == "which file of keys? Say --file FILE, or set LOUPE_API_KEYS_FILE"
    module_settings.service_settings.cache_clear()
