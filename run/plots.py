"""PNG files of reports and sweeps. One colour per technique in all of them; points are labelled directly.

Only reports and sweeps draw, so only they need matplotlib.
"""

import functools
from typing import NamedTuple

import numpy as np

import compress
from cli import BadInput
from files import whole_path
from run.tables import base_of, is_model, mean_of, row_unit

COLOURS = (
    "#333333",
    "#d55e00",
    "#cc79a7",
    "#009e73",
    "#0072b2",
    "#e69f00",
    "#7b4fb5",
    "#8c564b",
    "#17a2b8",
    "#999933",
)
MARKERS = "o^sDvP*X"
WIDTH = 9.0  # inches: at README width 11 points are read without zooming


@functools.cache
def pyplot():
    """matplotlib.pyplot, set to draw into files. Raises BadInput if matplotlib is missing."""
    try:
        import matplotlib
    except ImportError:
        raise BadInput("matplotlib is not installed, and the plots need it; pip install matplotlib") from None
    matplotlib.use("Agg")
    import matplotlib.pyplot

    matplotlib.rcParams.update({"font.size": 11, "axes.spines.top": False, "axes.spines.right": False})
    return matplotlib.pyplot


def save_figure(figure, path):
    """Write a PNG, whole."""
    with whole_path(path) as temporary:
        figure.savefig(temporary, dpi=150, bbox_inches="tight", format="png")
    pyplot().close(figure)


def colour_of(techniques):
    """The colour of a technique, by its place in compress.TECHNIQUES; of a chain 'a+b' that of a."""
    names, first = list(compress.TECHNIQUES), techniques.split("+")[0]
    return COLOURS[names.index(first) % len(COLOURS)] if first in names else "#777777"


# --- labels beside points -------------------------------------------------------------------------


def places(reaches):
    """Where a label may stand, best first: offsets from the marker's edge, in points."""
    around = [(5, 0), (-5, 0)]
    for reach in reaches:
        around += [(0, reach), (0, -reach), (3, reach), (3, -reach), (-3, reach), (-3, -reach)]
    return around


NEAR, FAR = places((5, 16)), places((28, 42, 58))


def label_points(axes, marks, line, bars):
    """Write each mark's text beside its point where it overlaps nothing, a line to it if it stands off.

    marks [(x, y, text, colour, marker radius in points, font weight)]; line, bars: boxes in pixels. Labels
    never cross the line, and bars only if there is no other place nearby. The axes' limits must be final.
    Returns the marks that found no room.
    """
    scale, crowded, words = axes.figure.dpi / 72, [], []
    hard = line + [marker_box(axes, x, y, radius * scale) for x, y, _, _, radius, _ in marks]
    for mark in marks:
        for around, shapes in ((NEAR, hard + bars), (NEAR, hard), (FAR, hard)):
            if boxes := label_one(axes, mark, around, words, shapes):
                break
        words += boxes
        crowded += [] if boxes else [mark]
    return crowded


def label_one(axes, mark, around, words, shapes):
    """Write one label at the first of the places around its marker where it covers no words and no shapes.

    The line that leads to it may cross shapes, but no words. Returns the boxes in pixels of the label and
    its line; none if there is no such place.
    """
    for place in around:
        label, box, line = annotate(axes, mark, place)
        covers = any(box.overlaps(other) for other in [*words, *shapes])
        crosses = any(piece.overlaps(other) for piece in line for other in words)
        if inside(box, axes.bbox) and not covers and not crosses:
            return [box, *line]
        label.remove()
    return []


