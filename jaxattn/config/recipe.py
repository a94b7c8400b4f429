"""Every key that a recipe names, once: its default or its type, and what it means.

A recipe is a call of `recipe` with the values in which it differs. Nothing here needs
JAX, so that a recipe can be read, changed and compared in no time.
"""

from collections.abc import Collection, Mapping
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

# A type is a key without a value: a placeholder, which a command line may fill.

# What every recipe has.
_DEFAULTS: dict[str, Any] = {
    "seed": 0,  # of weights, order, augmentation and every other draw
    "num_epochs": int,  # passes over the training split
    "batch_size": int,  # images of the global batch; divisible by the devices
    "task": "classification",  # what is learnt
    "dtype": "float32",  # computation: float32, bfloat16, or auto: the faster one
    "data_parallel": "jit",  # jit (over a mesh) or pmap
    "steps_per_dispatch": int,  # steps per device call; None: 1 to 25
    "accumulate_steps": int,  # micro-batches of a step; None: 1
    "init_from": str,  # workdir, file, hf:OWNER/NAME, torchvision:NAME, ...
    "trainable": "all",  # all, or head: only the layer that makes the logits
    "freeze": str,  # regular expression: names' starts that never learn; None: none
    "freeze_stages": int,  # stages up to this never learn; the stem is 0; None: none
    "unfreeze_epochs": tuple,  # from when on further stages learn, beside the head
    "freeze_batch_norm": str,  # by running statistics: frozen, statistics, all
    "keep_checkpoints": int,  # newest ones, beside the best; None: 2
    "max_skipped_steps": 0,  # whose loss is not finite, before the run ends
    "stall_timeout_s": 1800.0,  # without a step before the run ends; s
    "accept_changed_data": False,  # resumes though the data are not as they were
    "model": {
        "name": str,  # any of jaxattn.list_models()
    },
    "data": {
        "name": str,  # digits, imagefolder, detection_folder, tfds:<name>, ...
        "path": str,  # archive, its folder, npz, folder of photos, or TFDS directory
        "val_fraction": 0.1,  # share of the training split for validation
        "split_seed": 0,  # of that choice; the same split for every run's seed
        "max_train_examples": int,  # of each class its share; None: all
        "max_eval_examples": int,  # the same, of validation and of test images
        "image_size": int,  # pixels, of data without a fixed size; None: 224 of photos
    },
    "pipeline": {
        "loader": "auto",  # resident (on the device), streamed, or by size
        "num_workers": 0,  # reading processes if streamed; 0: threads
    },
    "normalize": {  # by ImageNet's numbers
        "mean": (0.485, 0.456, 0.406),  # per channel or one for all, in [0, 1]
        "std": (0.229, 0.224, 0.225),  # as mean
    },
    "augment": {},
    "loss": {
        "label_smoothing": 0.0,  # share of the uniform distribution
    },
    "schedule": {},
    "optimizer": {
        "clip_norm": float,  # largest gradient norm; None: any
        "decay_mask": str,  # what decays: all, or kernels (rank 2 or more); None: all
        "layer_decay": float,  # rate of a layer, of that of the next; None: 1
        "head_rate": float,  # learning rate of the head alone; None: the schedule's
    },
    "ema": {
        "decay": 0.0,  # share that the average keeps per step; 0: no average
        "batch_stats": "average",  # average, or live (those of the raw weights)
    },
    "early_stopping": {
        "patience": int,  # epochs without gain before the run ends; None: any
        "min_delta": float,  # that a gain exceeds; None: 0
    },
    "log": {
        "every_steps": 10,  # training steps per line of metrics.jsonl
        "tensorboard": True,  # writes TensorBoard events
        "histograms": True,  # of all parameters at every epoch
        "images": True,  # a grid of augmented inputs at the start
        "attention_maps": False,  # of four validation images at every evaluation
        "profile_steps": tuple,  # first and last step of a trace
    },
}

