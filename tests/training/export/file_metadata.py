"""What the exporter wrote into an ONNX file about it."""

import onnx

from training.export.onnx_file import METADATA_PREFIX


def metadata_of(encoded):
    """What `described` wrote into *encoded*."""
    props = onnx.ModelProto.FromString(encoded).metadata_props
    return {
        entry.key.removeprefix(METADATA_PREFIX): entry.value
        for entry in props
        if entry.key.startswith(METADATA_PREFIX)
    }
