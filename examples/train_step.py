"""The trainer's step in a loop of your own, as in a notebook.

Needs the extra `train`: python examples/train_step.py
"""

from jaxattn.recipes import quickstart
from jaxattn.training import Trainer, build

config = quickstart.get_config()
config.num_epochs = 1
trainer = Trainer(build(config))
state = trainer.init_state()
for update in trainer.train(state):
    state = update.state
    loss, accuracy = (update.metrics[key].mean() for key in ("loss", "accuracy"))
    print(f"step {update.step}: loss {loss:.3f}, accuracy {accuracy:.2f}")
summary = trainer.evaluate(state, "test")
assert summary is not None
print(f"test accuracy {summary['accuracy']:.2f} of {summary['count']} images")
