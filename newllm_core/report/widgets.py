"""Sliders that redraw a picture by a plain function, with a twin that needs no kernel."""

from base64 import b64encode
from collections.abc import Callable
from typing import Any

import ipywidgets


class SlidersAndPicture(ipywidgets.VBox):
    """Its picture stands in the output too, for whoever has no kernel: GitHub, a notebook that is opened again."""

    _ipython_display_ = None  # ipywidgets 7 would show the widget alone; without it IPython asks for the bundle

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        *sliders, picture = self.children
        return {
            "text/plain": ", ".join(f"{slider.description}: {slider.value}" for slider in sliders),
            "image/png": b64encode(picture.value).decode(),
            "application/vnd.jupyter.widget-view+json": {
                "version_major": 2, "version_minor": 0, "model_id": self.model_id,
            },
        }  # fmt: skip


def picture_with_sliders(draw: Callable[..., bytes], **sliders: ipywidgets.IntSlider) -> SlidersAndPicture:
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
    return SlidersAndPicture([*sliders.values(), picture])