def annotate(axes, mark, place):
    """Write a label at an offset from its marker. Returns (label, its box, the boxes of the line to it)."""
    from matplotlib.patheffects import withStroke
    from matplotlib.text import Text

    x, y, text, colour, radius, weight = mark
    sides = np.sign(place)  # (left or right, below or above), 0 = centred
    corner, stands_off = (1 - sides) / 2, abs(place[1]) > 10
    line = {
        "arrowstyle": "-",
        "color": colour,
        "linewidth": 0.7,
        "shrinkA": 0,
        "shrinkB": radius,
        "relpos": corner,
    }
    label = axes.annotate(
        text, (x, y), place + sides * radius, textcoords="offset points", color=colour, fontsize=10.5,
        ha=("right", "center", "left")[sides[0] + 1], va=("top", "center", "bottom")[sides[1] + 1],
        weight=weight, arrowprops=line if stands_off else None, zorder=5,
        path_effects=[withStroke(linewidth=3, foreground="white")],
    )  # fmt: skip

    renderer = axes.figure.canvas.get_renderer()
    label.update_positions(renderer)
    box = Text.get_window_extent(label, renderer)  # of the words alone, without the line
    ends = axes.transData.transform((x, y)), box.min + corner * box.size
    return label, box, pixel_boxes(np.linspace(*ends, 12)[1:-1]) if stands_off else []


def marker_box(axes, x, y, radius):
    """The box in pixels that a marker covers."""
    return pixel_boxes([axes.transData.transform((x, y))], radius)[0]


def line_boxes(axes, xs, ys, pieces=24):
    """Small boxes in pixels along a line through the points, for labels to keep clear of."""
    corners = axes.transData.transform(np.column_stack([xs, ys]))  # (points, 2)
    steps = [np.linspace(a, b, pieces) for a, b in zip(corners[:-1], corners[1:], strict=True)]
    return pixel_boxes([pixel for step in steps for pixel in step])


def pixel_boxes(pixels, radius=2):
    """Squares around pixels."""
    from matplotlib.transforms import Bbox

    return [Bbox([[x - radius, y - radius], [x + radius, y + radius]]) for x, y in pixels]


def inside(box, frame):
    """Whether a box in pixels lies within a frame, give or take a pixel."""
    return (
        box.x0 >= frame.x0 - 1
        and box.x1 <= frame.x1 + 1
        and box.y0 >= frame.y0 - 1
        and box.y1 <= frame.y1 + 1
    )


# --- a score against a cost -----------------------------------------------------------------------


class Point(NamedTuple):
    """One run in a plot of score against cost."""

    name: str
    techniques: str  # decide its colour and marker
    x: float
    y: float
    low: float  # ends of its bar
    high: float
    size: float  # bytes; the marker's area
    front: bool  # whether it is on the Pareto front


class Level(NamedTuple):
    """A dashed line across a plot, and what it is."""

    y: float
    text: str


def plot_sweep(rows, facts, out):
    """sweep.png: the first score against speed; sweep_bytes.png: against bytes. Up and right is better.

    Baselines cost next to nothing, so as points they would squeeze the models: TF-IDF is a level, no point.
    A single model is not drawn.
    """
    score = next(iter(facts["headline"]))
    base, bytes_ = base_of(rows), ("sweep_bytes.png", "bytes", "bytes", 1e-6)
    tfidf = next((row for row in rows if row["run"] == "tfidf"), None)
    rows = [row for row in rows if is_model(row, facts)]
    if len(rows) < 2:
        return
    for name, cost, front, scale in (("sweep.png", "rows_per_s", "seconds_per_row", 1), bytes_):
        points = [
            Point(
                row["run"], row["techniques"], scale * row[cost], row[score],
                row[f"{score}_least"], row[f"{score}_most"], row["bytes"], row[f"front_{front}"],
            )
            for row in rows
        ]  # fmt: skip
        figure, axes = pyplot().subplots(figsize=(WIDTH, 5.6))
        axes.set_xscale("log")
        axes.set_xlabel(
            "MB on disk (log scale)" if cost == "bytes" else f"{row_unit(facts)} per second (log scale)"
        )
        axes.set_ylabel(f"{facts['headline'][score]} on test, {mean_of(facts)}")
        bars = "least to most of the seeds" if len(facts["seeds"]) > 1 else None
        level = tfidf and Level(tfidf[score], f"TF-IDF: {cost_of(tfidf, cost, facts)}")
        band = base.get(f"{score}_low"), base.get(f"{score}_high")
        draw_points(axes, points, bars, *band, cost == "bytes", level)
        times_axis(axes, scale * base[cost], smaller=cost == "bytes")
        save_figure(figure, out / name)


