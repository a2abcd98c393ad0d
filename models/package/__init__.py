"""A model package on disk: `manifest.json`, `model.onnx`, golden images.

`verify.py` is where to start: nothing in a package is used before `verify_package` passed it.
`manifest.py` has every field. Imports the top of `models` alone.
"""
