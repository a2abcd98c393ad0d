"""Images to answers: decoding, batching, inference. Knows no HTTP and no BentoML.

Start with `pipeline.py`. `lanes.py` is the CPU's way, `stages.py` with `decoding.py` and
`batcher.py` the GPU's; `classifier.py` makes labels of probabilities.
"""
