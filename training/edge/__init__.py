"""The edge bundle: a model package as one zip for small machines and browsers. Needs no torch."""
