"""Which attention helps a small ResNet: one recipe, minutes on two CPU cores each.

    python main.py --config configs/attention_study.py:cbam --workdir workdir/study_cbam
    jaxattn compare --root workdir/attention_study --seeds 0 1 2 --configs \
        configs/attention_study.py:none configs/attention_study.py:cbam

Variants by argument: `none` (the default), `cbam`, `eca` (multi-kernel), `scsa`, and
`scc`. The first four are a ResNet-10 of a quarter of the usual width, with the module
in each of its four blocks; CBAM's bottlenecks are as wide as at full width. `scc` is an
SCCNet-18 so narrow that it has about as many parameters and multiply-accumulates.
Trained on 5,000 images of CIFAR-10, 1,000 others for validation. SCSA comes with its
authors' initialisation, which starts every block as its shortcut.

Without `--config.data.path` the data are downloaded by TensorFlow Datasets.
"""

import ml_collections
from ml_collections.config_dict import placeholder

_VARIANTS = ("none", "cbam", "eca", "scsa", "scc")


def get_config(variant: str = "none") -> ml_collections.ConfigDict:
    """Returns the recipe.

    Args:
        variant: One of none, cbam, eca, scsa, scc.
    """
    if variant not in _VARIANTS:
        raise ValueError(
            f"config variant {variant!r}: must be one of {', '.join(_VARIANTS)}"
        )
    config = ml_collections.ConfigDict()
    config.seed = 0  # of weights, order, augmentation and every other draw
    config.num_epochs = 15  # passes over the training split
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
    if variant == "scc":
        config.model.name = "sccnet18"  # any of jaxattn.list_models()
        config.model.widths = (10, 20, 40, 80)  # channels of the stages
        config.model.downsample = "conv1"  # of the shortcuts: as in the ResNet
    else:
        config.model.name = "resnet10"  # any of jaxattn.list_models()
        config.model.widths = (16, 32, 64, 128)  # channels of the stages
        config.model.attention = placeholder(str)  # in every block: cbam, eca or scsa
    if variant in ("cbam", "eca", "scsa"):
        config.model.attention = variant  # as above
    if variant == "cbam":
        config.model.attention_kwargs = ml_collections.ConfigDict()
        config.model.attention_kwargs.reduction = 4  # of the channels; 16 at full width
    config.model.stem = "cifar"  # keeps small images large

    config.data = ml_collections.ConfigDict()
    config.data.name = "cifar10"  # digits, cifar10, imagefolder, tfds:<name>, ...
    config.data.path = placeholder(str)  # archive, its folder, npz, or a TFDS directory
    config.data.val_fraction = 0.02  # share of the training split for validation
    config.data.split_seed = 0  # of that choice; the same split for every run's seed
    config.data.max_train_examples = 5000  # of each class its share
    config.data.image_size = placeholder(int)  # pixels; not of data of a fixed size

    config.pipeline = ml_collections.ConfigDict()
    config.pipeline.loader = "auto"  # resident (on the device), streamed, or by size
    config.pipeline.num_workers = 0  # reading processes if streamed; 0: threads

    config.normalize = ml_collections.ConfigDict()
    config.normalize.mean = (0.485, 0.456, 0.406)  # per channel, intensities in [0, 1]
    config.normalize.std = (0.229, 0.224, 0.225)  # as mean

    config.augment = ml_collections.ConfigDict()
    config.augment.flip_probability = 0.5  # share of images mirrored
    config.augment.crop_padding_px = 4  # on each side, before the crop to full size
    config.augment.crop_fill = "zero"  # zero, reflect or edge

    config.loss = ml_collections.ConfigDict()
    config.loss.label_smoothing = 0.0  # share of the uniform distribution

    config.schedule = ml_collections.ConfigDict()
    config.schedule.name = "cosine"  # to zero; each schedule has keys of its own
    config.schedule.learning_rate = 0.1  # after the rise
    config.schedule.warmup_epochs = 1.0  # of a linear rise before
    config.schedule.update_per = "step"  # step, or epoch

    config.optimizer = ml_collections.ConfigDict()
    config.optimizer.name = "sgd"  # each optimizer has keys of its own
    config.optimizer.momentum = 0.9  # share of the velocity that a step keeps
    config.optimizer.nesterov = True  # looks ahead along the velocity
    config.optimizer.weight_decay = 5e-4  # L2 on every parameter
    config.optimizer.clip_norm = placeholder(float)  # largest gradient norm; None: any

    config.ema = ml_collections.ConfigDict()
    config.ema.decay = 0.0  # share that the average keeps per step; 0: no average
    config.ema.batch_stats = "average"  # average, or live (those of the raw weights)

    config.early_stopping = ml_collections.ConfigDict()
    config.early_stopping.patience = placeholder(int)  # epochs without gain; None: any
    config.early_stopping.min_delta = placeholder(float)  # that a gain exceeds; None: 0

    config.log = ml_collections.ConfigDict()
    config.log.every_steps = 10  # training steps per line of metrics.jsonl
    config.log.tensorboard = False  # writes TensorBoard events
    config.log.histograms = False  # of all parameters at every epoch
    config.log.images = False  # a grid of augmented inputs at the start
    config.log.attention_maps = False  # of four validation images at every evaluation
    config.log.profile_steps = placeholder(tuple)  # first and last step of a trace
    return config
