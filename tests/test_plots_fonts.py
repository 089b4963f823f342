"""Test that names in any script are legible: with a font that has them, or as ? with one note, never as boxes."""

import logging
import pathlib

import numpy as np
import pytest
from matplotlib import font_manager
from matplotlib.text import Text

from dilax import plots
from dilax.plots import canvas

HAN, EMOJI = "\N{CJK UNIFIED IDEOGRAPH-732B}", "\N{SLIGHTLY SMILING FACE}"
NAMES = [f"{HAN} $x_1$", "\u0436\u00e9\u05d0", f"a\nb\udc80 {HAN}"]
IMAGE, MASK = np.ones((4, 6, 1)), np.arange(24).reshape(4, 6) % 3
FIGURES = {
    "tick labels": lambda names: plots.confusion_matrix(np.eye(3), names),
    "bars": lambda names: plots.class_bars([0.1, 0.2, 0.3], names),
    "legend": lambda names: plots.segmentation_overlay(IMAGE, MASK, names),
    "grid": lambda names: plots.segmentation_grid(IMAGE[None], MASK[None], MASK[None], names, [f"{HAN}.png"]),
    "titles": lambda names: plots.prediction_grid(IMAGE[None], [0], [[0.2, 0.3, 0.5]], names),
    "axis labels": lambda names: plots.step_outputs(np.ones((2, 3)), np.ones((2, 3)), names, title=f"{HAN}.csv"),
    "series": lambda names: plots.series_grid([np.ones((3, 1))], [0], [[0.2, 0.3, 0.5]], names),
    "waveforms": lambda names: plots.waveforms(np.zeros((3, 5)), 8, names),
    "maps": lambda names: plots.feature_maps({names[0]: np.ones((4, 6, 1))}, IMAGE),
}


def texts(figure) -> str:
    return "".join(text.get_text() for text in figure.findobj(Text))


@pytest.mark.parametrize("name", FIGURES)
def test_what_no_font_has_is_a_question_mark_and_is_said_once(name, tmp_path, capsys, caplog, monkeypatch):
    monkeypatch.setattr(canvas, "find_fonts", lambda characters: ((), characters))
    figure = FIGURES[name](NAMES)
    with caplog.at_level(logging.WARNING):  # of mathematics, in which matplotlib finds no other fonts
        plots.save(figure, tmp_path / "a.png")
        plots.save(figure, tmp_path / "b.svg")
    assert HAN not in texts(figure) and "?" in texts(figure)
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and said.startswith(f"note: no installed font has the characters {HAN}; the picture shows them as ?.")
    assert not caplog.records


def test_other_installed_fonts_are_used(tmp_path, capsys, monkeypatch):
    """The default font is said to lack a Cyrillic letter, which others have."""
    default, real = canvas._default_font(), canvas._characters
    missing = frozenset(map(ord, "\u0436"))
    monkeypatch.setattr(canvas, "_characters", lambda file: real(file) - missing if file == default else real(file))
    canvas.find_fonts.cache_clear()
    figure = plots.confusion_matrix(np.eye(3), ["a", "\u0436\u0436", "c"])
    for file in ("a.png", "b.svg"):
        plots.save(figure, tmp_path / file)
    canvas.find_fonts.cache_clear()
    label = figure.axes[0].get_yticklabels()[1]
    assert label.get_text() == "\u0436\u0436"
    _, other = label.get_fontfamily()
    assert ord("\u0436") in real(str(font_manager.findfont(other)))
    assert capsys.readouterr().err == ""


def test_the_fewest_fonts_are_chosen(monkeypatch):
    have = {"one": "ab", "two": "abcd", "three": "de", "boxes": ""}
    monkeypatch.setattr(canvas, "_installed_fonts", lambda: iter([(name, name) for name in have]))
    monkeypatch.setattr(canvas, "_characters", lambda file: frozenset(map(ord, have[file])))
    assert canvas.find_fonts.__wrapped__(frozenset("abcdef")) == (("two", "three"), frozenset("f"))
    assert canvas.find_fonts.__wrapped__(frozenset("xyz")) == ((), frozenset("xyz"))


def test_files_that_are_not_fonts_have_no_characters(tmp_path):
    file = tmp_path / "font.ttf"
    file.write_bytes(b"not a font")
    assert canvas._characters(str(file)) == frozenset()
    assert not any("lastresort" in pathlib.Path(path).name.lower() for _, path in canvas._installed_fonts())
