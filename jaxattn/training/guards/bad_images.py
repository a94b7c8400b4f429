"""Images that would end a run at its end, found at its beginning."""

from collections.abc import Callable

from jaxattn.data.checking import find_bad_images, reads_files
from jaxattn.data.pipeline import StreamedLoader
from jaxattn.errors import UserError
from jaxattn.training.run import Run


def refuse_bad_images(
    run: Run, is_stopped: Callable[[], bool], say: Callable[[str], None]
) -> None:
    """Decodes the images of evaluations once, if nothing else did before the training.

    A bad one among the test images would end the run after its last epoch. Images that
    live on the device were all read before, and those that are skipped end nothing.

    Args:
        run: The run.
        is_stopped: Asked every few hundred images, of which the rest is then left.
        say: Shows a line.

    Raises:
        UserError: If an image cannot be read.
    """
    for split in ("val", "test"):
        source = run.data.splits.get(split)
        is_streamed = isinstance(run.loaders.get(split), StreamedLoader)
        if source is None or not (is_streamed and reads_files(source)):
            continue
        say(f"checking {len(source):,} {split} images")
        faults = []
        for found in find_bad_images(source):
            faults += found
            if is_stopped():
                return
        if faults:
            raise UserError(
                f"{len(faults):,} of {len(source):,} {split} images cannot be read:"
                f" {faults[0]}; mend or remove them (jaxattn doctor --all-images names"
                " them), or set data.on_bad_image=skip"
            )
