"""Noise that is drawn where it is added."""

import torch

from newllm_core.training.device_noise import noise_seed, with_noise

CPU = torch.device("cpu")


def test_noise_is_normal_and_depends_on_the_position_alone() -> None:
    contexts, seed = torch.ones(120, 40), noise_seed(42, 3, CPU)
    noise = with_noise(contexts, 0, 0.5, seed) - 1
    assert abs(float(noise.mean())) < 0.02 and abs(float(noise.std()) - 0.5) < 0.02
    again = with_noise(contexts[100:115], 100, 0.5, seed) - 1
    assert torch.equal(noise[100:115], again)
    assert abs(float((noise[1:] * noise[:-1]).mean())) < 0.01


def test_seeds_and_iterations_draw_other_noise() -> None:
    zeros = torch.zeros(50, 40)
    first = with_noise(zeros, 0, 1.0, noise_seed(42, 3, CPU))
    for other in (noise_seed(42, 4, CPU), noise_seed(43, 3, CPU)):
        assert abs(float((first * with_noise(zeros, 0, 1.0, other)).mean())) < 0.1


def test_rows_of_a_wider_matrix_are_read_by_their_stride() -> None:
    wide, seed = torch.randn(6, 10), noise_seed(1, 1, CPU)
    assert torch.equal(with_noise(wide[:, :7], 0, 0.1, seed), with_noise(wide[:, :7].contiguous(), 0, 0.1, seed))
