"""Each layer has one plain sentence, with its own numbers."""

import pytest

pytest.importorskip("torch")

from models.inspection.layers import layers_of
from models.inspection.sentences import sentence
from models.networks.catalogue import build
from models.networks.torch_operations import IMAGE, operations_of_network

SAID = {
    "mobilenet_v3_small": (
        "16 filters of 3x3 cells see all 3 channels: 224x224 cells become 112x112.",
        "A filter of 3x3 cells slides over each channel by itself: 112x112 cells become 56x56.",
        "Each of 10 outputs is a weighted sum of all inputs.",
    ),
    "resnet18": ("The strongest value of each 3x3 window is kept: 112x112 cells become 56x56.",),
}


@pytest.mark.parametrize("network", SAID)
def test_sentences_have_the_numbers_of_their_layer(network):
    operations = operations_of_network(build(network, num_classes=10), (224, 224))
    found = [sentence(layer) for layer in layers_of(operations, IMAGE)]
    assert [said for said in SAID[network] if said not in found] == []
    assert [said for said in found if not said.endswith(".") or len(said.split()) > 25] == []
