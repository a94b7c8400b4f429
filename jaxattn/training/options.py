"""The keys of a run that belong to no section, and what it logs."""

import dataclasses
import itertools
import re
from collections.abc import Callable

from jaxattn.config.bind import DTYPES
from jaxattn.errors import choose, require, require_seed
from jaxattn.models.published import check_address
from jaxattn.ops import cpu_kernels
from jaxattn.ops.conv import is_faster_in_bfloat16
from jaxattn.training.checkpoints.checkpoint import NUM_LATEST

_TRAINABLE = ("all", "head")
_BATCH_NORM = ("frozen", "statistics", "all")
_FROM_1 = (
    "num_epochs",
    "batch_size",
    "steps_per_dispatch",
    "accumulate_steps",
    "keep_checkpoints",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """The keys of a config that belong to no section.

    Attributes:
        seed: Of initial weights, order, augmentation and every other draw.
        num_epochs: Passes over the training split.
        batch_size: Images of the global batch, divisible by the devices.
        task: What is learnt, one of `jaxattn.tasks.registry`.
        dtype: Computation dtype, "float32", "bfloat16", or "auto": bfloat16 on devices
            that are faster in it, which a CPU is with oneDNN's convolutions and
            instructions for bfloat16.
        data_parallel: "jit" (a mesh) or "pmap".
        steps_per_dispatch: Train steps per call of the device; by default 25, on a CPU
            4 if convolutions are oneDNN's (3 if that divides an epoch and 4 does not),
            and 1 if they are not.
        accumulate_steps: Micro-batches into which a step splits its batch, for a batch
            that does not fit into memory; the optimizer steps once, with their mean
            gradient. Equal to the whole batch where there is no BatchNorm; see
            `jaxattn.training.steps.make_train_step`.
        init_from: The weights from which this run starts: the workdir of another run,
            a file (`.safetensors`, or PyTorch's), an address of a hub or of torchvision
            (see `jaxattn.models.published`), or the name of weights that come with the
            package. The head too if it is for the same classes (where their names are
            not known: for as many).
        trainable: "all", or "head": only the layer that makes the logits learns.
            BatchNorm still follows the batches.
        freeze: A regular expression. Parameters whose names match it from their start
            never learn: `conv1|bn1|layer1` or `.*attn`, say, of
            `layer1.0.conv1.kernel`.
        freeze_stages: The stages up to this one never learn; the stem is 0, and layer1
            of a ResNet 1, as in mmpretrain's `frozen_stages`. Those of any network are
            as `jaxattn.models.layers` finds them.
        unfreeze_epochs: Numbers of epochs, rising: the head learns alone until the
            first is done, then the last stage before it, too, after the second the
            one before, and so on; after the last number all that is left. `(2,)` is
            two epochs of the head, then everything. Not what `freeze` and
            `freeze_stages` say.
        freeze_batch_norm: Which BatchNorm layers normalise by their running statistics
            and leave them as they are: "frozen", those whose parameters are frozen;
            "statistics", all; "all", all, and their scales and biases never learn. By
            default none.
        keep_checkpoints: The newest ones that are kept beside the best: of the ends of
            epochs, and of where a signal stopped the run.
        max_skipped_steps: Steps of the run whose loss or gradient may be infinite or
            not a number; they change nothing. One more ends the run.
        stall_timeout_s: Seconds after which a run ends in which no step and no
            evaluation batch is finished; compilation counts.
        accept_changed_data: Resumes a run though its data are not those that it was
            begun with: images may have moved between training and validation.
    """

    seed: int
    num_epochs: int
    batch_size: int
    task: str = "classification"
    dtype: str = "float32"
    data_parallel: str = "jit"
    steps_per_dispatch: int | None = None
    accumulate_steps: int = 1
    init_from: str | None = None
    trainable: str = "all"
    freeze: str | None = None
    freeze_stages: int | None = None
    unfreeze_epochs: tuple[int, ...] = ()
    freeze_batch_norm: str | None = None
    keep_checkpoints: int = NUM_LATEST
    max_skipped_steps: int = 0
    stall_timeout_s: float = 1800.0
    accept_changed_data: bool = False

    def __post_init__(self) -> None:
        for key in _FROM_1:
            value = getattr(self, key)
            require(key, value, value is None or value >= 1, "at least 1")
        require_seed("seed", self.seed)
        skipped = self.max_skipped_steps
        require("max_skipped_steps", skipped, skipped >= 0, "at least 0")
        timeout_s = self.stall_timeout_s
        require("stall_timeout_s", timeout_s, timeout_s > 0, "above 0")
        if self.init_from is not None:
            check_address(self.init_from, "init_from")
        choose("dtype", self.dtype, (*DTYPES, "auto"))
        choose("trainable", self.trainable, _TRAINABLE)
        self._check_freezing()

    def _check_freezing(self) -> None:
        if self.freeze is not None:
            try:
                re.compile(self.freeze)
            except re.error as error:
                wanted = f"a regular expression ({error})"
                require("freeze", self.freeze, False, wanted)
        if self.freeze_stages is not None:
            holds = self.freeze_stages >= 0
            require("freeze_stages", self.freeze_stages, holds, "at least 0")
        epochs = tuple(self.unfreeze_epochs)
        holds = all(a < b for a, b in itertools.pairwise((0, *epochs, self.num_epochs)))
        wanted = f"rising, from 1 on and below num_epochs={self.num_epochs}"
        require("unfreeze_epochs", epochs, holds or not epochs, wanted)
        if self.freeze_batch_norm is not None:
            choose("freeze_batch_norm", self.freeze_batch_norm, _BATCH_NORM)
        for key in ("freeze", "freeze_stages", "unfreeze_epochs"):
            value = getattr(self, key)
            holds = self.trainable == "all" or value in (None, ())
            require(key, value, holds, "left out with trainable='head', which says all")


def choose_dtype(options: Options, tell: Callable[[str], None]) -> Options:
    """Returns options whose dtype is not "auto", and tells of the choice."""
    if options.dtype != "auto":
        return options
    cpu_kernels.prepare()  # which decide
    dtype = "bfloat16" if is_faster_in_bfloat16() else "float32"
    tell(f"dtype: {dtype}, the faster one here (dtype=auto)")
    return dataclasses.replace(options, dtype=dtype)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Log:
    """What a run writes beside its metrics of every epoch.

    Attributes:
        every_steps: Training steps per line of `metrics.jsonl`, each a mean since the
            line before.
        tensorboard: Writes TensorBoard events.
        histograms: With TensorBoard: histograms of all parameters at every epoch.
        images: With TensorBoard: a grid of augmented inputs at the start.
        attention_maps: With TensorBoard: what the network attends to in four
            validation images (without a validation split test images), the same at
            every evaluation.
        profile_steps: First and last step, counted from 1, of which the first process
            writes a trace for TensorBoard's profile plugin; empty: none. Nothing is
            compiled in it if the trace, and as many steps before it that the same
            process does, lie within an epoch. A mark in it is a dispatch: up to
            `steps_per_dispatch` steps.
    """

    every_steps: int = 10
    tensorboard: bool = True
    histograms: bool = True
    images: bool = True
    attention_maps: bool = False
    profile_steps: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        require(
            "log.every_steps", self.every_steps, self.every_steps >= 1, "at least 1"
        )
        steps = self.profile_steps
        is_range = len(steps) == 2 and 1 <= steps[0] <= steps[1]
        wanted = "(first, last), counted from 1"
        require("log.profile_steps", steps, not steps or is_range, wanted)
