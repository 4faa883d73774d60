"""PNG pictures of results: grids of images, bars and curves, each returned as bytes."""

import io
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

COLOURS = (
    "#2563a8", "#d1662b", "#3d8f5f", "#8a56a8", "#b8355e", "#6b7280", "#c09a1c", "#1c93a0",
    "#7a4b2a",
)  # fmt: skip
WIDTH = 7.0  # inches


def image_grid(images: np.ndarray, titles: Sequence[str], columns: int = 8) -> bytes:
    """Small images in rows, a short title above each.

    Args:
        images: `[n, height, width, channels]` in [0, 1]; 1 or 3 channels.
        titles: one for each image.
        columns: images in a row.
    """
    rows = -(-len(images) // columns)
    canvas = Figure(figsize=(WIDTH, WIDTH / columns * 1.25 * rows))
    axes = canvas.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes:
        axis.axis("off")
    for axis, image, title in zip(axes, images, titles, strict=False):
        axis.imshow(image.squeeze(), cmap="gray_r", vmin=0, vmax=1)
        axis.set_title(title, fontsize=9, pad=2)
    return _png(canvas)


def grouped_bars(names: Sequence[str], groups: Mapping[str, np.ndarray], label: str) -> bytes:
    """Bars of several groups beside each other.

    Args:
        names: below each cluster of bars.
        groups: one height for each name.
        label: of the heights.
    """
    canvas = Figure(figsize=(WIDTH, 3.0))
    axis = canvas.subplots()
    width = 0.8 / len(groups)
    for offset, (group, heights) in enumerate(groups.items()):
        places = np.arange(len(names)) + (offset - (len(groups) - 1) / 2) * width
        axis.bar(places, heights, width, label=group, color=COLOURS[offset % len(COLOURS)])
    axis.set_xticks(np.arange(len(names)), names, rotation=30 if max(map(len, names)) > 4 else 0)
    axis.set_ylabel(label)
    _legend(canvas)
    return _png(_plain(canvas))


def curves(
    lines: Mapping[str, np.ndarray], x_label: str, y_label: str, log_y: bool = False
) -> bytes:
    """Lines over 0, 1, 2, ..."""
    canvas = Figure(figsize=(WIDTH, 3.0))
    axis = canvas.subplots()
    for number, (name, values) in enumerate(lines.items()):
        axis.plot(values, label=name, color=COLOURS[number % len(COLOURS)])
    axis.set_xlabel(x_label)
    axis.set_ylabel(y_label)
    if log_y:
        axis.set_yscale("log")
    _legend(canvas)
    return _png(_plain(canvas))


def histograms(
    panels: Mapping[str, Mapping[str, np.ndarray]], edges: np.ndarray, x_label: str
) -> bytes:
    """Shares of points by bins on a logarithmic axis, one panel below the other.

    Args:
        panels: by title, for each kind of points the count in each bin.
        edges: of the bins, one more than there are counts; > 0.
        x_label: below the last panel.
    """
    canvas = Figure(figsize=(WIDTH, 1.0 + 1.1 * len(panels)))
    axes = canvas.subplots(len(panels), sharex=True, squeeze=False).ravel()
    for axis, (title, kinds) in zip(axes, panels.items(), strict=True):
        for number, (kind, counts) in enumerate(kinds.items()):
            shares = counts / max(counts.sum(), 1)
            axis.stairs(shares, edges, label=kind, color=COLOURS[number % len(COLOURS)], lw=1.5)
        axis.set_xscale("log")
        axis.set_yticks([])
        axis.set_title(title, fontsize=9, loc="right", y=0.7)
    axes[-1].set_xlabel(x_label)
    _legend(canvas)
    return _png(_plain(canvas))


def spreads(
    places: Sequence[float],
    lines: Mapping[str, tuple[np.ndarray, np.ndarray]],
    x_label: str,
    y_label: str,
) -> bytes:
    """Means with their deviations as bars, over places on a logarithmic axis.

    Args:
        places: > 0, ascending.
        lines: for each name a mean and a deviation at each place.
        x_label: of the places, which are the ticks.
        y_label: of the means.
    """
    canvas = Figure(figsize=(WIDTH, 4.0))
    axis = canvas.subplots()
    axis.set_xscale("log")
    for number, (name, (means, deviations)) in enumerate(lines.items()):
        shift = 1.012 ** (number - (len(lines) - 1) / 2)  # bars beside each other
        axis.errorbar(
            np.asarray(places) * shift,
            means,
            deviations,
            label=name,
            color=COLOURS[number % len(COLOURS)],
            linestyle=("-", "--", ":")[number // len(COLOURS) % 3],
            marker="os^"[number // len(COLOURS) % 3],
            markersize=4,
            capsize=2,
            linewidth=1.2,
        )
    axis.set_xticks(places, [f"{place:g}" for place in places])
    axis.minorticks_off()
    axis.set_xlabel(x_label)
    axis.set_ylabel(y_label)
    _legend(canvas)
    return _png(_plain(canvas))


def paths(lines: Mapping[str, tuple[np.ndarray, np.ndarray]], x_label: str, y_label: str) -> bytes:
    """Points in the plane, those of each name joined in their order.

    Args:
        lines: for each name the two coordinates.
        x_label: of the first.
        y_label: of the second.
    """
    canvas = Figure(figsize=(WIDTH, 4.5))
    axis = canvas.subplots()
    for number, (name, (x, y)) in enumerate(lines.items()):
        turn = number // len(COLOURS) % 3
        axis.plot(
            x,
            y,
            label=name,
            color=COLOURS[number % len(COLOURS)],
            linestyle=("-", "--", ":")[turn],
            marker="os^"[turn],
            markersize=4,
            linewidth=1.2,
        )
    axis.set_xlabel(x_label)
    axis.set_ylabel(y_label)
    _legend(canvas)
    return _png(_plain(canvas))


def _legend(canvas: Figure) -> None:
    """Above the axes, where it can hide nothing."""
    axis = canvas.axes[0]
    axis.legend(frameon=False, ncols=4, loc="lower left", bbox_to_anchor=(0, 1))


def _plain(canvas: Figure) -> Figure:
    for axis in canvas.axes:
        axis.spines[["top", "right"]].set_visible(False)
    return canvas


def _png(canvas: Figure) -> bytes:
    canvas.tight_layout(pad=0.6)
    buffer = io.BytesIO()
    canvas.savefig(buffer, format="png", dpi=110, metadata={"Software": ""})
    return buffer.getvalue()
