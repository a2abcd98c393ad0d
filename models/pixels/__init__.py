"""Encoded bytes to `uint8 [H,W,3]`: the one preprocessing of training, service, scoring and edge.

Start with `preprocess.py`. `containers/` reads headers, `decoders.py` decodes, `colour.py`
converts to sRGB, `geometry.py` resizes and crops. The edge bundle ships this folder, so it imports
neither pydantic nor onnx.
"""
