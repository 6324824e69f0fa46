"""How much of a bare PyTorch loop's speed does the Lightning loop keep?

The second stage of configs/fashion_mnist.yaml, with its network, batch, augmentation and mixing (labelled and pool
images, pseudo-labels, AdamW, averaged weights) against a hand-written loop that does the same work with the same model
and batch, and against one without augmentation, mixing and averaging. The hand-written loops keep all images on the
device. The contestants take turns; the table shows the median of the rounds, --record keeps all rounds in a small JSON.

    python experiments/training_speed.py                  # on the GPU where there is one
    python experiments/training_speed.py --device cpu --steps 15 --rounds 3        # for CPUs without bfloat16
"""

import argparse
import json
import logging
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import yaml
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn

from lspread.data import StrongAugmentation, TensorData, mix_images
from lspread.labels import PseudoLabels
from lspread.lit import FewLabelClassifier, RampedAveraging
from lspread.lit.precision import choose_precision
from lspread.nn import SmallResNet, embed

ROOT = Path(__file__).resolve().parent.parent
RECIPE = yaml.safe_load((ROOT / "configs" / "fashion_mnist.yaml").read_text())
MODEL = RECIPE["model"]
POOL, LABELED = (RECIPE["data"]["init_args"][name] for name in ("batch_size", "labeled_batch_size"))
NUM_CLASSES = 10


def make_data(num_steps: int) -> TensorData:
    generator = torch.Generator().manual_seed(0)
    num_items = num_steps * POOL
    image = torch.randint(0, 256, (num_items, 1, 28, 28), dtype=torch.uint8, generator=generator)
    label = torch.arange(num_items) % NUM_CLASSES
    names = [str(number) for number in range(NUM_CLASSES)]
    return TensorData(image, label, names, num_labels_per_class=10, batch_size=POOL, labeled_batch_size=LABELED)


def make_model(device: str = "cpu") -> FewLabelClassifier:
    model = FewLabelClassifier(
        SmallResNet(1, **MODEL["backbone"]["init_args"]),
        NUM_CLASSES,
        weak=StrongAugmentation(**MODEL["weak"]["init_args"]),
        strong=StrongAugmentation(**MODEL["strong"]["init_args"]),
        **{name: MODEL[name] for name in ("mixup", "supervised_weight", "pseudo_weight", "lr", "weight_decay")},
    )
    model.set_moments([0.29], [0.35])
    return model.to(device, memory_format=torch.channels_last)


def uniform_pseudo_labels(num_items: int, device: str) -> PseudoLabels:
    with torch.device(device):
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

    def on_train_epoch_end(self, *_: object) -> None:
        self.ends[-1] = finish()


def finish() -> float:
    """Wait until the device has done all that it was told, and return the time."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def autocast(device: str) -> torch.autocast:
    """Return the context of the number format that runs of `lspread fit` choose on the device."""
    return torch.autocast(device, torch.bfloat16, enabled=choose_precision(device).value == "bf16-mixed")


def rate(ends: list[float]) -> float:
    warm = len(ends) // 5
    return (len(ends) - 1 - warm) * (POOL + LABELED) / (ends[-1] - ends[warm])


def lightning_loop(data: TensorData, device: str, averaging: Callback) -> float:
    model, clock = make_model(), Clock()
    model.pseudo = uniform_pseudo_labels(len(data.items), device)
    trainer = Trainer(
        max_epochs=1,
        accelerator=device,
        precision=choose_precision(device).value,
        callbacks=[averaging, clock],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, datamodule=data)
    return rate(clock.ends)


def bare_loop(data: TensorData, device: str, *, is_plain: bool) -> float:
    model = make_model(device).train()
    average = AveragedModel(model, avg_fn=get_ema_avg_fn(0.99), use_buffers=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=model.lr, weight_decay=model.weight_decay, fused=True)
    images = data.images.fetch(torch.arange(len(data.items))).to(device)
    labeled, label = data.split.labeled.to(device), torch.arange(len(data.items), device=device) % NUM_CLASSES
    ends = []
    for rows in batches(len(images), device):
        given = labeled[torch.randint(len(labeled), (LABELED,), device=device)]
        known, image = images[given].float().div_(255), images[rows].float().div_(255)
        partner, share = rows, torch.ones((), device=device)
        with autocast(device):
            if not is_plain:
                known = model.weak(known)
                image, other, share = mix_images(model.strong(image), model.mixup)
                partner = rows[other]
            logits = model.head(model.backbone(model.normalize(torch.cat([known, image]))))
            own, others = (cross_entropy(logits[LABELED:], label[index]) for index in (rows, partner))
            loss = model.supervised_weight * cross_entropy(logits[:LABELED], label[given]) + torch.lerp(
                others, own, share
            )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if not is_plain:
            average.update_parameters(model)
        ends.append(time.perf_counter())
    ends[-1] = finish()
    return rate(ends)


def batches(num_items: int, device: str) -> Iterator[Tensor]:
    return iter(torch.randperm(num_items, device=device).split(POOL))


def embedding(data: TensorData, device: str, *, is_bare: bool) -> float:
    model = make_model(device).eval()
    start = finish()
    with autocast(device):
        if is_bare:
            images = data.images.fetch(torch.arange(len(data.items)))
            with torch.inference_mode():
                torch.cat([model.backbone(model.normalize(part.to(device))) for part in images.split(1024)])
        else:
            embed(model.backbone, data.pool_dataloader(), preprocess=model.normalize)
    return len(data.items) / (finish() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60, help="training steps per round")
    parser.add_argument("--rounds", type=int, default=5, help="rounds, each contestant once in each")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cuda", "cpu"])
    parser.add_argument("--record", type=Path, help="where all rounds are kept")
    options = parser.parse_args()
    device = options.device
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    data = make_data(options.steps)
    data.setup()
    contestants: dict[str, Callable[[], float]] = {
        "training: loop of lspread, RampedAveraging": lambda: lightning_loop(data, device, RampedAveraging()),
        "training: loop of lspread, Lightning's averaging": lambda: lightning_loop(
            data, device, EMAWeightAveraging(decay=0.99)
        ),
        "training: bare loop, same work": lambda: bare_loop(data, device, is_plain=False),
        "training: bare loop, no augmentation, mixing, averaging": lambda: bare_loop(data, device, is_plain=True),
        "embedding: lspread.nn.embed": lambda: embedding(data, device, is_bare=False),
        "embedding: bare loop": lambda: embedding(data, device, is_bare=True),
    }
    found: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(options.rounds):
        for name, contestant in contestants.items():
            found[name].append(contestant())
    where = torch.cuda.get_device_name() if device == "cuda" else f"{torch.get_num_threads()} threads"
    where += f", {choose_precision(device).value}"
    print(f"images/s, median of {options.rounds} rounds of {options.steps} steps, {where}")
    for name, values in found.items():
        base = found[f"{name.split(':')[0]}: bare loop" + (", same work" if name.startswith("training") else "")]
        ratio = statistics.median(value / other for value, other in zip(values, base, strict=True))
        print(
            f"{name:56} {statistics.median(values):8,.0f}   x {ratio:.2f}   ({min(values):,.0f} to {max(values):,.0f})"
        )
    if options.record is not None:
        facts = {"machine": where, "steps": options.steps, "batch": [POOL, LABELED]}
        rounds = {name: [round(value, 1) for value in values] for name, values in found.items()}
        options.record.parent.mkdir(parents=True, exist_ok=True)
        options.record.write_text(json.dumps({**facts, "images per second": rounds}, indent=1) + "\n")
        print(f"wrote {options.record}")


if __name__ == "__main__":
    main()
