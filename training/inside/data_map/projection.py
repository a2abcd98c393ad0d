"""From many dimensions to two.

Letters used in shapes: N photos, D embedding features.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

Method = Literal["pca", "tsne"]
TSNE_FROM = 50
"""Dimensions that t-SNE starts from, as its authors advise."""
PERPLEXITY = 30.0


def projected(vectors_ND: NDArray[np.float32], method: Method) -> tuple[NDArray[np.float64], str]:
    """The places of the rows in a square of side 1, [N,2], and what the axes are.

    The same rows give the same places. Source: van der Maaten and Hinton 2008 for t-SNE.
    """
    from sklearn.decomposition import PCA

    dimensions = min(*vectors_ND.shape, 2 if method == "pca" else TSNE_FROM)
    solver = "full" if min(vectors_ND.shape) < 500 else "arpack"
    found = PCA(dimensions, svd_solver=solver, random_state=0)
    places_ND = found.fit_transform(vectors_ND.astype(np.float64))
    if method == "pca":
        first, second = (*found.explained_variance_ratio_, 0.0)[:2]
        axes = (
            "Axes: the two principal components, which hold"
            f" {first:.0%} and {second:.0%} of the variance."
        )
    else:
        places_ND = _tsne(places_ND)
        axes = "t-SNE: neighbours stay neighbours; distances between groups mean nothing."
    return _in_square(places_ND), axes


def _tsne(places_ND: NDArray[np.float64]) -> NDArray[np.float64]:
    from sklearn.manifold import TSNE

    perplexity = min(PERPLEXITY, (len(places_ND) - 1) / 3)
    return np.asarray(TSNE(perplexity=perplexity, random_state=0).fit_transform(places_ND))


def _in_square(places_ND: NDArray[np.float64]) -> NDArray[np.float64]:
    """Both axes in one scale, in the middle of the square."""
    places_N2 = np.zeros((len(places_ND), 2))
    places_N2[:, : places_ND.shape[1]] = places_ND[:, :2]
    low_2, high_2 = places_N2.min(axis=0), places_N2.max(axis=0)
    side = max(float((high_2 - low_2).max()), 1e-12)
    return np.asarray(0.5 + (places_N2 - (low_2 + high_2) / 2) / side)
