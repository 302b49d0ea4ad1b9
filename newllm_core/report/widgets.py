"""Sliders that redraw a picture by a plain function."""

from collections.abc import Callable
from typing import Any

import ipywidgets


def picture_with_sliders(draw: Callable[..., bytes], **sliders: ipywidgets.IntSlider) -> ipywidgets.VBox:
    """The PNG that ``draw`` returns for the sliders' values, drawn anew when one is moved.

    ``draw`` takes the sliders' names as keywords. An image widget instead of ``ipywidgets.interact``: what ``interact``
    captures cannot be shown by runners without a browser, which then wait for ever.
    """
    picture = ipywidgets.Image(format="png")

    def redraw(change: Any = None) -> None:
        picture.value = draw(**{name: slider.value for name, slider in sliders.items()})

    for slider in sliders.values():
        slider.continuous_update = False  # a drawing takes a moment: once, when the slider is let go
        slider.observe(redraw, names="value")
    redraw()
    return ipywidgets.VBox([*sliders.values(), picture])
