"""What a network is and what it sees: layers, shapes, costs, receptive fields, feature maps.

Works on the ONNX graph of a package, without torch, so that the service can use it. May import
`models.runtime`. Start reading at `layers.py`; `field_rules.py` has the receptive fields.
"""
