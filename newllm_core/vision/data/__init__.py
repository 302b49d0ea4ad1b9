"""Image data sets: training and selection images in memory, and one way to the test images."""

from newllm_core.data.errors import DataError
from newllm_core.vision.data.records import (
    ImageData,
    LabelledImages,
    Normalisation,
    channel_statistics,
    normalised,
    unit_float,
)
from newllm_core.vision.data.registry import IMAGE_SOURCES, ImageSource, images_read, locate_source
from newllm_core.vision.data.splits import OneTestReading, load_image_data, read_test_images

__all__ = [
    "IMAGE_SOURCES",
    "DataError",
    "ImageData",
    "ImageSource",
    "LabelledImages",
    "Normalisation",
    "OneTestReading",
    "channel_statistics",
    "images_read",
    "load_image_data",
    "locate_source",
    "normalised",
    "read_test_images",
    "unit_float",
]
