"""The service's settings: where they come from, what is refused, and in which words."""

import os
from pathlib import Path

import pytest
from pydantic import ValidationError

from models.errors import ConfigError
from service import settings as module
from service.settings import (
    HOME_PREFIX,
    ServiceSettings,
    apply_options,
    load_settings,
    metrics_folder,
    service_settings,
)


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    """No setting of the machine that runs the tests, and none that stays behind."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.upper().startswith("LOUPE_")]:
        monkeypatch.delenv(name)
    yield
    service_settings.cache_clear()


def load() -> ServiceSettings:
    return load_settings(os.environ)


def test_the_defaults():
    settings = load()
    assert (settings.host, settings.port, settings.workers, settings.model) == (
        "127.0.0.1",
        3000,
        1,
        "",
    )
    assert (settings.batch_limit, settings.max_queue_size, settings.max_queue_delay_ms) == (
        8,
        64,
        0.0,
    )
    assert (settings.deadline_ms, settings.drain_timeout_s, settings.max_body_bytes) == (
        10_000.0,
        30,
        64 << 20,
    )
    assert settings.store == Path("artifacts/store")


def test_the_environment_wins_over_the_file_and_the_file_over_the_default(monkeypatch):
    Path("loupe.toml").write_text('port = 4000\nworkers = 2\nmodel = "ants"\n', encoding="utf-8")
    monkeypatch.setenv("LOUPE_PORT", "5000")
    settings = load()
    assert (settings.port, settings.workers, settings.model, settings.threads) == (
        5000,
        2,
        "ants",
        0,
    )


def test_options_of_the_command_line_win_over_the_environment(monkeypatch):
    # Registers the names, so that they are put back at the end.
    monkeypatch.setenv("LOUPE_PORT", "5000")
    monkeypatch.setenv("LOUPE_STORE", "elsewhere")
    assert service_settings().port == 5000
    apply_options({"port": "6000", "store": "here"})
    assert (service_settings().port, service_settings().store) == (6000, Path("here"))
    assert os.environ["LOUPE_PORT"] == "6000", "workers read it from there"


def test_settings_are_read_once(monkeypatch):
    first = service_settings()
    monkeypatch.setenv("LOUPE_PORT", "5000")
    assert service_settings() is first


def test_settings_are_frozen():
    with pytest.raises(ValidationError, match="Instance is frozen"):
        load().port = 1


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("LOUPE_PROT", r"^unknown setting LOUPE_PROT\. Did you mean LOUPE_PORT\?$"),
        (
            "LOUPE_MAX_BATCHSIZE",
            r"^unknown setting LOUPE_MAX_BATCHSIZE\. Did you mean LOUPE_MAX_BATCH_SIZE\?$",
        ),
        ("loupe_port", r"^unknown setting loupe_port\. Did you mean LOUPE_PORT\?$"),
        (
            "LOUPE_XYZZY_QQ",
            (
                r"^unknown setting LOUPE_XYZZY_QQ\. Known: (LOUPE_[A-Z_]+, )*LOUPE_PORT(,"
                r" LOUPE_[A-Z_]+)*$"
            ),
        ),
    ],
)
def test_an_unknown_variable_is_refused_with_the_nearest_known(monkeypatch, name, message):
    if name == "loupe_port" and os.name == "nt":
        pytest.skip("Windows knows no small letters here")
    monkeypatch.setenv(name, "1")
    with pytest.raises(ConfigError, match=message):
        load()


def test_variables_of_others_are_none_of_our_business(monkeypatch):
    monkeypatch.setenv("LOUP_PORT", "x")
    monkeypatch.setenv("MY_LOUPE_PORT", "x")
    assert load().port == 3000


def test_an_unknown_name_in_the_file_is_refused():
    Path("loupe.toml").write_text("prot = 4000\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"^unknown setting prot\. Did you mean port\?$"):
        load()


@pytest.mark.parametrize("content", [b"port = \n", b"port = 4000\xff\n", b"port = 1\nport = 2\n"])
def test_a_file_that_is_not_toml_is_refused(content):
    Path("loupe.toml").write_bytes(content)
    with pytest.raises(ConfigError, match=r"^loupe\.toml: not TOML: "):
        load()


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("port", ["0", "65535"], ["-1", "65536", "http", ""]),
        ("workers", ["1", "256"], ["0", "257", "1.5"]),
        ("threads", ["0", "256"], ["-1", "257"]),
        ("decode_threads", ["0", "256"], ["-1", "257"]),
        ("max_batch_size", ["0", "64"], ["-1", "1025"]),
        ("max_queue_delay_ms", ["0", "9999.5"], ["-0.1", "10001", "nan"]),
        ("max_queue_size", ["16", "1000000"], ["0", "1000001"]),
        ("deadline_ms", ["0.1", "600000"], ["0", "600001", "nan", "inf"]),
        ("max_body_bytes", ["1"], ["0"]),
        ("max_inflight_bytes", ["67108864"], ["0"]),
        ("max_pixels", ["1"], ["0"]),
        ("max_side", ["1"], ["0"]),
        ("max_decode_bytes", ["1"], ["0"]),
        ("max_queue_bytes", ["1"], ["0"]),
        ("max_in_flight", ["0", "64"], ["-1", "65"]),
        ("lanes", ["0", "256"], ["-1", "257"]),
        ("decode_timeout_ms", ["0.1", "600000"], ["0", "600001", "nan"]),
        ("metrics_access", ["open"], ["closed"]),
        ("inspect", ["", "off", "open"], ["on"]),
        ("rate_limit_per_s", ["0", "0.5"], ["-1", "inf"]),
        ("rate_limit_burst", ["0", "1000000"], ["-1"]),
        ("log_format", ["json", "text"], ["xml"]),
        ("log_sample", ["0", "1"], ["-0.1", "1.1"]),
        ("drain_delay_s", ["0", "300"], ["-1", "301"]),
        ("drain_timeout_s", ["1", "3600"], ["0", "3601"]),
        ("provider", ["cpu", "cuda", "tensorrt"], ["CPU", "gpu"]),
        ("follow_interval_s", ["0.01", "3600"], ["0", "3601", "nan"]),
        ("shadow_share", ["0", "1"], ["-0.1", "1.1", "nan"]),
        ("drift_budget", ["0", "1"], ["-0.1", "1.1", "nan"]),
        ("drift_window_s", ["60", "2592000"], ["59", "2592001", "1.5"]),
        ("cache_bytes", ["0", "1000000000"], ["-1", "1k"]),
        ("tracing_share", ["0", "1"], ["-0.1", "1.1", "nan"]),
    ],
)
def test_ranges_end_where_they_say(monkeypatch, name, good, bad):
    variable = f"LOUPE_{name.upper()}"
    for text in good:
        monkeypatch.setenv(variable, text)
        assert str(getattr(load(), name)) in (text, f"{text}.0")
    for text in bad:
        monkeypatch.setenv(variable, text)
        with pytest.raises(ConfigError, match=rf"^{variable}: .* \(found '{text}'\)$"):
            load()


def test_a_queue_smaller_than_a_batch_is_refused(monkeypatch):
    monkeypatch.setenv("LOUPE_MAX_QUEUE_SIZE", "8")
    monkeypatch.setenv("LOUPE_MAX_BATCH_SIZE", "16")
    with pytest.raises(
        ConfigError,
        match="max_queue_size 8 is smaller than max_batch_size 16: no batch could ever fill",
    ):
        load()


@pytest.mark.parametrize(
    ("values", "batch", "places"),
    [
        ({}, 8, 16),
        ({"decode_threads": "3"}, 16, 16),
        ({"provider": "cuda", "max_queue_size": "1000"}, 16, 250),
        ({"lanes": "2", "provider": "cuda"}, 8, 16),
        ({"max_queue_size": "4"}, 4, 4),
        ({"max_batch_size": "32"}, 32, 32),
    ],
)
def test_a_batch_is_as_large_as_pays_where_nothing_is_set(monkeypatch, values, batch, places):
    for name, text in values.items():
        monkeypatch.setenv(f"LOUPE_{name.upper()}", text)
    settings = load()
    assert (settings.batch_limit, settings.places_of_request) == (batch, places)


def test_a_queue_delay_that_uses_up_the_deadline_is_refused(monkeypatch):
    monkeypatch.setenv("LOUPE_MAX_QUEUE_DELAY_MS", "500")
    monkeypatch.setenv("LOUPE_DEADLINE_MS", "500")
    with pytest.raises(ConfigError, match="max_queue_delay_ms 500 is not below deadline_ms 500"):
        load()
    monkeypatch.setenv("LOUPE_DEADLINE_MS", "500.5")
    assert load().deadline_ms == 500.5


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"MAX_INFLIGHT_BYTES": "99", "MAX_BODY_BYTES": "100"},
            "max_inflight_bytes 99 is smaller than max_body_bytes 100: no such body could come",
        ),
        (
            {"LANES": "2", "DECODE_THREADS": "1", "MAX_QUEUE_DELAY_MS": "2"},
            (
                "decode_threads and max_queue_delay_ms are of stages, and lanes 2 asks for none:"
                " set one or the other"
            ),
        ),
        ({"TLS_KEY": "key.pem"}, "tls_certificate and tls_key go together; one of them is missing"),
        (
            {"TLS_CERTIFICATE": "chain.pem"},
            "tls_certificate and tls_key go together; one of them is missing",
        ),
        (
            {"METRICS_ACCESS": "admin"},
            "metrics_access admin needs api_keys_file: without keys nobody could read the metrics",
        ),
        (
            {"INSPECT": "admin"},
            "inspect admin needs api_keys_file: without keys nobody could look inside",
        ),
    ],
)
def test_settings_that_contradict_each_other_are_refused(monkeypatch, values, message):
    for name, value in values.items():
        monkeypatch.setenv(f"LOUPE_{name}", value)
    with pytest.raises(ConfigError, match=message):
        load()


def test_the_workers_get_two_heaps_unless_the_operator_says_otherwise(monkeypatch):
    for name in ("BENTOML_HOME", "BENTOML_DO_NOT_TRACK"):
        monkeypatch.setenv(name, "old")
    monkeypatch.delenv("MALLOC_ARENA_MAX", raising=False)
    module.prepare_environment("new")
    assert os.environ["MALLOC_ARENA_MAX"] == "2"
    monkeypatch.setenv("MALLOC_ARENA_MAX", "7")
    module.prepare_environment("new")
    assert os.environ["MALLOC_ARENA_MAX"] == "7"


@pytest.mark.parametrize(("alias", "share"), [("candidate", "0"), ("", "0.1")])
def test_half_a_canary_is_refused(monkeypatch, alias, share):
    monkeypatch.setenv("LOUPE_CANARY_ALIAS", alias)
    monkeypatch.setenv("LOUPE_CANARY_SHARE", share)
    with pytest.raises(
        ConfigError,
        match=rf"canary_alias '{alias}' with canary_share {share}: set both, or neither$",
    ):
        load()


def test_a_collector_without_a_scheme_is_refused(monkeypatch):
    monkeypatch.setenv("LOUPE_TRACING", "collector:4318")
    with pytest.raises(
        ConfigError,
        match=(
            r"tracing is 'collector:4318'; expected the address of an OTLP/HTTP collector, such as"
            r" http://"
        ),
    ):
        load()


def test_tracing_without_its_package_says_what_to_install(monkeypatch):
    monkeypatch.setattr(module, "find_spec", lambda _: None)
    monkeypatch.setenv("LOUPE_TRACING", "http://127.0.0.1:4318")
    with pytest.raises(
        ConfigError,
        match=(
            r"tracing needs the package opentelemetry-exporter-otlp-proto-http; install Loupe with"
            r" its extra `tracing`"
        ),
    ):
        load()


def test_outside_a_server_metrics_have_no_folder(monkeypatch):
    monkeypatch.delenv("PROMETHEUS_MULTIPROC_DIR", raising=False)
    assert metrics_folder() is None
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", "there")
    assert metrics_folder() == "there"


def test_bentoml_gets_a_home_and_no_usage_reports(monkeypatch):
    monkeypatch.setenv("BENTOML_HOME", "old")
    monkeypatch.setenv("BENTOML_DO_NOT_TRACK", "False")
    module.prepare_environment("new")
    assert (os.environ["BENTOML_HOME"], os.environ["BENTOML_DO_NOT_TRACK"]) == ("new", "True")


def test_every_setting_is_described():
    """Each field is followed by its docstring, from which docs/settings.md is made."""
    source = Path(module.__file__).read_text(encoding="utf-8").splitlines()
    fields = [name for name in ServiceSettings.model_fields if name != "store"]
    assert len(fields) >= 23
    for name in fields:
        (line,) = [number for number, text in enumerate(source) if text.startswith(f"    {name}: ")]
        assert source[line + 1].startswith('    """'), name


@pytest.mark.parametrize(
    ("host", "seen"),
    [
        ("127.0.0.1", "open"),
        ("127.8.9.1", "open"),
        ("::1", "open"),
        ("localhost", "open"),
        ("0.0.0.0", "off"),
        ("::", "off"),
        ("192.0.2.7", "off"),
        ("localhost.example", "off"),
    ],
)
def test_the_inside_is_open_on_loopback_only(monkeypatch, host, seen):
    monkeypatch.setenv("BENTOML_HOME", f"/tmp/{HOME_PREFIX}x")
    assert ServiceSettings(host=host).inspection == seen
    assert ServiceSettings(host=host, inspect="off").inspection == "off"
    assert ServiceSettings(host=host, inspect="open").inspection == "open"


def test_another_starter_has_an_address_that_is_not_known(monkeypatch):
    """`bentoml serve --host 0.0.0.0` tells the settings nothing."""
    monkeypatch.setenv("BENTOML_HOME", "/home/someone/bentoml")
    assert ServiceSettings(host="127.0.0.1").inspection == "off"