# What a recipe has if it names it: each network, schedule and optimizer takes others.
_CHOSEN: dict[str, Any] = {
    "learning_rates": tuple,  # of a study: constant; a run for each
    "model": {
        "stem": str,  # cifar, which keeps small images large, imagenet or v1c
        "backbone": str,  # of a dense network: the classifier beneath its head
        "channels": int,  # of the head of a dense network
        "fpn_features": int,  # channels of a detector's pyramid; None: 256
        "anchor_base": float,  # least anchor of a detector, in strides; None: 4 or 8
        "norm": str,  # of a backbone: batch or frozen; None: batch
        "widths": tuple,  # channels of the stages
        "width": int,  # of VGG: channels of the first layer; None: 64
        "base_width": int,  # channels of the stem; None: 31
        "dropout_rate": float,  # before the classifier; None: the network's
        "downsample": str,  # of the shortcuts: conv1, conv3, conv5, scc1 to scc5
        "activation": str,  # of a ResNet: relu or mish
        "in_channels": int,  # that images must have; None: any
        "drop_path_rate": float,  # images without the last residual branch; None: 0
        "mask_prob": float,  # of SCC: share of the elements forced to each branch
        "forcing": str,  # of SCC: rule of the other branches, uniform or constant
        "attention": str,  # in every block: any of jaxattn.models.list_attention()
        "attention_stages": tuple,  # that have it, from 1 on; None: as its authors
        "attention_place": str,  # inside, after, ...; None: as its authors
        "attention_init": str,  # identity: as without attention; None: as its authors
        "attention_kwargs": {
            "reduction": int,  # of CBAM: of the channels; None: 16
            "window_size": int,  # of SCSA; None: by the stem
            "head_num": int,  # of SCSA; None: 1
            "attn_drop_ratio": float,  # of SCSA; None: the network's
        },
        "plain": str,  # of a study: any of jaxattn.list_models()
        "bn": str,  # of a study: the same with batch normalisation
    },
    "data": {
        "resize_px": int,  # shorter side of a photo in evaluation; None: 8/7 of size
        "crop_scale": tuple,  # area of a random crop of a photo; None: (0.08, 1.0)
        "crop_ratio": tuple,  # its width / height; None: (3/4, 4/3)
        "on_bad_image": str,  # error or skip; of photos; None: error
        "canvas_size": tuple,  # height, width shown to a dense network; None: all same
        "crop_size": tuple,  # height, width in training; None: canvas_size
        "scale_range": tuple,  # of random scaling before; None: (0.5, 2), boxes: off
        "cat_max_ratio": float,  # largest share of one class in a crop; None: 0.75
        "classes": tuple,  # lines "name" or "name R G B"; None: classes.txt
        "max_boxes": int,  # of an image; None: 100
        "scales_up": bool,  # fills the canvas by smaller photos; None: True
        "reduce_zero_label": bool,  # 0 is ignored, 1 the first class; None: by layout
    },
    "augment": {
        "flip_probability": float,  # share of images mirrored
        "crop_padding_px": int,  # on each side, before the crop to full size
        "crop_fill": str,  # zero, reflect or edge
        "rotation_degrees": float,  # largest angle either way
        "brightness": float,  # largest change of the factor 1
        "contrast": float,  # as brightness
        "saturation": float,  # as brightness
        "hue": float,  # largest shift either way, in turns
        "photometric_probability": float,  # share changed in each of four colourings
        "perspective_probability": float,  # share of images distorted
        "perspective_distortion": float,  # of half a side: a corner's way inward
        "erase_probability": float,  # share of images with a black rectangle
        "erase_area": tuple,  # of the image's area, smallest and largest
        "erase_aspect": tuple,  # height / width, smallest and largest
        "mixup_probability": float,  # share of batches mixed by mixup
        "mixup_alpha": float,  # of the Beta distribution of its share
        "cutmix_probability": float,  # share of batches mixed by CutMix
        "cutmix_alpha": float,  # of the Beta distribution of its share
        "validation": bool,  # augments (but does not mix) validation images
    },
    "loss": {
        "aux_weight": float,  # of the auxiliary head's loss
        "avg_non_ignore": bool,  # divides by pixels that count, not by all
        "box_loss": str,  # l1, smooth_l1 or giou; None: l1
        "box_weight": float,  # of the loss of boxes; None: 1
        "dice_weight": float,  # of the Dice loss that is added; None: 0
        "focal_gamma": float,  # power of 1 - p on each pixel's loss; None: 0
        "ohem_threshold": float,  # pixels surer than this have no loss; None: all have
        "ohem_min_kept": int,  # pixels of an image that have one anyway; None: 100,000
        "class_weights": tuple,  # of each class's pixels; None: all 1
    },
    "schedule": {
        "name": str,  # any of jaxattn.training.optim.SCHEDULES
        "learning_rate": float,  # at the start, after the rise if there is one
        "warmup_epochs": float,  # of a linear rise before
        "final_factor": float,  # of the rate, where cosine or poly ends; None: 0
        "power": float,  # of poly: of the share of the run that is left; None: 0.9
        "update_per": str,  # of cosine and poly: step, or epoch
        "decay_rate": float,  # factor per epoch, or at each milestone
        "milestones": tuple,  # epochs
    },
    "optimizer": {
        "name": str,  # any of jaxattn.training.optim.OPTIMIZERS
        "switch_fraction": float,  # of the epochs, from where on it is SGD
        "momentum": float,  # of SGD: share of the velocity that a step keeps
        "nesterov": bool,  # looks ahead along the velocity
        "weight_decay": float,  # L2 in SGD and Adam, after clipping; AdamW: decoupled
    },
    "landscape": {  # of a study
        "every_steps": int,  # training steps per look along a step; 0: none
        "step_factors": tuple,  # how far, in units of it
    },
}


