"""Pictures of contexts that move to their fixed point (`contexts.sweeps`): one to look at, one that moves."""

import io
from collections.abc import Sequence

import numpy as np
import torch
from IPython.display import Image
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.colors import LogNorm
from PIL import Image as PictureFile
from torch import Tensor

from newllm_core.report.style import MARK_COLOUR, VALIDATION_COLOUR, Figure, as_png, new_axes

_FLOOR = 1e-6  # of a context's component, about float32's rounding
_MILLISECONDS_A_FRAME = 500
_COLOURS = 64


def distances_to_the_end(sweeps: Tensor) -> Tensor:
    """How far each context is from where it ends, root mean square of its components: `[K, n, C]` -> `[K, n]`."""
    return (sweeps - sweeps[-1]).square().mean(dim=2).sqrt()


def plot_sweeps(sweeps: Tensor) -> Figure:
    """Distance of every token's context (columns) to its fixed point, sweep by sweep (rows). `[n + 1, n, C]`."""
    distances = distances_to_the_end(sweeps).clamp_min(_FLOOR).numpy()
    figure, (axis,) = new_axes(1, width=7, height=4.8)
    axis.grid(visible=False)
    extent = (0.5, distances.shape[1] + 0.5, len(distances) - 0.5, -0.5)
    picture = axis.imshow(distances, cmap="viridis", norm=LogNorm(_FLOOR, 2), aspect="auto", extent=extent)
    tokens = np.arange(1, distances.shape[1] + 1)
    axis.plot(tokens, tokens, color=VALIDATION_COLOUR, linewidth=2)
    axis.annotate("below the line: exact, whatever the block does", (0.03, 0.03), xycoords="axes fraction", color="w")
    axis.set(xlabel="token", ylabel="sweeps over all tokens at once", title="How far each context still has to go")
    figure.colorbar(picture, label="distance to its fixed point, a component")
    return figure


def plot_moving_contexts(sweeps: Tensor, words: Sequence[str]) -> Figure:
    """Where the contexts are after four numbers of sweeps, in the plane where their ends lie furthest apart."""
    places = _in_a_plane(sweeps)
    figure, axes = new_axes(4, width=3.7, height=3.7)
    for axis, sweep in zip(axes, np.linspace(0, len(places) - 1, 4).round().astype(int), strict=True):
        _still_parts(axis, places, words).set_offsets(places[sweep])
        axis.set_title(f"after {sweep} of {len(places) - 1} sweeps")
    axes[0].legend(loc="best", fontsize=8)
    return figure


def animate_sweeps(sweeps: Tensor, words: Sequence[str]) -> Image:
    """The same with motion, as a GIF that plays once: no script, and pages that show a notebook play it too."""
    places = _in_a_plane(sweeps)
    frames = []
    for sweep, place in enumerate(places):
        figure, (axis,) = new_axes(1, width=6.2, height=4.6)
        _still_parts(axis, places, words).set_offsets(place)
        axis.set_title(f"Contexts after {sweep} of {len(places) - 1} sweeps")
        axis.legend(loc="best")
        frames.append(PictureFile.open(io.BytesIO(as_png(figure))).convert("RGB").quantize(_COLOURS))
    film = io.BytesIO()
    frames[0].save(film, format="GIF", save_all=True, append_images=frames[1:], duration=_MILLISECONDS_A_FRAME)
    # As metadata, since Colab's IPython 7 has no argument for it.
    told = {"alt": f"The contexts of {len(words)} words move to where they end"}
    return Image(film.getvalue(), format="gif", metadata=told)


def _in_a_plane(sweeps: Tensor) -> np.ndarray:
    """`[n + 1, n, C]` -> `[n + 1, n, 2]`, along the first two principal directions of where the contexts end."""
    centre = sweeps[-1].mean(dim=0)
    _, _, directions = torch.linalg.svd(sweeps[-1] - centre, full_matrices=False)
    return ((sweeps - centre) @ directions[:2].T).numpy()


def _still_parts(axis: Axes, places: np.ndarray, words: Sequence[str]) -> PathCollection:
    """Ends with their words, axes; the points that will move."""
    ends = places[-1]
    axis.scatter(
        ends[:, 0], ends[:, 1], marker="o", s=70, facecolors="none", edgecolors=MARK_COLOUR, label="where they end"
    )
    for word, (x, y) in zip(words, ends, strict=True):
        axis.annotate(word, (x, y), xytext=(5, 5), textcoords="offset points", fontsize=9)
    span = np.abs(places).reshape(-1, 2).max(axis=0) * 1.1
    axis.set(xlim=(-span[0], span[0]), ylim=(-span[1], span[1]))
    axis.set(xlabel="first direction of the ends", ylabel="second direction")
    points = axis.scatter(places[0, :, 0], places[0, :, 1], color=VALIDATION_COLOUR, s=25, label="contexts")
    return points
