"""Pictures of feature maps: what is drawn of large maps, constant ones, and values that are none."""

import base64
import io
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from models.errors import BadRequest
from service.inspection.contact_sheet import CELLS_MAX, Channels, channels_of, values_of

LAYER = SimpleNamespace(name="conv1")


def drawn(values_Chw, text="0-63"):
    found = channels_of(np.asarray(values_Chw, np.float32), Channels.parse(text), LAYER)
    sheet = np.asarray(Image.open(io.BytesIO(base64.b64decode(found["sheet_png"]))))
    return found, sheet


def test_each_tile_is_scaled_from_its_own_least_to_its_greatest_value():
    found, sheet = drawn([[[0.0, 1.0]], [[-5.0, 5.0]], [[7.0, 7.0]]])
    assert sheet.tolist() == [[0, 255, 0, 255, 0, 0]]
    assert found["ranges"] == [[0.0, 1.0], [-5.0, 5.0], [7.0, 7.0]]
    assert found["zeros"] == [0.5, 0.0, 0.0]


def test_large_maps_are_averaged_and_many_channels_fill_rows():
    found, sheet = drawn(np.ones((20, 224, 224)), "4-15")
    assert (found["channels"], found["columns"]) == (list(range(4, 16)), 8)
    assert found["tile"] == [CELLS_MAX, CELLS_MAX]
    assert sheet.shape == (2 * CELLS_MAX, 8 * CELLS_MAX)


def test_values_that_are_no_numbers_are_counted_and_drawn_as_zero():
    found, sheet = drawn([[[np.nan, np.inf, -np.inf, 2.0]]])
    assert (found["ranges"], found["not_finite"]) == ([[0.0, 2.0]], 3)
    assert sheet.tolist() == [[0, 0, 0, 255]]
    assert values_of(np.float32([np.nan, 1.5]), LAYER) == {"values": [None, 1.5]}


def test_what_is_neither_a_map_nor_a_vector_is_refused():
    with pytest.raises(BadRequest, match="gives 49x768 values, which are neither maps nor"):
        values_of(np.zeros((49, 768), np.float32), LAYER)
