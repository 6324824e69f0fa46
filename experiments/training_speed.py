"""How much of a bare PyTorch loop's speed does the Lightning loop keep?

The second stage of configs/fashion_mnist.yaml (labelled and pool images, strong augmentation, pseudo-labels, AdamW,
averaged weights) against a hand-written loop that does the same work with the same model and batch, and against one
without augmentation and averaging. The contestants take turns; the table shows the median of the rounds.

    python experiments/training_speed.py
"""

import argparse
import logging
import statistics
import time
import warnings
from collections.abc import Callable, Iterator

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn

from lspread.data import StrongAugmentation, TensorData
from lspread.labels import PseudoLabels
from lspread.lit import FewLabelClassifier
from lspread.nn import SmallResNet, embed

NUM_CLASSES, POOL, LABELED = 10, 256, 32


def make_data(num_steps: int) -> TensorData:
    generator = torch.Generator().manual_seed(0)
    num_items = num_steps * POOL
    image = torch.randint(0, 256, (num_items, 1, 28, 28), dtype=torch.uint8, generator=generator)
    label = torch.arange(num_items) % NUM_CLASSES
    names = [str(number) for number in range(NUM_CLASSES)]
    return TensorData(image, label, names, num_labels_per_class=10, batch_size=POOL, labeled_batch_size=LABELED)


def make_model() -> FewLabelClassifier:
    strong = {"crop": (0.4, 1.0), "aspect": 0.75, "erase": 0.0}
    model = FewLabelClassifier(
        SmallResNet(1, (16, 32, 64), pool_size=2),
        NUM_CLASSES,
        weak=StrongAugmentation(**strong),
        strong=StrongAugmentation(**strong),
    )
    model.set_moments([0.29], [0.35])
    return model.to(memory_format=torch.channels_last)


def uniform_pseudo_labels(num_items: int) -> PseudoLabels:
    true = torch.ones(num_items, dtype=torch.bool)
    return PseudoLabels(
        torch.arange(num_items) % NUM_CLASSES,
        torch.ones(num_items),
        torch.ones(NUM_CLASSES),
        ~true,
        true,
        torch.full((num_items, NUM_CLASSES), 1 / NUM_CLASSES),
    )


class Clock(Callback):
    """Notes when each step ends; the first few warm up."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_train_batch_end(self, *_: object) -> None:
        self.ends.append(time.perf_counter())


def rate(ends: list[float]) -> float:
    warm = len(ends) // 5
    return (len(ends) - 1 - warm) * (POOL + LABELED) / (ends[-1] - ends[warm])


def lightning_loop(data: TensorData) -> float:
    model, clock = make_model(), Clock()
    model.pseudo = uniform_pseudo_labels(len(data.items))
    trainer = Trainer(
        max_epochs=1,
        accelerator="cpu",
        callbacks=[EMAWeightAveraging(decay=0.99), clock],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, datamodule=data)
    return rate(clock.ends)


def bare_loop(data: TensorData, *, is_plain: bool) -> float:
    model = make_model().train()
    average = AveragedModel(model, avg_fn=get_ema_avg_fn(0.99), use_buffers=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    images = data.images.fetch(torch.arange(len(data.items)))
    labeled, label = data.split.labeled, torch.arange(len(data.items)) % NUM_CLASSES
    ends = []
    for rows in batches(len(images)):
        given = labeled[torch.randint(len(labeled), (LABELED,))]
        index = torch.cat([given, rows])
        image = images[index].float().div_(255)
        image = image if is_plain else model.strong(image)
        logits = model.head(model.backbone(model.normalize(image)))
        loss = cross_entropy(logits[:LABELED], label[given]) + cross_entropy(logits[LABELED:], label[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if not is_plain:
            average.update_parameters(model)
        ends.append(time.perf_counter())
    return rate(ends)


def batches(num_items: int) -> Iterator[Tensor]:
    return iter(torch.randperm(num_items).split(POOL))


def embedding(data: TensorData, *, is_bare: bool) -> float:
    model = make_model().eval()
    start = time.perf_counter()
    if is_bare:
        images = data.images.fetch(torch.arange(len(data.items)))
        with torch.inference_mode():
            torch.cat([model.backbone(model.normalize(part)) for part in images.split(1024)])
    else:
        embed(model.backbone, data.pool_dataloader(), preprocess=model.normalize)
    return len(data.items) / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60, help="training steps per round")
    parser.add_argument("--rounds", type=int, default=5, help="rounds, each contestant once in each")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    data = make_data(options.steps)
    data.setup()
    contestants: dict[str, Callable[[], float]] = {
        "training: Lightning loop of lspread": lambda: lightning_loop(data),
        "training: bare loop, same work": lambda: bare_loop(data, is_plain=False),
        "training: bare loop, no augmentation, no averaging": lambda: bare_loop(data, is_plain=True),
        "embedding: lspread.nn.embed": lambda: embedding(data, is_bare=False),
        "embedding: bare loop": lambda: embedding(data, is_bare=True),
    }
    found: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(options.rounds):
        for name, contestant in contestants.items():
            found[name].append(contestant())
    print(f"images/s, median of {options.rounds} rounds of {options.steps} steps, {torch.get_num_threads()} threads")
    for name, values in found.items():
        base = found[f"{name.split(':')[0]}: bare loop" + (", same work" if name.startswith("training") else "")]
        ratio = statistics.median(value / other for value, other in zip(values, base, strict=True))
        print(
            f"{name:52} {statistics.median(values):8,.0f}   x {ratio:.2f}   ({min(values):,.0f} to {max(values):,.0f})"
        )


if __name__ == "__main__":
    main()
