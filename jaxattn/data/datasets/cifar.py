"""CIFAR-10 and CIFAR-100, from local files or by TFDS."""

from jaxattn.data.datasets import archives
from jaxattn.data.datasets.paths import existing
from jaxattn.data.datasets.tfds import load_tfds
from jaxattn.data.source import Data, digest, labelled

CIFAR10_CLASSES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)


def load_cifar(name: str, *, path: str | None = None) -> Data:
    """Loads CIFAR-10 or CIFAR-100, 32 x 32 pixels.

    Args:
        name: "cifar10" or "cifar100".
        path: The official Python archive, its unpacked folder, a folder that holds one
            of these, an npz with `x_train`, `y_train`, `x_test` and `y_test`, or a
            prepared TFDS directory. Without it
            TFDS reads its own directory and downloads what is not there.

    Raises:
        UserError: The data cannot be had.
    """
    if path is None:
        return load_tfds(name)
    where = existing(path)
    if where.is_dir():
        files = archives.find_files(name, where)
        if files is None:
            return load_tfds(name, path=path)
        where = files
    cifar = archives.read_cifar(name, where)
    num_classes = archives.LAYOUTS[name].num_classes
    numbers = tuple(str(i) for i in range(num_classes))
    known = CIFAR10_CLASSES if name == "cifar10" else numbers
    return Data(
        name=name,
        train=labelled(*cifar.train),
        val=None,
        test=labelled(*cifar.test),
        class_names=cifar.class_names or known,
        image_shape=archives.IMAGE_SHAPE,
        files={"train": digest(*cifar.train), "test": digest(*cifar.test)},
    )
