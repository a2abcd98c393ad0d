"""What a network is and what it sees: layers, shapes, costs, receptive fields, feature maps.

Works on the ONNX graph of a package, without torch, so that the service can use it. May import
`models.package`, `models.pixels` and `models.runtime`. Start reading at `layers.py`.
"""
