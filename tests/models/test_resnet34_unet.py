from __future__ import annotations

import torch

from models.resnet34_unet import BasicBlock, ResNet34Encoder


def test_encoder_is_resnet34_without_its_classifier() -> None:
    with torch.device("meta"):
        encoder = ResNet34Encoder(3)
    assert sum(parameter.numel() for parameter in encoder.parameters()) == 21_797_672 - (512 * 1000 + 1000)


def test_encoder_s_tensors_have_torchvision_s_names() -> None:
    with torch.device("meta"):
        names = set(ResNet34Encoder(3).state_dict())
    assert len(names) == 218 - 2, "all but fc"
    assert {"conv1.weight", "bn1.running_mean", "layer1.2.conv2.weight", "layer2.0.downsample.0.weight",
            "layer3.5.bn2.bias", "layer4.0.downsample.1.num_batches_tracked"} <= names  # fmt: skip


def test_encoder_gives_features_at_five_scales() -> None:
    features = ResNet34Encoder(1, 4)(torch.rand(2, 1, 64, 96))
    assert [tuple(feature.shape[1:]) for feature in features] == [
        (4, 32, 48), (4, 16, 24), (8, 8, 12), (16, 4, 6), (32, 2, 3),
    ]  # fmt: skip


def test_a_block_without_its_convolutions_passes_its_input_on() -> None:
    block = BasicBlock(4, 4, stride=1).eval()
    torch.nn.init.zeros_(block.bn2.weight)
    x = torch.rand(1, 4, 8, 8)
    torch.testing.assert_close(block(x), x)
