"""CIFAR-10 in a short training: a recipe of our own, none of its values tuned yet.

    python main.py --config configs/best.py:cpu --workdir workdir/best_cpu

Variants by argument: `gpu` (the default), a ResNet-18 of three quarters of the usual
width, 6.3 M parameters, 100 epochs in bfloat16; `cpu`, a ResNet-10 of half the usual
width, 1.2 M parameters, 16 epochs in float32. Both have large batches, one rise and
fall of a high learning rate, and an average of the weights; `gpu`, which has not been
trained yet, also mixes by CutMix. It reproduces nothing published.

Without `--config.data.path` the data are downloaded by TensorFlow Datasets.
"""

import ml_collections
from ml_collections.config_dict import placeholder

_VARIANTS = ("gpu", "cpu")


def get_config(variant: str = "gpu") -> ml_collections.ConfigDict:
    """Returns the recipe.

    Args:
        variant: One of gpu, cpu.
    """
    if variant not in _VARIANTS:
        raise ValueError(
            f"config variant {variant!r}: must be one of {', '.join(_VARIANTS)}"
        )
    on_gpu = variant == "gpu"
    config = ml_collections.ConfigDict()
    config.seed = 0  # of weights, order, augmentation and every other draw
    config.num_epochs = 100 if on_gpu else 16  # passes over the training split
    config.batch_size = 512  # images of the global batch; divisible by the devices
    config.dtype = "bfloat16" if on_gpu else "float32"  # computation
    config.data_parallel = "jit"  # jit (over a mesh) or pmap
    config.steps_per_dispatch = placeholder(int)  # steps per device call; None: 1 to 25
    config.accumulate_steps = placeholder(int)  # micro-batches of a step; None: 1
    config.init_from = placeholder(str)  # workdir, PyTorch file, or package's weights
    config.trainable = "all"  # all, or head: only the layer that makes the logits
    config.keep_checkpoints = placeholder(int)  # newest ones, beside the best; None: 2
    config.max_skipped_steps = 0  # whose loss is not finite, before the run ends
    config.stall_timeout_s = 1800.0  # without a step before the run ends; s

    config.model = ml_collections.ConfigDict()
    if on_gpu:
        config.model.name = "resnet18"  # any of jaxattn.list_models()
        config.model.widths = (48, 96, 192, 384)  # channels of the stages
    else:
        config.model.name = "resnet10"  # any of jaxattn.list_models()
        config.model.widths = (32, 64, 128, 256)  # channels of the stages
    config.model.attention = placeholder(str)  # in every block: cbam, eca or scsa
    config.model.stem = "cifar"  # keeps small images large

    config.data = ml_collections.ConfigDict()
    config.data.name = "cifar10"  # digits, cifar10, imagefolder, tfds:<name>, ...
    config.data.path = placeholder(str)  # archive, its folder, npz, or a TFDS directory
    config.data.val_fraction = 0.02  # share of the training split for validation
    config.data.split_seed = 0  # of that choice; the same split for every run's seed
    config.data.max_train_examples = placeholder(int)  # of each class its share
    config.data.image_size = placeholder(int)  # pixels; not of data of a fixed size

    config.pipeline = ml_collections.ConfigDict()
    config.pipeline.loader = "auto"  # resident (on the device), streamed, or by size
    config.pipeline.num_workers = 0  # reading processes if streamed; 0: threads

    config.normalize = ml_collections.ConfigDict()
    config.normalize.mean = (0.4914, 0.4822, 0.4465)  # per channel, in [0, 1]
    config.normalize.std = (0.2470, 0.2435, 0.2616)  # as mean

    config.augment = ml_collections.ConfigDict()
    config.augment.flip_probability = 0.5  # share of images mirrored
    config.augment.crop_padding_px = 4  # on each side, before the crop to full size
    config.augment.crop_fill = "reflect"  # zero, reflect or edge
    if on_gpu:
        config.augment.cutmix_probability = 0.5  # share of batches mixed by CutMix
        config.augment.cutmix_alpha = 1.0  # of the Beta distribution of its share

    config.loss = ml_collections.ConfigDict()
    config.loss.label_smoothing = 0.1  # share of the uniform distribution

    config.schedule = ml_collections.ConfigDict()
    config.schedule.name = "cosine"  # to zero; each schedule has keys of its own
    config.schedule.learning_rate = 0.4  # after the rise
    config.schedule.warmup_epochs = 10.0 if on_gpu else 3.0  # of a linear rise before
    config.schedule.update_per = "step"  # step, or epoch

    config.optimizer = ml_collections.ConfigDict()
    config.optimizer.name = "sgd"  # each optimizer has keys of its own
    config.optimizer.momentum = 0.9  # share of the velocity that a step keeps
    config.optimizer.nesterov = True  # looks ahead along the velocity
    config.optimizer.weight_decay = 5e-4  # L2 on every parameter
    config.optimizer.clip_norm = placeholder(float)  # largest gradient norm; None: any

    config.ema = ml_collections.ConfigDict()
    config.ema.decay = 0.999 if on_gpu else 0.99  # kept per step; 0: no average
    config.ema.batch_stats = "average"  # average, or live (those of the raw weights)

    config.early_stopping = ml_collections.ConfigDict()
    config.early_stopping.patience = placeholder(int)  # epochs without gain; None: any
    config.early_stopping.min_delta = placeholder(float)  # that a gain exceeds; None: 0

    config.log = ml_collections.ConfigDict()
    config.log.every_steps = 10  # training steps per line of metrics.jsonl
    config.log.tensorboard = True  # writes TensorBoard events
    config.log.histograms = False  # of all parameters at every epoch
    config.log.images = False  # a grid of augmented inputs at the start
    config.log.attention_maps = False  # of four validation images at every evaluation
    config.log.profile_steps = placeholder(tuple)  # first and last step of a trace
    return config
