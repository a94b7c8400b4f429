"""The attention-enhanced ResNet on CIFAR-10: its project's recipe, 500 epochs.

    python main.py --config configs/cbam_resnet.py --workdir workdir/cbam_resnet

Without `--config.data.path` the data are downloaded by TensorFlow Datasets.

The project reports 95.30 %: the best of 500 validations, on augmented images, with
averaged weights. Here validation images are clean; `--config.augment.validation=true`
augments them as the project does. Its average keeps the raw network's batch statistics,
which is poor for the first 20 epochs; `--config.ema.batch_stats=average` is not.
"""

import ml_collections
from ml_collections.config_dict import placeholder


def get_config() -> ml_collections.ConfigDict:
    """Returns the recipe."""
    config = ml_collections.ConfigDict()
    config.seed = 42  # of weights, order, augmentation and every other draw
    config.num_epochs = 500  # passes over the training split
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
    config.model.name = "enhanced_efficient_resnet"  # any of jaxattn.list_models()
    config.model.base_width = placeholder(int)  # channels of the stem; None: 31
    config.model.dropout_rate = placeholder(float)  # before the classifier; None: 0.3

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
    config.normalize.mean = (0.4914, 0.4822, 0.4465)  # per channel, in [0, 1]
    config.normalize.std = (0.2023, 0.1994, 0.2010)  # as mean

    config.augment = ml_collections.ConfigDict()
    config.augment.flip_probability = 0.5  # share of images mirrored
    config.augment.crop_padding_px = 4  # on each side, before the crop to full size
    config.augment.crop_fill = "reflect"  # zero, reflect or edge
    config.augment.rotation_degrees = 15.0  # largest angle either way
    config.augment.brightness = 0.1  # largest change of the factor 1
    config.augment.contrast = 0.1  # as brightness
    config.augment.saturation = 0.1  # as brightness
    config.augment.hue = 0.02  # largest shift either way, in turns
    config.augment.perspective_probability = 0.5  # share of images distorted
    config.augment.perspective_distortion = 0.1  # of half a side: a corner's way inward
    config.augment.mixup_probability = 0.3  # share of batches mixed by mixup
    config.augment.mixup_alpha = 1.0  # of the Beta distribution of its share
    config.augment.cutmix_probability = 0.3  # share of batches mixed by CutMix
    config.augment.cutmix_alpha = 1.0  # of the Beta distribution of its share
    config.augment.validation = False  # augments (but does not mix) validation images

    config.loss = ml_collections.ConfigDict()
    config.loss.label_smoothing = 0.1  # share of the uniform distribution

    config.schedule = ml_collections.ConfigDict()
    config.schedule.name = "cosine"  # to zero; each schedule has keys of its own
    config.schedule.learning_rate = 0.1  # at the start
    config.schedule.update_per = "epoch"  # step, or epoch

    config.optimizer = ml_collections.ConfigDict()
    config.optimizer.name = "sgd"  # each optimizer has keys of its own
    config.optimizer.momentum = 0.9  # share of the velocity that a step keeps
    config.optimizer.nesterov = True  # looks ahead along the velocity
    config.optimizer.weight_decay = 5e-4  # L2 on every parameter, after clipping
    config.optimizer.clip_norm = 1.0  # largest gradient norm

    config.ema = ml_collections.ConfigDict()
    config.ema.decay = 0.999  # share that the average keeps per step; 0: no average
    config.ema.batch_stats = "live"  # average, or live (those of the raw weights)

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
