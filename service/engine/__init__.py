"""Images to answers: decoding, batching, inference. Knows no HTTP and no BentoML.

Start with `pipeline.py`. `worker_pool.py` holds what waits; `lanes.py` shares it out on a CPU,
`stages.py` on a GPU. `classifier.py` makes labels of probabilities.
"""
