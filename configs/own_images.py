"""Images of your own, in `photos/train/<class>/` and `photos/val/<class>/`.

    python main.py --config configs/own_images.py --workdir workdir/photos \
        --config.data.path=photos

A ResNet-18 for images of 128 pixels, from random weights, by a recipe that forgives
much. Variants by argument are the attention in every block: `cbam` (the default), `eca`
(multi-kernel), and `none`, a plain ResNet, which can begin from torchvision's weights
(`--config.init_from=resnet18.pth`).
"""

import ml_collections
from ml_collections.config_dict import placeholder

_VARIANTS = ("cbam", "eca", "none")


def get_config(variant: str = "cbam") -> ml_collections.ConfigDict:
    """Returns the recipe.

    Args:
        variant: One of cbam, eca, none.
    """
    if variant not in _VARIANTS:
        raise ValueError(
            f"config variant {variant!r}: must be one of {', '.join(_VARIANTS)}"
        )
    config = ml_collections.ConfigDict()
    config.seed = 0  # of weights, order, augmentation and every other draw
    config.num_epochs = 30  # passes over the training split
    config.batch_size = 32  # images of the global batch; divisible by the devices
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
    config.model.name = "resnet18"  # any of jaxattn.list_models()
    config.model.stem = "imagenet"  # or cifar, for images of about 32 pixels
    if variant != "none":
        config.model.attention = variant  # in every block: cbam, eca or scsa

    config.data = ml_collections.ConfigDict()
    config.data.name = "imagefolder"  # digits, cifar10, imagefolder, tfds:<name>, ...
    config.data.path = placeholder(str)  # folder with train/<class>/ and val/<class>/
    config.data.val_fraction = 0.1  # of train, held out to choose the best weights
    config.data.split_seed = 0  # of that choice; the same split for every run's seed
    config.data.max_train_examples = placeholder(int)  # of each class its share
    config.data.image_size = 128  # pixels that the network sees
    config.data.resize_px = placeholder(int)  # shorter side in evaluation; None: 8/7
    config.data.crop_scale = placeholder(tuple)  # area of a random crop; (0.08, 1.0)
    config.data.crop_ratio = placeholder(tuple)  # its width / height; (3/4, 4/3)
    config.data.on_bad_image = placeholder(str)  # error (the default) or skip

    config.pipeline = ml_collections.ConfigDict()
    config.pipeline.loader = "auto"  # resident (on the device), streamed, or by size
    config.pipeline.num_workers = 0  # reading processes if streamed; 0: threads

    config.normalize = ml_collections.ConfigDict()
    config.normalize.mean = (0.485, 0.456, 0.406)  # per channel, intensities in [0, 1]
    config.normalize.std = (0.229, 0.224, 0.225)  # as mean

    config.augment = ml_collections.ConfigDict()
    config.augment.flip_probability = 0.5  # share of images mirrored
    config.augment.brightness = 0.2  # largest change of the factor 1
    config.augment.contrast = 0.2  # as brightness
    config.augment.saturation = 0.2  # as brightness

    config.loss = ml_collections.ConfigDict()
    config.loss.label_smoothing = 0.1  # share of the uniform distribution

    config.schedule = ml_collections.ConfigDict()
    config.schedule.name = "cosine"  # to zero; each schedule has keys of its own
    config.schedule.learning_rate = 1e-3  # after the rise
    config.schedule.warmup_epochs = 1.0  # of a linear rise before
    config.schedule.update_per = "step"  # step, or epoch

    config.optimizer = ml_collections.ConfigDict()
    config.optimizer.name = "adamw"  # each optimizer has keys of its own
    config.optimizer.weight_decay = 5e-2  # decoupled, times the learning rate
    config.optimizer.clip_norm = 1.0  # largest gradient norm

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
