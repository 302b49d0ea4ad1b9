"""Image data sets: training and selection images in memory, and one way to the test images."""

from newllm_core.vision.data.records import ImageData, LabelledImages, Normalisation, normalised
from newllm_core.vision.data.registry import IMAGE_SOURCES, images_read, locate_source
from newllm_core.vision.data.splits import OneTestReading, load_image_data, read_test_images

__all__ = [
    "IMAGE_SOURCES",
    "ImageData",
    "LabelledImages",
    "Normalisation",
    "OneTestReading",
    "images_read",
    "load_image_data",
    "locate_source",
    "normalised",
    "read_test_images",
]
