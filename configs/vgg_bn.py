"""What batch normalisation does to the loss landscape of VGG-A, on CIFAR-10.

    jaxattn bn-landscape --config configs/vgg_bn.py --workdir workdir/vgg_bn

Trains both networks with four learning rates for 50 epochs, as the course project did
(PRML, Fudan University, 2025). Its events show all 50,000 images in training and an
accuracy measured on the 10,000 test images.

Smaller, on a CPU: `--config.model.width=8 --config.data.val_fraction=0.9`, which leaves
an eighth of the width and 5,000 images to train on.
"""

import ml_collections
from ml_collections.config_dict import placeholder


def get_config() -> ml_collections.ConfigDict:
    """Returns the study."""
    config = ml_collections.ConfigDict()
    config.seed = 2020  # of weights and order, the same for every run
    config.num_epochs = 50  # passes over the training split, of every run
    config.batch_size = 128  # images of the global batch; divisible by the devices
    config.learning_rates = (0.001, 0.002, 0.0005, 0.0001)  # constant; a run for each
    config.dtype = "float32"  # computation: float32, or bfloat16 for GPU and TPU
    config.data_parallel = "jit"  # jit (over a mesh) or pmap
    config.steps_per_dispatch = placeholder(int)  # steps per device call; None: 1 to 25

    config.model = ml_collections.ConfigDict()
    config.model.plain = "vgg_a"  # any of jaxattn.list_models()
    config.model.bn = "vgg_a_bn"  # the same with batch normalisation
    config.model.width = placeholder(int)  # channels of the first layer; None: 64

    config.data = ml_collections.ConfigDict()
    config.data.name = "cifar10"  # digits, cifar10, synthetic, tfds:<name>, ...
    config.data.path = placeholder(str)  # archive, its folder, npz, or a TFDS directory
    config.data.val_fraction = 0.0  # share of the training split to leave out
    config.data.image_size = placeholder(int)  # pixels; not of data of a fixed size

    config.pipeline = ml_collections.ConfigDict()
    config.pipeline.loader = "auto"  # resident (on the device), streamed, or by size
    config.pipeline.num_workers = 0  # reading processes if streamed; 0: threads

    config.normalize = ml_collections.ConfigDict()
    config.normalize.mean = (0.5, 0.5, 0.5)  # per channel, intensities in [0, 1]
    config.normalize.std = (0.5, 0.5, 0.5)  # as mean

    config.optimizer = ml_collections.ConfigDict()
    config.optimizer.name = "adam"  # each optimizer has keys of its own
    config.optimizer.weight_decay = 0.0  # L2 on every parameter

    config.landscape = ml_collections.ConfigDict()
    config.landscape.every_steps = 50  # training steps per look along a step; 0: none
    config.landscape.step_factors = (0.5, 1.0, 2.0, 4.0)  # how far, in units of it

    config.log = ml_collections.ConfigDict()
    config.log.tensorboard = True  # writes TensorBoard events
    return config
