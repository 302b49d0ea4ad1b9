"""The README's picture: the model, its controls and a GRU, from the committed rows; nothing is trained here.

    python -m reproduce.first_screen

Writes results/reference/readme.png and readme.svg.
"""

from newllm_core.report.reference import leaderboard, plot_controls
from newllm_core.report.style import save_figure
from newllm_core.runs.files import REFERENCE_DIR


def main() -> None:
    print(save_figure(plot_controls(leaderboard().values()), REFERENCE_DIR / "readme.png"))


if __name__ == "__main__":
    main()
