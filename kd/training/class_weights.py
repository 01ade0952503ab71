"""Weights of the classes of a train split, and of its images (--balance weights)."""

import torch


def class_weights(labels: torch.Tensor, classes: int) -> torch.Tensor:
    """Return the class weights N / (K * n_k), float32 [K], where n_k is the size of class k.

    With them, all classes have the same total weight, and the mean weight of an image is 1. A class
    without images is treated as a class of one image.

    labels   int64 [N]
    classes  K
    """
    counts = torch.bincount(labels, minlength=classes).float()
    return len(labels) / (classes * counts.clamp(min=1))


def image_weights(labels: torch.Tensor, class_weights: torch.Tensor | None) -> torch.Tensor | None:
    """Return the weight of each image [B]: w[label], or the expectation of w over its classes.

    labels         int64 [B], or probabilities of the classes [B, K]
    class_weights  w [K]; with None, the result is None
    """
    if class_weights is None:
        return None
    return labels @ class_weights if labels.ndim == 2 else class_weights[labels]
