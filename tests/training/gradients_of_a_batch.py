"""Run by test_distributed.py, alone or under torchrun: one step's gradients of several networks, to a file.

`gradients_of_a_batch.py OUTPUT`: the first process writes {case: {tensor name: values}}.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor, nn

from models.aanet import AANet
from models.network_spec import NetworkSpec, build_network
from models.unet_family import AttentionUNet, UNet3Tiny
from training.distributed import Place, joined, replicated, synchronise_batch_norm
from training.loop import Loss, fit
from training.objectives import artery_aware_loss, detection_loss, named_loss, slice_loss
from training.recipe import NetworkRecipe
from training.sampling import Batch

BATCH = 4


def slices() -> Batch:
    """Emboli in some samples only, so that halves of the batch differ."""
    images = torch.rand(BATCH, 5, 32, 32, generator=torch.Generator().manual_seed(1))
    target = torch.zeros(BATCH, 1, 32, 32)
    target[0, 0, 4:20, 6:12] = 1
    target[3, 0, 10:13, 10:13] = 1
    return Batch(images, target)


def blocks() -> Batch:
    images = torch.rand(BATCH, 1, 16, 16, 16, generator=torch.Generator().manual_seed(2))
    target = torch.zeros(BATCH, 2, 16, 16, 16)
    target[1, 0, 2:6, 3:9, 4:8] = target[:3, 1, 2:8, 3:9, 4:8] = 1
    return Batch(images, target)


def boxes() -> Batch:
    images = torch.rand(BATCH, 1, 64, 64, generator=torch.Generator().manual_seed(3))
    target = [[0.5, 0.5, 0.4, 0.6], [0.3, 0.5, 0.2, 0.2], [0, 0, 0, 0], [0.6, 0.6, 0.7, 0.3]]
    return Batch(images, torch.tensor(target)[:, None])


def gradients(network: nn.Module, batch: Batch, loss: Loss, place: Place) -> dict[str, Tensor]:
    network = synchronise_batch_norm(network, place).train()
    forward = replicated(network, place)  # has to live until the gradients are there
    value = loss(forward, batch)
    value.backward()
    found = {name: parameter.grad for name, parameter in network.named_parameters() if parameter.grad is not None}
    return {"loss": value.detach(), **found, **dict(network.named_buffers())}


class _Steps:
    def batch(self, step: int) -> Batch:
        return Batch(*(values.roll(step, 0) for values in slices()))


def curve(place: Place, folder: Path) -> dict[str, Tensor]:
    """The losses of a few steps, with validations and checkpoints between them."""
    torch.manual_seed(0)
    recipe = NetworkRecipe(
        name="tiny", kind="unet3tiny", parameters={}, config=None, batch=BATCH, steps=6, learning_rate=1e-3,
        warmup_steps=1, weight_decay=1e-4, clip_norm=1.0, ema_decay=0.9, log_every=2, checkpoint_every=2,
        validate_every=2, validation_batches=1, batch_seed=1, options={}, precision="fp32", average="swa",
    )  # fmt: skip
    losses, objective = [], slice_loss(1.0)

    def loss(network: nn.Module, batch: Batch) -> Tensor:
        value = objective(network, batch)
        losses.append(value.detach())
        return value

    fit(UNet3Tiny(5, 1, 4), _Steps(), loss, recipe, folder, place=place, validate=lambda _: {})
    return {"loss": torch.stack(losses)}


def main(output: Path) -> None:
    torch.set_num_threads(1)
    cases = {
        "batch norm and ratios over the batch": (lambda: UNet3Tiny(5, 1, 4, attention=True), slices, slice_loss(1.0)),
        "batch norm and a named loss": (lambda: AttentionUNet(5, 1, 4), slices, named_loss("tversky")),
        "3D, two heads": (lambda: AANet((8, 8, 8, 8), (1, 1, 1, 1), (1, 1, 1), 4, 8), blocks, artery_aware_loss(0.5)),
        "detector": (
            lambda: build_network(
                NetworkSpec("roi", "darknet", Path(), {}, Path(__file__).parents[2] / "models/weights/lung-roi.cfg")
            ),
            boxes,
            detection_loss,
        ),
    }
    with joined("cpu") as place:
        results = {}
        for name, (build, batch, loss) in cases.items():
            torch.manual_seed(0)
            results[name] = gradients(build(), batch(), loss, place)
        results["curve"] = curve(place, output.parent / output.stem)
        if place.is_first:
            torch.save(results, output)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
