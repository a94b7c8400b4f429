import functools
import itertools
import os
import subprocess
import sys

import chex
import matplotlib
import numpy as np
import pytest
from PIL import Image
from tiers import full_but

from jaxattn import viz
from jaxattn.viz.figure import legible


def history(num_epochs, *, keys=("train", "val", "val_ema")):
    rows = []
    for epoch in range(1, num_epochs + 1):
        row = {"epoch": epoch}
        for key in keys:
            name, _, ema = key.partition("_")
            suffix = "_ema" if ema else ""
            row[f"{name}_loss{suffix}"] = 2.0 / epoch
            row[f"{name}_accuracy{suffix}"] = 1 - 0.5 / epoch
        rows.append(row)
    return rows


def texts(axes):
    return [text.get_text() for text in axes.texts]


def legend(figure):
    return [text.get_text() for text in figure.axes[0].get_legend().get_texts()]


def test_history_has_a_loss_and_an_accuracy_panel():
    figure = viz.plot_history(history(5), "accuracy")
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles == ["Loss", "Accuracy (%)"]


def test_history_draws_accuracy_in_percent():
    figure = viz.plot_history(history(5, keys=["train"]), "accuracy")
    (line,) = figure.axes[1].lines
    chex.assert_trees_all_close(
        np.asarray(line.get_ydata()), 100 - 50 / np.arange(1, 6)
    )


def test_history_names_every_curve_it_draws():
    figure = viz.plot_history(history(5), "accuracy")
    assert legend(figure) == ["train", "validation", "validation, EMA"]


def test_history_without_validation_draws_training_alone():
    assert legend(viz.plot_history(history(5, keys=["train"]), "accuracy")) == ["train"]


def test_history_marks_the_best_validation_epoch():
    rows = history(5)
    rows[2]["val_accuracy"] = 0.99
    figure = viz.plot_history(rows, "accuracy")
    assert texts(figure.axes[1]) == ["best 99.00%\nepoch 3"]


def test_history_of_one_epoch_is_visible():
    rows = history(1, keys=["train"])
    picture = viz.figure_to_array(viz.plot_history(rows, "accuracy"))
    accuracy = picture[:, picture.shape[1] // 2 :]  # the panel without the legend
    assert np.any(np.all(accuracy == [0x44, 0x77, 0xAA], axis=-1))


def test_history_leaves_out_what_is_not_a_number():
    rows = history(4)
    rows[1]["val_loss"] = None
    rows[2]["val_loss"] = float("nan")
    figure = viz.plot_history(rows, "accuracy")
    validation = figure.axes[0].lines[1]
    assert list(validation.get_xdata()) == [1, 4]


def test_history_is_of_the_metric_named():
    rows = history(3, keys=["val"])
    for row in rows:
        row["val_iou"] = 0.25 * row["epoch"]
    _, axes = viz.plot_history(rows, "iou").axes
    assert axes.get_title(loc="left") == "IoU (%)"
    assert list(axes.lines[0].get_ydata()) == [25, 50, 75]
    assert "best 75.00%" in texts(axes)[0]


def test_history_with_a_diverging_epoch_is_logarithmic():
    rows = history(10)
    assert viz.plot_history(rows, "accuracy").axes[0].get_yscale() == "linear"
    rows[4]["val_loss"] = 1e5
    assert viz.plot_history(rows, "accuracy").axes[0].get_yscale() == "log"


def test_history_of_no_epoch_is_drawn():
    chex.assert_rank(viz.figure_to_array(viz.plot_history([], "accuracy")), 3)


def test_confusion_cells_carry_their_counts_and_zeros_stay_blank():
    figure = viz.plot_confusion_matrix(np.array([[7, 0], [2, 5]]), ["a", "b"])
    cells = {t.get_position(): t.get_text() for t in figure.axes[0].texts}
    # (column, row): rows are true, columns predicted.
    assert cells == {(0, 0): "7", (0, 1): "2", (1, 1): "5"}


def test_confusion_colours_are_shares_of_the_true_class():
    figure = viz.plot_confusion_matrix(np.array([[6, 2], [0, 0]]), ["a", "b"])
    shares = np.asarray(figure.axes[0].images[0].get_array())
    chex.assert_trees_all_close(shares, np.array([[0.75, 0.25], [0, 0]]))


def test_confusion_of_many_classes_has_colours_and_sparse_labels_only():
    names = [f"class {i}" for i in range(100)]
    axes = viz.plot_confusion_matrix(np.eye(100, dtype=int), names).axes[0]
    labels = [text.get_text() for text in axes.get_yticklabels()]
    assert texts(axes) == []
    assert labels == names[::4]


def test_confusion_labels_keep_both_ends_of_long_names():
    names = ["a very long class name, number 1", "a very long class name, number 2"]
    axes = viz.plot_confusion_matrix(np.eye(2, dtype=int), names).axes[0]
    labels = [text.get_text() for text in axes.get_xticklabels()]
    assert [len(label) for label in labels] == [22, 22]
    assert [label[-1] for label in labels] == ["1", "2"]


def test_names_that_look_like_mathematics_are_drawn_literally():
    figure = viz.plot_confusion_matrix(np.eye(2, dtype=int), [r"$\bad{$", "_^$$"])
    viz.figure_to_array(figure)
    images = np.zeros((1, 4, 4, 3), np.uint8)
    viz.figure_to_array(viz.plot_images(images, [r"$\bad{$"]))


def test_names_outside_the_font_are_drawn_without_warnings():
    figure = viz.plot_confusion_matrix(np.eye(2, dtype=int), ["猫", "犬"])
    viz.figure_to_array(figure)


def test_confusion_that_does_not_fit_its_names_is_refused():
    with pytest.raises(ValueError, match=r"\(2, 2\); 3 class_names need \(3, 3\)"):
        viz.plot_confusion_matrix(np.eye(2, dtype=int), ["a", "b", "c"])


@pytest.mark.parametrize("channels", [1, 3])
def test_images_are_shown_pixel_for_pixel(channels):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (3, 4, 5, channels), np.uint8)
    figure = viz.plot_images(images, ["a", "b", "c"], columns=2)
    shown = [axes.images[0] for axes in figure.axes if axes.images]
    assert [image.get_interpolation() for image in shown] == ["nearest"] * 3
    chex.assert_trees_all_equal(
        [np.asarray(image.get_array()) for image in shown],
        list(np.broadcast_to(images, (3, 4, 5, 3))),
    )