def recipe(**values: Any) -> ConfigDict:
    """Returns the config of a training run.

    Args:
        **values: What differs from the defaults, sections as dicts. None is a key that
            is left to the command line. Keys that are not in the list are taken as
            they are: a section's values are the keyword arguments of one function.
            The keys of `loss` are the task's, so another task has no defaults there.
    """
    defaults = dict(_DEFAULTS)
    if values.get("task", defaults["task"]) != defaults["task"]:
        defaults["loss"] = {}
    return study(**_update(defaults, values))


def study(**values: Any) -> ConfigDict:
    """Returns a config of the given keys alone, without defaults.

    Args:
        **values: As those of `recipe`.
    """
    return ConfigDict(_fill(values, _update(_DEFAULTS, _CHOSEN)))


def of_record(config: Mapping[str, Any]) -> ConfigDict:
    """Returns a config of the values that a run has recorded.

    Args:
        config: Content of its `config.json`, without what the run added.
    """
    return study(**{key: _from_json(value) for key, value in config.items()})


def _from_json(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _from_json(inner) for key, inner in value.items()}
    return tuple(map(_from_json, value)) if isinstance(value, list) else value


def choose_variant(variant: str, choices: Collection[str]) -> str:
    """Returns the argument of a recipe, which must be one of the choices.

    Raises:
        ValueError: If it is not.
    """
    if variant not in choices:
        wanted = ", ".join(choices)
        raise ValueError(f"config variant {variant!r}: must be one of {wanted}")
    return variant


def _update(base: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the base with the values in place of its own, section by section."""
    updated = dict(base)
    for key, value in values.items():
        is_section = isinstance(value, Mapping)
        updated[key] = _update(base.get(key, {}), value) if is_section else value
    return updated


def _fill(values: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the values with placeholders for None and for types."""
    filled = {}
    for key, value in values.items():
        if value is None and key not in known:
            raise ValueError(
                f"{key}=None: must be a type, such as int; it is not known"
            )
        value = known[key] if value is None else value
        if isinstance(value, Mapping):
            filled[key] = _fill(value, known.get(key, {}))
        else:
            filled[key] = placeholder(value) if isinstance(value, type) else value
    return filled