def cost_of(row, cost, facts):
    """'125,485 texts per second', or '0.3 MB'."""
    if cost == "bytes":
        return f"{row['bytes'] / 1e6:.1f} MB"
    return f"{row['rows_per_s']:,.0f} {row_unit(facts)} per second"


def plot_latency(rows, facts, path):
    """A report's first score with its interval against the latency of one note."""
    score, wording = next(iter(facts["headline"].items()))
    name = score.lower()
    points = [
        Point(
            row["technique"], row["techniques"], row["p50_ms"], row[name],
            row.get(f"{name}_low", row[name]), row.get(f"{name}_high", row[name]), row["bytes"],
            row["front_p50_ms"],
        )
        for row in rows if "p50_ms" in row and name in row
    ]  # fmt: skip
    if not points:
        return
    figure, axes = pyplot().subplots(figsize=(WIDTH, 5))
    axes.set_xlabel(f"latency of one note of {facts['timing']['length']} tokens (milliseconds, p50)")
    axes.set_ylabel(f"{wording} on test")
    draw_points(axes, points, "95% interval")
    save_figure(figure, path)


def draw_points(axes, points, bars, low=None, high=None, reverse=False, level=None):
    """Points with bars and labels: the front joined by a line, the others faded.

    bars: what the bars are, None = leave them out; low, high: a band, base's 95% interval; reverse: small
    values to the right; level: a Level to draw, or None.
    """
    others = [low, high, level.y if level else None]
    set_limits(axes, points, [value for value in others if value is not None], reverse)
    if low is not None:
        axes.axhspan(low, high, color="#333333", alpha=0.06, linewidth=0, zorder=0)
    if level:
        axes.axhline(level.y, color="#777777", linewidth=1, linestyle="--", zorder=0)
        place = {"xytext": (-4, 4), "textcoords": "offset points", "ha": "right", "color": "#777777"}
        axes.annotate(level.text, (1, level.y), xycoords=("axes fraction", "data"), **place)
    axes.grid(alpha=0.2)
    axes.figure.canvas.draw()  # from here on pixels are final

    front = sorted((point for point in points if point.front), key=lambda point: point.x)
    joined = [point.x for point in front], [point.y for point in front]
    axes.plot(*joined, color="#555555", linewidth=1.5, zorder=1)
    boxes, marks, largest = [], [], max(point.size for point in points)
    for point in sorted(points, key=lambda point: -point.size):
        marks.append(draw_point(axes, point, 30 + 270 * point.size / largest, bars))
        boxes += line_boxes(axes, [point.x] * 2, [point.low, point.high]) if bars else []

    marks.sort(key=lambda mark: -mark[1])
    crowded = label_points(axes, marks, line_boxes(axes, *joined), boxes)
    explain(axes, crowded, bars, low is not None)


def draw_point(axes, point, area, bars):
    """One run's marker, and its bar. Returns its mark for label_points."""
    colour, strength = colour_of(point.techniques), 1.0 if point.front else 0.5
    marker, weight = "D" if "+" in point.techniques else "o", "bold" if point.front else "normal"
    if bars:
        ends = [[point.y - point.low], [point.high - point.y]]
        look = {"color": colour, "alpha": 0.5 * strength, "linewidth": 1, "capsize": 2.5}
        axes.errorbar(point.x, point.y, ends, zorder=2, **look)
    look = {"marker": marker, "alpha": strength, "edgecolor": "white", "linewidth": 0.8}
    axes.scatter(point.x, point.y, area, colour, zorder=3, **look)
    return point.x, point.y, point.name, colour, (area / np.pi) ** 0.5, weight


