"""What a model is: the package on disk, its preprocessing, the store and the runtime. Torch-free but for `models.architectures`."""
