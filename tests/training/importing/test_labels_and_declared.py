"""Labels and preprocessing as people write them down."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from models.errors import ConfigError
from models.package.manifest import PreprocessSpec
from training.importing.declared import normalisation, preprocess_spec, read_declared
from training.importing.labels import read_labels


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("a.txt", "ant\nbee\n", ("ant", "bee")),
        ("a.txt", "\ufeffant\r\nbee\r\n\r\n", ("ant", "bee")),
        ("a.json", '["ant", "bee"]', ("ant", "bee")),
        ("a.json", '{"1": "bee", "0": "ant"}', ("ant", "bee")),
        ("a.json", '{"0": ["n01", "ant"], "1": ["n02", "bee"]}', ("ant", "bee")),
        ("a.json", '{"ant": 0, "bee": 1}', ("ant", "bee")),
        ("a.txt", "crane\nbee\ncrane\n", ("crane (0)", "bee", "crane (2)")),
    ],
)
def test_labels_are_read_as_tools_write_them(tmp_path, name, text, expected):
    path = tmp_path / name
    path.write_bytes(text.encode())
    assert read_labels(path) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "hold 0 labels; expected two or more"),
        ("ant\n\nbee\n", "no name for index 1"),
        ('{"0": "ant", "2": "bee"}', "have no index 1; expected 0 to 1"),
        ('{"zero": "ant"}', "expected an object of index to label"),
        ("[1", "are not JSON"),
    ],
)
def test_labels_that_do_not_fit_are_refused(tmp_path, text, message):
    path = tmp_path / "labels.txt"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_labels(path)


def test_later_words_win_over_earlier_ones_and_over_files(tmp_path):
    path = tmp_path / "spec.toml"
    path.write_text('size = [64, 48]\nrange = "0..255"\nmean = [1, 2, 3]\nresize = "stretch"\n')
    found = read_declared([str(path), "channels=bgr", "mean=4,5,6", "resize_size=80"])
    spec, how = preprocess_spec(found), normalisation(found, channels=3)
    assert (spec.crop, spec.resize, spec.stretch_size) == ((64, 48), "stretch", 80)
    assert (how.channels, how.multiply, how.subtract) == ("bgr", (1.0,) * 3, (4.0, 5.0, 6.0))
    assert how.in_words() == "BGR of 0 to 255, less 4, 5, 6"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["imagenett"], "neither a TOML file, nor FIELD=VALUE, nor one of imagenet, half"),
        (["sise=224"], "there is no field sise. Fields: size, resize"),
        (["resize=squash"], "resize: Input should be 'shortest_side', 'stretch' or 'letterbox'"),
        (["size=0"], "size"),
    ],
)
def test_words_that_mean_nothing_are_refused_with_those_that_do(words, message):
    with pytest.raises(ConfigError, match=message):
        read_declared(words)


@pytest.mark.parametrize(
    ("words", "channels", "message"),
    [
        (["mean=1,2"], 3, "mean has 2 numbers, but the model takes 3 channels"),
        (["std=0"], 3, "std=0: expected numbers above 0"),
        (["channels=grey"], 3, "channels=grey, but the model takes 3 channels"),
        (["channels=bgr"], 1, "channels=bgr, but the model takes 1 channel;"),
    ],
)
def test_numbers_that_contradict_the_channels_are_refused(words, channels, message):
    with pytest.raises(ConfigError, match=message):
        normalisation(read_declared(words), channels=channels)


def test_geometry_that_contradicts_itself_is_refused():
    with pytest.raises(ConfigError, match="resize_size 200 is smaller than crop"):
        preprocess_spec(read_declared(["size=224", "resize_size=200"]))
    with pytest.raises(ValidationError, match="recompress is for resize stretch"):
        PreprocessSpec(recompress=75)