def set_limits(axes, points, others, reverse):
    """Limits with room for labels on all sides; others: values of y that must be seen, too."""
    xs, ys = [p.x for p in points], [*others, *(v for p in points for v in (p.low, p.high))]
    room = 0.06 * (max(ys) - min(ys) or 0.01)
    axes.set_ylim(min(ys) - room, max(ys) + room)
    if axes.get_xscale() == "log":
        spread = (max(xs) / min(xs)) ** 0.18 if max(xs) > min(xs) else 2
        axes.set_xlim(*sorted((min(xs) / spread, max(xs) * spread), reverse=reverse))
        plain_ticks(axes.xaxis)
    else:
        axes.set_xlim(0, 1.2 * max(xs))


def plain_ticks(axis):
    """Ticks of a logarithmic axis at 1, 2 and 5 times powers of ten, as plain numbers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axis.set_minor_formatter(NullFormatter())


def times_axis(axes, base, smaller=False):
    """A second scale on top: how many times faster than base, or how many times smaller."""
    from matplotlib.ticker import FuncFormatter

    def inverse(x):
        return base / np.maximum(x, 1e-9)  # matplotlib tries 0, too

    ways = (inverse, inverse) if smaller else (lambda x: x / base, lambda x: x * base)
    top = axes.secondary_xaxis("top", functions=ways)
    plain_ticks(top.xaxis)
    top.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}x"))
    top.set_xlabel("times smaller than base" if smaller else "times as fast as base")


def explain(axes, crowded, bars, band):
    """A legend below the axes, with the points that found no room for a label."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    gray = {"color": "#777777", "linestyle": ""}
    shapes = [
        (
            Line2D([], [], color="#555555", linewidth=1.5),
            "bold: rows on the Pareto front, chosen on validation",
        ),
        (Line2D([], [], marker="o", **gray), "one technique; area: bytes on disk"),
        (Line2D([], [], marker="D", **gray), "a chain; colour: its first technique"),
    ]
    if bars:
        shapes.append((Line2D([], [], marker="|", markersize=12, **gray), f"bars: {bars}"))
    if band:
        shapes.append((Patch(color="#333333", alpha=0.1), "shaded: 95% interval of base"))
    for _, _, text, colour, *_ in crowded:
        marker = "D" if "+" in text else "o"
        shapes.append((Line2D([], [], color=colour, marker=marker, linestyle=""), text))
    handles, texts = zip(*shapes, strict=True)
    axes.legend(
        handles, texts, loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=2, frameon=False, fontsize=10
    )


# --- one run's course and answers -----------------------------------------------------------------


def plot_curves(histories, looks, selection, wording, path):
    """By epoch: left the validation score that chooses the epoch, right the loss on validation and in
    training.

    histories {run: run.json's history}, looks {run: its techniques}.
    """
    figure, (left, right) = pyplot().subplots(1, 2, figsize=(WIDTH + 1, 4.2))
    for (name, history), marker in zip(histories.items(), MARKERS * len(histories), strict=False):
        look = {"color": colour_of(looks[name]), "marker": marker, "markersize": 6, "alpha": 0.75}
        draw_curve(left, history, selection, label=name, **look)
        draw_curve(right, history, "Loss", **look)
        draw_curve(right, history, "TrainingLoss", linestyle=":", **look)
    left.set(xlabel="epoch", ylabel=f"{wording} on validation")
    right.set(xlabel="epoch", ylabel="mean loss")
    right.plot([], [], color="#777777", label="on validation: the task's loss")
    right.plot([], [], color="#777777", linestyle=":", label="in training: the technique's loss")
    right.legend(frameon=False, fontsize=9.5)
    for axes in (left, right):
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.2)
    label_curves(left)
    save_figure(figure, path)


def draw_curve(axes, history, key, **look):
    """A line over the epochs of the rows that have this key."""
    rows = [row for row in history if row.get(key) is not None]
    axes.plot([row["Epoch"] for row in rows], [row[key] for row in rows], **look)


