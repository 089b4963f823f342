"""Download an image set and write it where `config.data.name` finds it.

cifar10, cifar100, mnist and fashion_mnist need no TensorFlow; the other image sets of TFDS do.
"""

import sys

from train import cli
from train.data.readers.downloads import prepare


def main() -> None:
    """Print the directory of each set."""
    parser = cli.parser(sys.modules[__name__])
    parser.add_argument("names", nargs="+", metavar="name", help="name of the set in TFDS, such as cifar10")
    parser.add_argument("--data_dir", default="", help="where to write; default is TFDS_DATA_DIR, else the default of TFDS")
    args = parser.parse_args()
    for name in args.names:
        print(prepare(name, args.data_dir))


if __name__ == "__main__":
    cli.run(main)
