"""CANet on CIFAR-10: the recipe of its report, 70 epochs.

    python main.py --config configs/canet.py:tiny --workdir workdir/canet_tiny

Variants by argument: `tiny`, `light`, `base` (the default), `pro`. Without
`--config.data.path` the data are downloaded by TensorFlow Datasets.

The report claims test accuracies of 88.66 (tiny), 91.56 (light), 93.50 (base) and
93.56 % (pro). Its code validates on augmented images; here they are clean.
"""

import ml_collections
from ml_collections.config_dict import placeholder

_MODELS = {
    "tiny": "canet_tiny",
    "light": "canet_light",
    "base": "canet",
    "pro": "canet_pro",
}


def get_config(variant: str = "base") -> ml_collections.ConfigDict:
    """Returns the recipe.

    Args:
        variant: One of tiny, light, base, pro.
    """
    if variant not in _MODELS:
        raise ValueError(
            f"config variant {variant!r}: must be one of {', '.join(_MODELS)}"
        )
    config = ml_collections.ConfigDict()
    config.seed = 42  # of weights, order, augmentation and every other draw
    config.num_epochs = 70  # passes over the training split
    config.batch_size = 256  # images of the global batch; divisible by the devices
    config.dtype = "float32"  # computation: float32, or bfloat16 for GPU and TPU
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

    config.data = ml_collections.ConfigDict()
    config.data.name = "cifar10"  # digits, cifar10, imagefolder, tfds:<name>, ...
    config.data.path = placeholder(str)  # archive, its folder, npz, or a TFDS directory
    config.data.val_fraction = 0.1  # share of the training split for validation
    config.data.split_seed = 0  # of that choice; the same split for every run's seed
    config.data.max_train_examples = placeholder(int)  # of each class its share
    config.data.image_size = placeholder(int)  # pixels; not of data of a fixed size
    config.data.crop_scale = placeholder(tuple)  # area of a random crop of a photo
    config.data.on_bad_image = placeholder(str)  # error or skip; of photos

    config.pipeline = ml_collections.ConfigDict()
    config.pipeline.loader = "auto"  # resident (on the device), streamed, or by size
    config.pipeline.num_workers = 0  # reading processes if streamed; 0: threads

    config.normalize = ml_collections.ConfigDict()
    config.normalize.mean = (0.485, 0.456, 0.406)  # per channel, intensities in [0, 1]
    config.normalize.std = (0.229, 0.224, 0.225)  # ImageNet's numbers, as in the source

    config.augment = ml_collections.ConfigDict()
    config.augment.flip_probability = 0.5  # share of images mirrored
    config.augment.crop_padding_px = 4  # on each side, before the crop to full size
    config.augment.crop_fill = "zero"  # zero, reflect or edge
    config.augment.erase_probability = 0.5  # share of images with a black rectangle
    config.augment.erase_area = (0.04, 0.2)  # of the image's area, smallest and largest
    config.augment.erase_aspect = (0.5, 2.0)  # height / width, smallest and largest
    config.augment.mixup_probability = 0.3  # share of batches mixed by mixup
    config.augment.mixup_alpha = 0.5  # of the Beta distribution of its share
    config.augment.cutmix_probability = 0.3  # share of batches mixed by CutMix
    config.augment.cutmix_alpha = 0.5  # of the Beta distribution of its share

    config.loss = ml_collections.ConfigDict()
    config.loss.label_smoothing = 0.1  # share of the uniform distribution

    config.schedule = ml_collections.ConfigDict()
    config.schedule.name = "exponential"  # each schedule has keys of its own
    config.schedule.learning_rate = 1e-3  # at the start
    config.schedule.decay_rate = 0.96  # factor per epoch

    config.optimizer = ml_collections.ConfigDict()
    config.optimizer.name = "adamw_then_sgd"  # each optimizer has keys of its own
    config.optimizer.switch_fraction = 0.8  # of the epochs, from where on it is SGD
    config.optimizer.weight_decay = 1e-3  # decoupled in AdamW, L2 in SGD
    config.optimizer.momentum = 0.9  # of SGD
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
