"""SCCNet on ImageNet, its project's recipe of 120 epochs; and on CIFAR-10.

    python main.py --config configs/sccnet.py --workdir workdir/sccnet18
    python main.py --config configs/sccnet.py:34_cifar --workdir workdir/sccnet34_cifar

Variants by argument: `18` (the default) and `34` on ImageNet, `18_cifar` and
`34_cifar`. ImageNet is TensorFlow Datasets' `imagenet2012`, prepared in
`--config.data.path` or in its own directory; or a folder of photos:
`--config.data.name=imagefolder --config.data.path=FOLDER`.

The project reports 74.85 % (top-5 92.06 %) for `34` on ImageNet, and tests after every
epoch; here 1 % of the training images are held out for that. It reports nothing for
CIFAR-10, whose recipe here is the usual one with its learning rate.
"""

import ml_collections
from ml_collections.config_dict import placeholder

_MODELS = {
    "18": "sccnet18",
    "34": "sccnet34",
    "18_cifar": "sccnet18",
    "34_cifar": "sccnet34",
}


def get_config(variant: str = "18") -> ml_collections.ConfigDict:
    """Returns the recipe.

    Args:
        variant: One of 18, 34, 18_cifar, 34_cifar.
    """
    if variant not in _MODELS:
        raise ValueError(
            f"config variant {variant!r}: must be one of {', '.join(_MODELS)}"
        )
    is_cifar = variant.endswith("_cifar")
    config = ml_collections.ConfigDict()
    config.seed = 42  # of weights, order, augmentation and every other draw
    config.num_epochs = 200 if is_cifar else 120  # passes over the training split
    config.batch_size = 128  # images of the global batch; divisible by the devices
    config.dtype = "float32"  # computation: float32; bfloat16 is an approximation here
    config.data_parallel = "jit"  # jit (over a mesh) or pmap
    config.steps_per_dispatch = placeholder(int)  # steps per device call; None: 1 to 25
    config.accumulate_steps = placeholder(int)  # micro-batches of a step; None: 1
    config.init_from = placeholder(str)  # workdir, PyTorch file, or package's weights
    config.trainable = "all"  # all, or head: only the layer that makes the logits
    config.keep_checkpoints = placeholder(int)  # newest ones, beside the best; None: 2
    config.max_skipped_steps = 0  # whose loss is not finite, before the run ends
    config.stall_timeout_s = 1800.0  # without a step before the run ends; s

    config.model = ml_collections.ConfigDict()
    config.model.name = _MODELS[variant]  # any of jaxattn.list_models()
    config.model.stem = "cifar" if is_cifar else "imagenet"  # for small images, or 224
    config.model.downsample = "scc5"  # of the shortcuts: conv1, conv3, conv5, scc1 to 5
    config.model.mask_prob = 0.005  # share of the elements forced to each branch
    config.model.forcing = "uniform"  # rule of the other branches: uniform or constant

    config.data = ml_collections.ConfigDict()
    config.data.name = "cifar10" if is_cifar else "imagenet2012"  # or imagefolder, ...
    config.data.path = placeholder(str)  # folder, archive, npz, or a TFDS directory
    config.data.val_fraction = 0.1 if is_cifar else 0.01  # held out of training
    config.data.split_seed = 0  # of that choice; the same split for every run's seed
    config.data.max_train_examples = placeholder(int)  # of each class its share
    config.data.image_size = placeholder(int)  # pixels; None: 224, not of CIFAR
    config.data.resize_px = placeholder(int)  # shorter side in evaluation; None: 256
    config.data.crop_scale = placeholder(tuple)  # area of a random crop; (0.08, 1.0)
    config.data.crop_ratio = placeholder(tuple)  # its width / height; (3/4, 4/3)
    config.data.on_bad_image = placeholder(str)  # error or skip; of photos

    config.pipeline = ml_collections.ConfigDict()
    config.pipeline.loader = "auto"  # resident (on the device), streamed, or by size
    config.pipeline.num_workers = 0  # reading processes if streamed; 0: threads

    config.normalize = ml_collections.ConfigDict()
    config.normalize.mean = (0.485, 0.456, 0.406)  # per channel, intensities in [0, 1]
    config.normalize.std = (0.229, 0.224, 0.225)  # as mean

    config.augment = ml_collections.ConfigDict()
    config.augment.flip_probability = 0.5  # share of images mirrored
    config.augment.crop_padding_px = 4 if is_cifar else 0  # on each side, before a crop
    config.augment.crop_fill = "zero"  # zero, reflect or edge

    config.loss = ml_collections.ConfigDict()
    config.loss.label_smoothing = 0.0  # share of the uniform distribution

    config.schedule = ml_collections.ConfigDict()
    config.schedule.name = "cosine"  # each schedule has keys of its own
    config.schedule.learning_rate = 0.1  # at the start
    config.schedule.final_factor = 0.001  # of it, where the cosine ends
    config.schedule.warmup_epochs = 0.0  # of a linear rise before

    config.optimizer = ml_collections.ConfigDict()
    config.optimizer.name = "sgd"  # each optimizer has keys of its own
    config.optimizer.momentum = 0.9  # share of the velocity that a step keeps
    config.optimizer.nesterov = False  # looks ahead along the velocity
    config.optimizer.weight_decay = 5e-4 if is_cifar else 5e-5  # L2 on every parameter
    config.optimizer.clip_norm = placeholder(float)  # largest gradient norm; None: any

    config.ema = ml_collections.ConfigDict()
    config.ema.decay = 0.0  # share that the average keeps per step; 0: no average
    config.ema.batch_stats = "average"  # average, or live (those of the raw weights)

    config.early_stopping = ml_collections.ConfigDict()
    config.early_stopping.patience = placeholder(int)  # epochs without gain; None: any
    config.early_stopping.min_delta = placeholder(float)  # that a gain exceeds; None: 0

    config.log = ml_collections.ConfigDict()
    config.log.every_steps = 10  # training steps per line of metrics.jsonl
    config.log.tensorboard = True  # writes TensorBoard events
    config.log.histograms = True  # of all parameters at every epoch
    config.log.images = True  # a grid of augmented inputs at the start
    config.log.attention_maps = False  # of four validation images at every evaluation
    config.log.profile_steps = placeholder(tuple)  # first and last step of a trace
    return config
