"""From a package to answers: preprocessing, batching and HTTP. Never imports torch or `training`."""