def test_images_carry_their_titles():
    images = np.zeros((3, 4, 4, 1), np.uint8)
    figure = viz.plot_images(images, ["cat", "dog\n→ cat", ""], columns=2)
    labels = [axes.get_xlabel() for axes in figure.axes]
    assert labels == ["cat", "dog\n→ cat", "", ""]


LONG = (
    "WWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWW",
    "a very long name of a class with many words in it",
    "Pseudopodium_longissimum_var_alpha_subsp_7",
    "金魚と鯉の群れ金魚と鯉の群れ金魚と鯉の群れ",
    "$x_1$ \\alpha",
    "il",
)


@pytest.mark.parametrize("count", [3, 24])
def test_captions_of_images_do_not_touch(count):
    pairs = [(LONG[i % 6], LONG[(i + i // 6) % 6]) for i in range(count)]
    titles = [f"{one} 99%\ntrue: {other}" for one, other in pairs]
    figure = viz.plot_images(np.zeros((count, 96, 96, 3), np.uint8), titles)
    viz.figure_to_array(figure)
    labels = [axes.xaxis.label for axes in figure.axes if axes.get_xlabel()]
    assert len(labels) == count
    boxes = [label.get_window_extent() for label in labels]
    boxes += [axes.get_window_extent() for axes in figure.axes]
    for i, box in enumerate(boxes):
        assert box.x0 >= 0
        assert box.x1 <= figure.bbox.width
        assert not any(box.overlaps(other) for other in boxes[:i])
    # Of each name both ends are there, and what it is.
    for label, pair in zip(labels, pairs, strict=True):
        one, other = map(legible, pair)
        text = label.get_text().replace("\n", "").replace(" ", "")
        assert text.startswith(one.replace(" ", "")[:4])
        assert "99%true:" in text
        assert text.endswith(other.replace(" ", "")[-4:])


@pytest.mark.parametrize("num_images", [0, 2])
def test_images_without_a_title_each_are_refused(num_images):
    images = np.zeros((num_images, 4, 4, 3), np.uint8)
    with pytest.raises(ValueError, match="titles"):
        viz.plot_images(images, ["only one"] * min(num_images, 1))


def test_learning_rate_is_drawn_over_steps_without_what_is_not_finite():
    rates = np.array([0.1, np.nan, 0.05])
    axes = viz.plot_learning_rate(np.array([10, 20, 30]), rates).axes[0]
    (line,) = axes.lines
    assert list(line.get_xdata()) == [10, 30]
    assert list(line.get_ydata()) == [0.1, 0.05]
    assert axes.get_yscale() == "linear"


def test_learning_rate_of_several_magnitudes_is_logarithmic():
    figure = viz.plot_learning_rate(np.arange(3), np.array([0.1, 1e-5, 0]))
    assert figure.axes[0].get_yscale() == "log"


def test_class_accuracy_has_the_lowest_class_first_and_none_without_examples():
    accuracy, support = np.array([0.5, 0.25, 0.0, 1.0]), np.array([8, 4, 0, 2])
    axes = viz.plot_class_accuracy(accuracy, support, list("abcd")).axes[0]
    labels = [text.get_text() for text in axes.get_yticklabels()]
    assert labels == ["b (4)", "a (8)", "d (2)"]
    assert [bar.get_width() for bar in axes.patches] == [25, 50, 100]
    assert axes.figure.get_suptitle() == "Accuracy by class (mean 58.3 %)"


def test_class_accuracy_of_long_names_is_titled_in_full():
    figure = viz.plot_class_accuracy(np.ones(3), np.full(3, 50), LONG[:3])
    viz.figure_to_array(figure)
    drawn = figure.get_tightbbox()  # inches
    width, height = figure.get_size_inches()
    assert (drawn.x0 >= 0, drawn.y0 >= 0) == (True, True)
    assert (drawn.x1 <= width, drawn.y1 <= height) == (True, True)


def test_class_accuracy_of_many_classes_shows_the_lowest():
    accuracy = np.linspace(1, 0, 101)
    names = [f"class {i}" for i in range(101)]
    axes = viz.plot_class_accuracy(accuracy, np.ones(101, int), names).axes[0]
    assert len(axes.patches) == 30
    assert axes.get_yticklabels()[0].get_text() == "class 100 (1)"
    assert "lowest 30 of 101" in axes.figure.get_suptitle()


@pytest.mark.parametrize("channels", [3, 1, 4])
def test_filters_share_one_scale_on_which_zero_is_grey(channels):
    kernel = np.zeros((3, 3, channels, 18), np.float32)
    kernel[0, 1, :, 17] = -2.0  # in the second row of tiles, the second tile
    kernel[2, 2, :, 0] = 1.0
    axes = viz.plot_filters(kernel, "conv1").axes[0]
    picture = np.asarray(axes.images[0].get_array())
    assert picture.shape == (7, 63, 3)
    assert picture[4, 5].tolist() == [0, 0, 0]
    assert picture[2, 2].tolist() == [0.75] * 3
    assert picture[0, 0].tolist() == [0.5] * 3
    assert axes.get_title(loc="left") == (
        "conv1: 18 filters of 3 x 3, largest weight 2"
    )


def test_reliability_title_is_the_expected_calibration_error():
    nan = float("nan")
    figure = viz.plot_reliability(
        np.array([nan, 0.4, 0.9]), np.array([nan, 0.5, 0.7]), np.array([0, 25, 75])
    )
    # 0.25 * 0.1 + 0.75 * 0.2; the empty bin is not read.
    assert "ECE 17.5%" in figure.get_suptitle()


def test_reliability_draws_accuracies_and_counts_of_filled_bins():
    figure = viz.plot_reliability(
        np.array([0, 0.9]), np.array([0, 0.7]), np.array([0, 75])
    )
    heights = [[bar.get_height() for bar in axes.patches] for axes in figure.axes]
    assert heights == [[0.7], [75]]


def test_reliability_pales_where_examples_are_few():
    figure = viz.plot_reliability(
        np.array([0.2, 0.6, 0.9]), np.array([1.0, 0.5, 0.9]), np.array([1, 9, 10])
    )
    colours = {bar.get_height(): bar.get_facecolor() for bar in figure.axes[0].patches}
    assert colours[1.0] == colours[0.5] != colours[0.9]
    assert legend(figure) == ["confidence", "accuracy", "accuracy of under 10"]
    assert texts(figure.axes[1]) == ["1", "9", "10"]


def test_saved_figure_is_the_rendered_one(tmp_path):
    figure = viz.plot_class_accuracy(np.ones(2), np.ones(2, int), ["a", "b"])
    viz.save_figure(figure, tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        saved = np.asarray(image)
    chex.assert_trees_all_equal(saved, viz.figure_to_array(figure))


@pytest.mark.parametrize("count", [32, pytest.param(80, marks=pytest.mark.full)])
def test_saved_photographs_keep_their_colours(tmp_path, count):
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (count, 96, 96, 3), np.uint8)
    viz.save_figure(viz.plot_images(noise, [""] * count), tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size < 2_000_000
    with Image.open(tmp_path / "a.png") as image:
        assert image.mode == "RGB"  # no palette


def test_failed_save_keeps_the_old_picture(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    path.write_bytes(b"old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    figure = viz.plot_history(history(1), "accuracy")
    with pytest.raises(OSError, match=r"No space left on device.*a\.png"):
        viz.save_figure(figure, path)
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]
    assert path.read_bytes() == b"old"


# Comparisons


def labels_touch(axis):
    """Whether two labels of an axis's ticks overlap."""
    ticks = axis.get_major_ticks() + axis.get_minor_ticks()
    shown = [t.label1 for t in ticks if t.label1.get_text() and t.label1.get_visible()]
    assert len(shown) >= 2
    boxes = [label.get_window_extent() for label in shown]
    return any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))


def compare(num_epochs, costs=(2.2e7, 3.1e6)):
    runs = [history(num_epochs, keys=("train", "val"))]
    return viz.plot_comparison(
        ["one", "other"], costs, [[0.5], [0.6]], [[*runs, *runs], runs]
    )


def test_comparison_of_one_epoch_is_visible():
    figure = compare(1)
    _, epochs = figure.axes
    for line in (line for line in epochs.lines if len(line.get_xdata())):
        assert line.get_marker() == "o"
    assert epochs.get_xticks().tolist() == [1]
    assert compare(30).axes[1].lines[0].get_marker() in ("", "None")


def test_comparison_without_validation_says_so():
    assert texts(compare(0).axes[1]) == ["no validation"]
    assert texts(compare(1).axes[1]) == []


@pytest.mark.parametrize("factor", [5, 9, 40, 3000])
def test_ticks_of_costs_have_room(factor):
    figure = compare(3, costs=(3.1e6, factor * 3.1e6))
    viz.figure_to_array(figure)
    assert not labels_touch(figure.axes[0].xaxis)


@pytest.mark.parametrize("factor", [1.1, 3, 30, 1e4, 1e8])
def test_ticks_of_logarithmic_panels_have_room(factor):
    y = np.array([1.0, factor])
    x = np.arange(2)
    panels = [[viz.Panel("", [viz.Band("", x, y, y, "k")], "", "", log=True)] * 3] * 2
    figure = viz.plot_bands(panels, width=11, height=5.2)
    viz.figure_to_array(figure)
    assert not labels_touch(figure.axes[0].yaxis)


def test_a_band_of_one_epoch_is_visible():
    x, low, high = np.array([1]), np.array([0.2]), np.array([0.4])
    panel = viz.Panel("", [viz.Band("a", x, low, high, "k")], "", "")
    (axes,) = viz.plot_bands([[panel]], width=4, height=4).axes
    assert [line.get_marker() for line in axes.lines] == ["o", "o"]
    (bar,) = axes.collections
    assert bar.get_segments()[0].tolist() == [[1, 0.2], [1, 0.4]]
    assert axes.get_xticks().tolist() == [1]


def test_learning_rate_of_one_step_has_one_tick():
    figure = viz.plot_learning_rate(np.array([10]), np.array([1e-3]))
    assert figure.axes[0].get_xticks().tolist() == [10]


def test_figures_do_not_reach_pyplot():
    from matplotlib import _pylab_helpers

    viz.plot_history(history(2), "accuracy")
    assert not _pylab_helpers.Gcf.get_all_fig_managers()


@pytest.mark.parametrize(
    "settings",
    [
        {"text.usetex": True},
        {"image.origin": "lower", "figure.facecolor": "black", "font.size": 30},
    ],
)
def test_a_users_settings_change_no_figure(settings):
    image = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    draw = functools.partial(viz.plot_images, image[None], ["a_b"])
    expected = viz.figure_to_array(draw())
    with matplotlib.rc_context(settings):
        np.testing.assert_array_equal(viz.figure_to_array(draw()), expected)


# What a notebook's process, a desktop's or a mistyped line leaves in the environment.
BACKENDS = ("module://matplotlib_inline.backend_inline", "qtagg", "no_such_one")


@pytest.mark.parametrize("named", full_but(BACKENDS, BACKENDS[0]))
def test_figures_need_no_backend_of_the_environment(named, tmp_path):
    code = (
        "from jaxattn.training.records.figures import load_plots; viz = load_plots();"
        "viz.save_figure(viz.plot_history([], 'accuracy'), 'a.png'); import os;"
        "print(os.environ['MPLBACKEND'])"
    )
    environment = {**os.environ, "MPLBACKEND": named}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment, cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, done.stdout.strip()) == (0, named), done.stderr
    assert (tmp_path / "a.png").stat().st_size > 0


@pytest.mark.parametrize("name", viz.__all__)
def test_face_names_what_its_files_have(name):
    assert getattr(viz, name).__name__ == name
    assert getattr(viz, name).__module__.startswith("jaxattn.viz.")
