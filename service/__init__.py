"""From a package to answers: preprocessing, batching, HTTP. Never imports torch or `training`."""
