"""From a description to a network with its weights. Weights are safetensors or darknet's format, never a pickle."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from imaging.errors import ConfigurationError
from models.aanet import AANet
from models.darknet.config import parse_cfg
from models.darknet.network import DarknetNetwork
from models.darknet.weights import read_weights
from models.nfn_plus import NFNPlus
from models.resnet34_unet import ResNet34UNet
from models.u2net import U2Net, U2NetP
from models.unet_family import AttentionR2UNet, AttentionUNet, R2UNet, UNet, UNet1Tiny, UNet2Tiny, UNet3Tiny
from models.unet_plus_plus import UNetPlusPlus
from models.xnet import XNet

TORCH_KINDS: Mapping[str, Callable[..., nn.Module]] = {
    "unet": UNet,
    "attention_unet": AttentionUNet,
    "r2unet": R2UNet,
    "attention_r2unet": AttentionR2UNet,
    "unet3tiny": UNet3Tiny,
    "unet2tiny": UNet2Tiny,
    "unet1tiny": UNet1Tiny,
    "unet_plus_plus": UNetPlusPlus,
    "xnet": XNet,
    "nfn_plus": NFNPlus,
    "u2net": U2Net,
    "u2netp": U2NetP,
    "resnet34_unet": ResNet34UNet,
    "aanet": AANet,
}
DARKNET = "darknet"


@dataclass(frozen=True, slots=True)
class NetworkSpec:
    """How to build one network and where its weights are.

    Attributes:
        parameters: the constructor's arguments; empty for darknet.
        file: weights, safetensors or (darknet) darknet's own format.
        config: darknet's cfg; None for every other kind.
    """

    name: str
    kind: str
    file: Path
    parameters: Mapping[str, Any] = field(default_factory=dict)
    config: Path | None = None


def build_network(spec: NetworkSpec) -> nn.Module:
    """The network with fresh weights.

    Raises:
        ConfigurationError: unknown kind, or parameters its constructor does not take.
    """
    if spec.kind == DARKNET:
        return DarknetNetwork(parse_cfg(darknet_config(spec).read_text(encoding="utf-8")))
    if spec.kind not in TORCH_KINDS:
        raise ConfigurationError(
            f"network {spec.name}: kind {spec.kind!r} is not known",
            code="package.network",
            remedy=f"use one of {', '.join(sorted((*TORCH_KINDS, DARKNET)))}",
        )
    try:
        return TORCH_KINDS[spec.kind](**spec.parameters)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigurationError(
            f"network {spec.name}: parameters {dict(spec.parameters)} do not fit {spec.kind}: {error}",
            code="package.network",
        ) from error


def load_weights(network: nn.Module, spec: NetworkSpec) -> None:
    """Fills `network` from `spec.file`.

    Raises:
        ConfigurationError: the file is unreadable, or its tensors are not exactly the network's.
    """
    if isinstance(network, DarknetNetwork):
        read_weights(spec.file, network)
        return
    try:
        network.load_state_dict(load_file(spec.file))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise ConfigurationError(
            f"network {spec.name}: weights {spec.file.name} do not fit: {error}", code="package.network"
        ) from error


def darknet_config(spec: NetworkSpec) -> Path:
    """Where a darknet network's cfg is; raises ConfigurationError where `spec` names none."""
    if spec.config is None:
        raise ConfigurationError(f"network {spec.name}: a darknet network needs config", code="package.network")
    return spec.config
