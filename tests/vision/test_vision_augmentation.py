"""Augmentation of training batches: what each part does to images and targets, and that its draws are reproducible."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from newllm_core.config.schema import ConfigError
from newllm_core.vision.config import AugmentationConfig, VisionDataConfig, augmentation_pack
from newllm_core.vision.data import ImageData, LabelledImages, Normalisation, load_image_data, normalised
from newllm_core.vision.data.augmentation import (
    Augmentation,
    AugmentedBatch,
    drawing,
    mixed,
    random_boxes,
    random_crop,
    smoothed_targets,
)
from newllm_core.vision.data.rand_augment import OPERATIONS, affine_matrices, apply_operations, rand_augment

COUNT = 96  # images in a batch


def image_data(channels: int = 3, side: int = 16, mirrorable: bool = True) -> ImageData:
    """Noise in five classes, normalised to itself, so that images can be told apart pixel by pixel."""
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(1, 256, (COUNT, channels, side, side), generator=generator).to(torch.uint8)
    part = LabelledImages(pixels, torch.arange(COUNT) % 5)
    unchanged = Normalisation((0.0,) * channels, (1.0,) * channels)
    return ImageData(part, part, tuple("abcde"), {}, unchanged, mirrorable)


def augmented(config: AugmentationConfig, data: ImageData, step: int = 0, seed: int = 0) -> AugmentedBatch:
    return Augmentation(config, data, seed)(data.train.images, data.train.labels, step)


def unit(data: ImageData) -> torch.Tensor:
    return data.train.images / 255


def only(**values: float) -> AugmentationConfig:
    return augmentation_pack("off", **values)


PARTS = {
    "crop": only(crop_padding=4),
    "flip": only(flip_probability=0.5),
    "rotation": only(rotation_degrees=5.0),
    "randaugment": only(randaugment_operations=2),
    "channel shuffle": only(channel_shuffle_probability=0.5),
    "cutout": only(cutout_size=8),
    "cutmix": only(cutmix_probability=0.5),
    "mixup": only(mixup_probability=0.5),
}


# --- configuration


def test_packs_hold_the_figures_of_the_specification() -> None:
    rescue = augmentation_pack("rescue")
    assert (rescue.crop_padding, rescue.randaugment_operations, rescue.randaugment_magnitude) == (4, 2, 9)
    assert (rescue.cutmix_probability, rescue.cutmix_alpha) == (0.2, 1)
    assert (rescue.mixup_probability, rescue.mixup_alpha) == (0.1, 0.2)
    assert (rescue.cutout_size, rescue.label_smoothing, rescue.channel_shuffle_probability) == (8, 0.1, 0)
    assert augmentation_pack("baseline") == AugmentationConfig()


def test_unknown_pack_and_field_are_refused_with_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match="unknown augmentation pack 'rescu'. Did you mean 'rescue'"):
        augmentation_pack("rescu")
    with pytest.raises(ConfigError, match="unknown key of AugmentationConfig 'cutout'. Did you mean"):
        augmentation_pack("rescue", cutout=4)


def test_impossible_augmentations_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"expected cutmix_probability \+ mixup_probability <= 1, given 0.7 \+ 0.4"):
        AugmentationConfig(cutmix_probability=0.7, mixup_probability=0.4)
    with pytest.raises(ConfigError, match="channel_shuffle_probability needs images of 3 channels, given 1"):
        augmented(only(channel_shuffle_probability=0.1), image_data(channels=1))
    with pytest.raises(ConfigError, match="cutout_size: expected at most the image's side, 16, given 17"):
        augmented(only(cutout_size=17), image_data())


# --- reproducibility


@pytest.mark.parametrize("name", PARTS)
def test_same_seed_and_step_give_the_same_batch_and_others_another(name: str) -> None:
    data, config = image_data(), PARTS[name]
    first, again = (augmented(config, data, step=3) for _ in range(2))
    assert torch.equal(first.images, again.images) and torch.equal(first.targets, again.targets)
    assert not torch.equal(first.images, unit(data))
    assert not torch.equal(first.images, augmented(config, data, step=4).images)
    assert not torch.equal(first.images, augmented(config, data, step=3, seed=1).images)


def test_a_batch_does_not_depend_on_the_batches_before_it() -> None:
    data = image_data()
    augmentation = Augmentation(augmentation_pack("rescue"), data, 0)
    batches = [augmentation(data.train.images, data.train.labels, step).images for step in (5, 6, 5)]
    assert torch.equal(batches[0], batches[2]) and not torch.equal(batches[0], batches[1])


def test_augmentation_leaves_torchs_own_generator_and_its_input_alone() -> None:
    data = image_data()
    before = data.train.images.clone()
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    augmented(augmentation_pack("rescue", channel_shuffle_probability=0.1), data)
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(data.train.images, before)


def test_switching_a_part_on_leaves_the_draws_of_the_others() -> None:
    data = image_data()
    plain = augmented(AugmentationConfig(), data).images
    with_cutout = augmented(AugmentationConfig(cutout_size=8), data).images
    erased = (with_cutout == 0).all(dim=1, keepdim=True).expand_as(plain)
    assert torch.equal(with_cutout[~erased], plain[~erased])


# --- the baseline


def test_without_augmentation_a_batch_is_the_normalised_images() -> None:
    data = load_image_data(VisionDataConfig(dataset="colour", image_size=16))
    batch = Augmentation(only(), data, 0)(data.train.images[:10], data.train.labels[:10], 0)
    assert torch.equal(batch.images, normalised(data.train.images[:10], data.normalisation))
    assert torch.equal(batch.targets.argmax(dim=1), data.train.labels[:10])
    assert torch.equal(batch.targets.sum(dim=1), torch.ones(10)) and float(batch.targets.max()) == 1


@given(st.integers(1, 5), st.integers(0, 1000))
@settings(deadline=None, max_examples=20)
def test_every_crop_is_a_window_of_the_padded_image(padding: int, seed: int) -> None:
    images = torch.rand(6, 2, 9, 7)
    torch.manual_seed(seed)
    cropped = random_crop(images, padding)
    assert cropped.shape == images.shape
    windows = torch.nn.functional.pad(images, [padding] * 4).unfold(2, 9, 1).unfold(3, 7, 1)
    for window, crop in zip(windows, cropped):
        assert bool((window == crop[:, None, None]).all(dim=(0, 3, 4)).any())


def test_crops_reach_every_place_and_differ_between_images() -> None:
    images = torch.zeros(2000, 1, 9, 9)
    images[:, :, 4, 4] = 1
    torch.manual_seed(0)
    places = random_crop(images, 2).flatten(1).argmax(dim=1)
    assert sorted(places.unique().tolist()) == [9 * row + column for row in range(2, 7) for column in range(2, 7)]


def test_half_of_the_images_are_mirrored_and_none_of_digits_or_letters() -> None:
    data = image_data()
    images = augmented(PARTS["flip"], data).images
    mirrored = (images == unit(data).flip(3)).flatten(1).all(dim=1)
    kept = (images == unit(data)).flatten(1).all(dim=1)
    assert bool((mirrored ^ kept).all()) and 0.3 < float(mirrored.float().mean()) < 0.7
    assert torch.equal(augmented(PARTS["flip"], image_data(mirrorable=False)).images, unit(data))


def test_rotation_leaves_the_centre_where_it_is() -> None:
    data = image_data(side=17)
    images = augmented(PARTS["rotation"], data).images
    assert torch.allclose(images[:, :, 8, 8], unit(data)[:, :, 8, 8], atol=1e-5)
    assert not torch.allclose(images[:, :, 0, 0], unit(data)[:, :, 0, 0], atol=1e-2)


# --- the rescue pack


def test_cutout_sets_one_square_to_the_mean_colour() -> None:
    data = image_data()
    for size in (1, 5, 8, 16):
        erased = (augmented(only(cutout_size=size), data).images == 0).all(dim=1)
        assert erased.sum(dim=(1, 2)).tolist() == [size * size] * COUNT
        rows, columns = erased.any(dim=2).sum(dim=1), erased.any(dim=1).sum(dim=1)
        assert rows.tolist() == columns.tolist() == [size] * COUNT


@given(st.integers(2, 30), st.floats(0, 0.9))
@settings(deadline=None)
def test_smoothed_targets_are_probabilities_and_1_minus_smoothing_apart(classes: int, smoothing: float) -> None:
    targets = smoothed_targets(torch.arange(classes), classes, smoothing)
    assert torch.allclose(targets.sum(dim=1), torch.ones(classes), atol=1e-5)
    assert torch.allclose(targets, torch.eye(classes) * (1 - smoothing) + smoothing / classes, atol=1e-6)


@given(st.floats(0, 1), st.floats(0, 1), st.integers(0, 1000))
@settings(deadline=None, max_examples=25)
def test_mixing_targets_is_mixing_images(cutmix: float, mixup: float, seed: int) -> None:
    scale = max(1.0, cutmix + mixup)
    config = only(cutmix_probability=cutmix / scale * 0.999, mixup_probability=mixup / scale * 0.999)
    targets = torch.eye(24)
    # Every image has one value, its own target: the mean over pixels must then be the mixed target.
    images = targets.view(24, 24, 1, 1).expand(24, 24, 6, 8)
    torch.manual_seed(seed)
    mixed_images, mixed_targets = mixed(images, targets, config)
    assert torch.allclose(mixed_images.mean(dim=(2, 3)), mixed_targets, atol=1e-5)
    assert torch.allclose(mixed_targets.sum(dim=1), torch.ones(24), atol=1e-5)


def test_an_image_is_cut_or_blended_or_left_alone_at_the_given_rates() -> None:
    count = 4000
    images = torch.arange(count, dtype=torch.float32).view(count, 1, 1, 1).expand(count, 1, 8, 8)
    torch.manual_seed(0)
    result, _ = mixed(images, torch.eye(2)[torch.arange(count) % 2], augmentation_pack("rescue", mixup_alpha=1.0))
    values = [len(image.unique()) for image in result]
    original = (result == images).flatten(1).all(dim=1)
    blended = torch.tensor([number == 1 for number in values]) & ~original
    cut = torch.tensor([number == 2 for number in values])
    assert bool((original | blended | cut).all())
    # A box of no area, or over the whole image, looks like another kind: the rates of CutMix read a little low.
    assert 0.15 < float(cut.float().mean()) < 0.21 and 0.08 < float(blended.float().mean()) < 0.13


@given(st.integers(4, 40), st.integers(4, 40), st.floats(0, 1))
@settings(deadline=None, max_examples=40)
def test_boxes_are_rectangles_of_at_most_their_area(height: int, width: int, area: float) -> None:
    boxes = random_boxes(torch.full((12,), area), height, width)[:, 0] == 1
    rows, columns = boxes.any(dim=2).sum(dim=1), boxes.any(dim=1).sum(dim=1)
    assert torch.equal(rows * columns, boxes.sum(dim=(1, 2)))
    assert int(rows.max()) <= math.sqrt(area) * height + 1e-3 and int(columns.max()) <= math.sqrt(area) * width + 1e-3


def test_boxes_lie_as_often_on_one_side_as_on_the_other() -> None:
    torch.manual_seed(0)
    covered = random_boxes(torch.full((4000,), 0.25), 17, 17).mean(dim=(0, 1))
    # A box of even width has no middle pixel: half a pixel of difference stays.
    assert torch.allclose(covered, covered.flip(0).flip(1), atol=0.1)
    assert torch.allclose(covered, covered.T, atol=0.05)
    assert float(covered[8, 8]) > 1.5 * float(covered[0, 0])


def test_channel_shuffle_permutes_whole_channels_of_a_share_of_the_images() -> None:
    data = image_data()
    images, before = augmented(only(channel_shuffle_probability=0.5), data).images, unit(data)
    assert torch.equal(images.sort(dim=1).values, before.sort(dim=1).values)
    changed = (images != before).flatten(1).any(dim=1)
    # One of the six orders is the old one.
    assert 0.25 < float(changed.float().mean()) < 0.6
    for image, old in zip(images, before):
        assert all(any(torch.equal(channel, other) for other in old) for channel in image)


# --- RandAugment


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", OPERATIONS)
def test_each_operation_stays_in_range_and_changes_only_images_that_drew_it(name: str, channels: int) -> None:
    images = unit(image_data(channels))[:12]
    chosen = torch.where(torch.arange(12) % 2 == 0, OPERATIONS.index(name), 0)
    result = apply_operations(images, chosen, torch.full((12,), 0.6))
    assert torch.equal(result[1::2], images[1::2])
    assert float(result.min()) >= 0 and float(result.max()) <= 1
    # Grey images have no colour to change.
    same = name == "identity" or (name == "colour" and channels == 1)
    assert torch.allclose(result[::2], images[::2], atol=1e-6) == same


@pytest.mark.parametrize("name", sorted(set(OPERATIONS) - {"auto_contrast", "equalize"}))
def test_operations_of_strength_zero_change_nothing(name: str) -> None:
    images = unit(image_data())[:8]
    result = apply_operations(images, torch.full((8,), OPERATIONS.index(name)), torch.zeros(8))
    assert torch.allclose(result, images, atol=1e-5)


def test_result_of_an_operation_does_not_depend_on_the_rest_of_the_batch() -> None:
    images = unit(image_data())[:28]
    chosen = torch.arange(28) % len(OPERATIONS)
    strengths = torch.linspace(-1, 1, 28)
    together = apply_operations(images, chosen, strengths)
    for index in range(28):
        part = slice(index, index + 1)
        alone = apply_operations(images[part], chosen[part], strengths[part])
        assert torch.allclose(together[part], alone, atol=1e-5), OPERATIONS[int(chosen[index])]


def test_geometric_operations_move_points_as_their_names_say() -> None:
    names = ("rotate", "shear_x", "shear_y", "translate_x", "translate_y")
    matrices = affine_matrices(torch.tensor([OPERATIONS.index(name) for name in names]), torch.ones(5), 11, 21)
    centre, right, below = (torch.tensor([*point, 1.0]) for point in ((10.0, 5.0), (11.0, 5.0), (10.0, 6.0)))
    moved = {name: [matrix @ point for point in (centre, right, below)] for name, matrix in zip(names, matrices)}
    for name in ("rotate", "shear_x", "shear_y"):
        assert torch.allclose(moved[name][0], centre[:2], atol=1e-5)
    assert torch.allclose((moved["rotate"][1] - centre[:2]).norm(), torch.tensor(1.0), atol=1e-5)
    cosine = float(moved["rotate"][1][0] - centre[0])
    assert cosine == pytest.approx(math.cos(math.radians(30)), abs=1e-5)
    assert torch.allclose((moved["shear_x"][2] - below[:2]).abs(), torch.tensor([0.3, 0.0]), atol=1e-5)
    assert torch.allclose((moved["shear_y"][1] - right[:2]).abs(), torch.tensor([0.0, 0.3]), atol=1e-5)
    assert torch.allclose(moved["translate_x"][0] - centre[:2], torch.tensor([0.45 * 21, 0.0]), atol=1e-4)
    assert torch.allclose(moved["translate_y"][0] - centre[:2], torch.tensor([0.0, 0.45 * 11]), atol=1e-4)


def test_intensity_operations_have_the_stated_strength() -> None:
    images = torch.full((1, 3, 8, 8), 0.5)
    images[:, :, :, 4:] = 0.3

    def applied(name: str, strength: float) -> torch.Tensor:
        return apply_operations(images, torch.tensor([OPERATIONS.index(name)]), torch.tensor([strength]))

    assert torch.allclose(applied("brightness", -0.3), images * 0.73, atol=1e-5)
    assert torch.allclose(applied("contrast", 0.3), 0.4 + (images - 0.4) * 1.27, atol=1e-3)
    assert torch.allclose(applied("solarize", 0.6), torch.where(images < 0.4, images, 1 - images), atol=1e-5)
    assert len(applied("posterize", 1.0).unique()) == 2
    assert torch.equal(applied("auto_contrast", 0.3).unique(), torch.tensor([0.0, 1.0]))
    even = torch.full((1, 3, 8, 8), 0.5)
    assert torch.equal(apply_operations(even, torch.tensor([OPERATIONS.index("auto_contrast")]), torch.ones(1)), even)


def test_operations_differ_between_the_images_of_a_batch() -> None:
    image = unit(image_data())[:1].expand(COUNT, 3, 16, 16)
    with drawing(0, 0, "test"):
        once = rand_augment(image, 1, 9.0)
    different = {tuple(result.flatten().mul(255).round().int().tolist()) for result in once}
    # Fourteen operations, most of them with two signs, less the ones that change nothing or the same.
    assert 14 <= len(different) <= 24
    assert torch.equal(rand_augment(image, 0, 9.0), image)
