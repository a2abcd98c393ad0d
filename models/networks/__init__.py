"""The networks themselves, in torch: the only part of `models` that imports it."""
