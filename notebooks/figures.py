"""Draw the picture of the README: `python notebooks/figures.py` writes it next to this file."""

import pathlib

from dilax import plots

if __name__ == "__main__":
    # 9 inches at 200 pixels: sharp where it is shown 900 pixels wide.
    plots.save(plots.dilation_taps(kernel_size=3, dilations=(1, 2, 4)), pathlib.Path(__file__).with_name("dilation.png"), dpi=200)
