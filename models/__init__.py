"""What a model is: the package on disk, its preprocessing, the store and the runtime.

Torch-free but for `models.networks`.
"""

import os

# ONNX Runtime 1.29 and newer reports usage to its maker unless it is told not to before it is first
# imported, which this package comes before.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
