"""Packages from models that Loupe did not train (`loupe import`).

Every kind of model (`sources/`) becomes one ONNX graph, and a function that asks the model's own
runtime. `declared.py` says how the model wants its images, and `wrapping.py` writes that into the
graph. `head.py` and `activation_maps.py` find embedding and class-activation maps. `package.py`
compares the result with the model's own answers and writes the package: start there.
"""
