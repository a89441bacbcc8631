"""The loss curve of a training."""

from io import BytesIO
from itertools import accumulate
from pathlib import Path

from .errors import importing
from .files import write_whole
from .training import Progress


def plot_losses(progress: Progress, path: Path, title: str) -> None:
    """Writes a PNG: the loss of each step, its moving average, and the val losses if any.

    Raises ValueError where matplotlib cannot be imported.
    """
    with importing("matplotlib"):
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)  # draws without a display, whatever the user's backend is
    axes = figure.add_subplot()
    losses = progress.losses
    window = max(1, len(losses) // 100)
    axes.plot(range(1, len(losses) + 1), losses, color="0.8", linewidth=0.5, label="batch")
    axes.plot(
        range(window, len(losses) + 1),
        moving_average(losses, window),
        label=f"mean of {window} batches",
    )
    val = [loss for _, loss in progress.evaluations]
    if val:
        axes.plot([step for step, _ in progress.evaluations], val, "o", markersize=4, label="val")
    if len(losses) > window:  # without the first steps, which would dwarf all others
        axes.set_ylim(top=1.02 * max(losses[window:] + val))
    axes.set(xlabel="step", ylabel="loss over all positions (nats)", title=title)
    axes.legend()
    axes.grid(alpha=0.3)
    png = BytesIO()
    figure.savefig(png, format="png")
    write_whole(path, png.getvalue())


def moving_average(values: list[float], window: int) -> list[float]:
    """The mean of each run of `window` neighbours: len(values) - window + 1 of them."""
    sums = [0.0, *accumulate(values)]
    return [(b - a) / window for a, b in zip(sums, sums[window:], strict=False)]
