"""PNG files. Nothing but reports and sweeps draws, so only they need matplotlib."""

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def save_figure(figure, path):
    """Write a PNG under a temporary name, then rename it."""
    temporary = path.with_name(f".{path.name}")
    figure.savefig(temporary, dpi=120, bbox_inches="tight", format="png")
    plt.close(figure)
    temporary.rename(path)
