"""Download image sets and write them where config.data.name finds them.

cifar10, cifar100, mnist and fashion_mnist need no TensorFlow; the other image sets of TensorFlow Datasets (TFDS) do.
"""

import sys

from train import cli
from train.data.readers.downloads import prepare


def main() -> None:
    """Prepare each set, and print its folder."""
    parser = cli.parser(sys.modules[__name__])
    parser.add_argument("names", nargs="+", metavar="name", help="name of a set in TFDS, such as cifar10")
    parser.add_argument("--data_dir", type=cli.folder, help="folder to write to; the default is TFDS_DATA_DIR, else ~/tensorflow_datasets")
    args = parser.parse_args()
    for name in args.names:
        print(prepare(name, str(args.data_dir or "")))


if __name__ == "__main__":
    cli.run(main)
