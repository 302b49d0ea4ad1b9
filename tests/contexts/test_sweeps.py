"""All tokens step at once, again and again, until they stand where the loop puts them."""

import io

import torch
from core_helpers import CONTRACTING, make_block, make_embeds, rng
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as PictureFile

from newllm_core.contexts.shooting import sequential_contexts
from newllm_core.contexts.sweeps import parallel_sweeps
from newllm_core.report.sweeps import animate_sweeps, distances_to_the_end, plot_moving_contexts, plot_sweeps


@given(num_tokens=st.integers(1, 30), num_layers=st.integers(1, 3), seed=st.integers(0, 10**6))
@settings(deadline=None, max_examples=25)
def test_after_k_sweeps_the_first_k_contexts_are_the_loops(num_tokens: int, num_layers: int, seed: int) -> None:
    block, embeds = make_block(CONTRACTING, 8, 4, num_layers, seed=seed), make_embeds(num_tokens, 4, seed)
    initial = torch.randn(8, generator=rng(seed), dtype=torch.float64)
    sweeps, loop = parallel_sweeps(block, embeds, initial), sequential_contexts(block, embeds, initial)
    assert sweeps.shape == (num_tokens + 1, num_tokens, 8)
    for number, contexts in enumerate(sweeps):
        assert torch.allclose(contexts[:number], loop[:number], rtol=0, atol=1e-9)


def test_a_block_that_forgets_is_near_long_before() -> None:
    sweeps = parallel_sweeps(make_block(CONTRACTING), make_embeds(120), torch.zeros(32, dtype=torch.float64))
    distances = distances_to_the_end(sweeps)
    assert float(distances[0].min()) > 0.5
    assert float(distances[60].max()) < 1e-6


def test_the_pictures_show_every_token_and_every_sweep() -> None:
    sweeps = parallel_sweeps(make_block(CONTRACTING), make_embeds(6), torch.zeros(32, dtype=torch.float64))
    words = list("abcdef")
    heat = plot_sweeps(sweeps).axes[0]
    assert heat.images[0].get_array().shape == (7, 6)
    panels = plot_moving_contexts(sweeps, words).axes
    assert [panel.get_title() for panel in panels] == [f"after {k} of 6 sweeps" for k in (0, 2, 4, 6)]
    assert {text.get_text() for text in panels[0].texts} == set(words)
    film = PictureFile.open(io.BytesIO(animate_sweeps(sweeps, words).data))
    assert film.n_frames == 7 and "loop" not in film.info
