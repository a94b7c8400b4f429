"""ResNet and MobileNetV2 with SCSA on ImageNet, their project's recipes; and CIFAR-10.

    python main.py --config configs/scsa.py --workdir workdir/resnet50_scsa
    python main.py --config configs/scsa.py:resnet18_cifar --workdir workdir/scsa_cifar

Variants by argument: `resnet50` (the default), `resnet101` and `mobilenet_v2` on
ImageNet; `resnet18_cifar` and `resnet50_cifar`, with SCSA's window of 4. ImageNet is
TensorFlow Datasets' `imagenet2012`, prepared in `--config.data.path` or in its own
directory; or a folder of photos: `--config.data.name=imagefolder
--config.data.path=FOLDER`.

The project tests after every epoch; here 1 % of the training images are held out for
that. It has no recipe for CIFAR-10; this is mmpretrain's, its framework.
"""

import ml_collections
from ml_collections.config_dict import placeholder

_MODELS = {
    "resnet50": "resnet50_scsa",
    "resnet101": "resnet101_scsa",
    "mobilenet_v2": "mobilenet_v2_scsa",
    "resnet18_cifar": "resnet18",
    "resnet50_cifar": "resnet50_scsa",
}


def get_config(variant: str = "resnet50") -> ml_collections.ConfigDict:
    """Returns the recipe.

    Args:
        variant: One of resnet50, resnet101, mobilenet_v2, resnet18_cifar,
            resnet50_cifar.
    """
    if variant not in _MODELS:
        raise ValueError(
            f"config variant {variant!r}: must be one of {', '.join(_MODELS)}"
        )
    is_cifar = variant.endswith("_cifar")
    config = ml_collections.ConfigDict()
    config.seed = 42  # of weights, order, augmentation and every other draw
    config.num_epochs = 200 if is_cifar else 100  # passes over the training split
    config.batch_size = 128  # images of the global batch; divisible by the devices
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
    config.model.stem = "cifar" if is_cifar else "imagenet"  # for small images, or 224
    config.model.attention_kwargs = ml_collections.ConfigDict()
    config.model.attention_kwargs.window_size = placeholder(int)  # None: by the stem
    config.model.attention_kwargs.head_num = placeholder(int)  # None: 1
    config.model.attention_kwargs.attn_drop_ratio = placeholder(float)  # by the model
    if variant == "resnet18_cifar":
        config.model.attention = "scsa"  # in every block: scsa, cbam or eca

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
    config.schedule.name = "multi_step"  # each schedule has keys of its own
    config.schedule.learning_rate = 0.1 if is_cifar else 0.05  # at the start
    config.schedule.milestones = (100, 150) if is_cifar else (30, 60, 90)  # epochs
    config.schedule.decay_rate = 0.1  # factor at each milestone
    config.schedule.warmup_epochs = 0.0  # of a linear rise before

    config.optimizer = ml_collections.ConfigDict()
    config.optimizer.name = "sgd"  # each optimizer has keys of its own
    config.optimizer.momentum = 0.9  # share of the velocity that a step keeps
    config.optimizer.nesterov = False  # looks ahead along the velocity
    config.optimizer.weight_decay = 1e-4  # L2 on every parameter
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

    if variant == "mobilenet_v2":
        config.num_epochs = 400  # as above
        config.batch_size = 96  # as above
        config.schedule = ml_collections.ConfigDict()
        config.schedule.name = "exponential"  # as above
        config.schedule.learning_rate = 0.045  # as above
        config.schedule.decay_rate = 0.98  # factor per epoch
        config.schedule.warmup_epochs = 0.0  # as above
        config.optimizer.weight_decay = 4e-5  # as above
    return config
