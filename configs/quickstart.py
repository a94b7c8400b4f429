"""CANet_tiny on handwritten digits: a minute or two on a CPU, no download.

python main.py --config configs/quickstart.py --workdir workdir/quickstart
"""

import ml_collections
from ml_collections.config_dict import placeholder


def get_config() -> ml_collections.ConfigDict:
    """Returns the recipe."""
    config = ml_collections.ConfigDict()
    config.seed = 0  # of weights, order, augmentation and every other draw
    config.num_epochs = 15  # passes over the training split
    config.batch_size = 64  # images of the global batch; divisible by the devices
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
    config.model.name = "canet_tiny"  # any of jaxattn.list_models()

    config.data = ml_collections.ConfigDict()
    config.data.name = "digits"  # digits, cifar10, imagefolder, tfds:<name>, ...
    config.data.path = placeholder(str)  # archive, its folder, npz, or a TFDS directory
    config.data.val_fraction = 0.1  # share of the training split for validation
    config.data.split_seed = 0  # of that choice; the same split for every run's seed
    config.data.max_train_examples = placeholder(int)  # of each class its share
    config.data.image_size = 16  # pixels; not of data of a fixed size
    config.data.crop_scale = placeholder(tuple)  # area of a random crop of a photo
    config.data.on_bad_image = placeholder(str)  # error or skip; of photos

    config.pipeline = ml_collections.ConfigDict()
    config.pipeline.loader = "auto"  # resident (on the device), streamed, or by size
    config.pipeline.num_workers = 0  # reading processes if streamed; 0: threads

    config.normalize = ml_collections.ConfigDict()
    config.normalize.mean = (0.5,)  # per channel or one for all, in [0, 1]
    config.normalize.std = (0.5,)  # as mean

    config.augment = ml_collections.ConfigDict()
    config.augment.crop_padding_px = 2  # on each side, before the crop to full size
    config.augment.crop_fill = "zero"  # zero, reflect or edge
    # A mirrored digit is another one, so no flip.

    config.loss = ml_collections.ConfigDict()
    config.loss.label_smoothing = 0.1  # share of the uniform distribution

    config.schedule = ml_collections.ConfigDict()
    config.schedule.name = "cosine"  # to zero; each schedule has keys of its own
    config.schedule.learning_rate = 2e-3  # at the start
    config.schedule.update_per = "step"  # step, or epoch

    config.optimizer = ml_collections.ConfigDict()
    config.optimizer.name = "adamw"  # each optimizer has keys of its own
    config.optimizer.weight_decay = 1e-2  # decoupled, times the learning rate

    config.ema = ml_collections.ConfigDict()
    config.ema.decay = 0.0  # share that the average keeps per step; 0: no average
    config.ema.batch_stats = "average"  # average, or live (those of the raw weights)

    config.early_stopping = ml_collections.ConfigDict()
    config.early_stopping.patience = placeholder(int)  # epochs without gain; None: any
    config.early_stopping.min_delta = placeholder(float)  # that a gain exceeds; None: 0

    config.log = ml_collections.ConfigDict()
    config.log.every_steps = 5  # training steps per line of metrics.jsonl
    config.log.tensorboard = True  # writes TensorBoard events
    config.log.histograms = True  # of all parameters at every epoch
    config.log.images = True  # a grid of augmented inputs at the start
    config.log.attention_maps = False  # of four validation images at every evaluation
    config.log.profile_steps = placeholder(tuple)  # first and last step of a trace
    return config