def label_curves(axes, gap=14):
    """Write each curve's name beside its end, `gap` points apart, a thin line to each."""
    figure, curves = axes.figure, [line for line in axes.get_lines() if len(line.get_xdata())]
    first, last = axes.get_xlim()
    axes.set_xticks([tick for tick in axes.get_xticks() if first <= tick <= last])
    axes.set_xlim(first, last + 0.45 * (last - first))  # room for the names
    figure.canvas.draw()

    ends = [axes.transData.transform((line.get_xdata()[-1], line.get_ydata()[-1])) for line in curves]
    top, scale = -np.inf, figure.dpi / 72
    for end, line in sorted(zip(ends, curves, strict=True), key=lambda pair: pair[0][1]):
        text = wrapped(line.get_label(), 14)
        half = gap * (text.count("\n") + 1) / 2
        height = max(end[1] / scale, top + half)  # in points from the bottom of the figure
        top = height + half
        axes.annotate(
            text, (line.get_xdata()[-1], line.get_ydata()[-1]), (22, height - end[1] / scale),
            textcoords="offset points", va="center", color=line.get_color(), fontsize=10.5,
            arrowprops={"arrowstyle": "-", "color": line.get_color(), "linewidth": 0.7, "shrinkB": 5},
        )  # fmt: skip


def plot_calibration(calibrations, looks, whose, path, columns=3):
    """Reliability diagrams, a panel per run: how often the answers in a bin are right, by how sure they are.

    calibrations {run: {"plain" or "scaled": (calibration error, bins (B, 3))}}; whose: of what the
    probability is. A point's area is the share of the answers in its bin; rings: after temperature scaling.
    """
    columns = min(columns, len(calibrations))
    rows = -(-len(calibrations) // columns)
    figure, panels = pyplot().subplots(
        rows,
        columns,
        figsize=(3.1 * columns + 0.6, 3.7 * rows + 0.5),
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for axes, (name, found) in zip(panels.flat, calibrations.items(), strict=False):
        axes.plot((0, 1), (0, 1), color="gray", linestyle="--", linewidth=1)
        error, bins = found["plain"]
        said, seen, count = bins.T
        colour, title = colour_of(looks[name]), f"ECE {error:.3f}"
        axes.plot(said, seen, color=colour, linewidth=1, alpha=0.4)
        axes.scatter(said, seen, 8 + 300 * count / count.sum(), colour, alpha=0.7, linewidth=0)
        if "scaled" in found:
            error, bins = found["scaled"]
            said, seen, count = bins.T
            axes.scatter(said, seen, 8 + 300 * count / count.sum(), "none", edgecolor="black", linewidth=0.9)
            title += f", scaled {error:.3f}"
        axes.set_title(f"{wrapped(name)}\n{title}", fontsize=10.5)
        limits, ticks = (-0.04, 1.04), np.linspace(0, 1, 6)
        axes.set(xlim=limits, ylim=limits, xticks=ticks, yticks=ticks, aspect="equal")
        axes.grid(alpha=0.2)
    for axes in list(panels.flat)[len(calibrations) :]:
        axes.set_visible(False)
    legend = "filled: as trained; rings: after temperature scaling; area: answers in the bin"
    figure.supxlabel(f"mean probability in the bin, of {whose}\n{legend}", fontsize=10.5)
    figure.supylabel("share that is right", fontsize=10.5)
    save_figure(figure, path)


def wrapped(name, width=30):
    """A run's name in lines of at most so many letters, broken after a +."""
    lines = [""]
    for part in name.replace("+", "+ ").split():
        fits = len(lines[-1]) + len(part) <= width
        lines = [*lines[:-1], lines[-1] + part] if fits else [*lines, part]
    return "\n".join(lines)


def plot_confusion(name, counts, labels, path):
    """Counts of true against predicted labels (C, C), shaded by the share of the true label."""
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    figure, axes = pyplot().subplots(figsize=(1.6 + 0.8 * len(labels), 1.2 + 0.8 * len(labels)))
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for i, j in np.ndindex(counts.shape):
        color = "white" if shares[i, j] > 0.5 else "black"
        axes.text(j, i, counts[i, j], ha="center", va="center", color=color)
    axes.set_xticks(range(len(labels)), labels, rotation=45, ha="right")
    axes.set_yticks(range(len(labels)), labels)
    axes.set(xlabel="predicted label", ylabel="true label", title=f"{name}, test split")
    save_figure(figure, path)
