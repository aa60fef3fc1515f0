"""Darknet's cfg text as typed layers.

The sections a YOLOv4-family network uses: net, convolutional, shortcut, route, maxpool, upsample, yolo. Everything is
checked here (sizes, references, channel counts), so the network can be built without looking again. Names and defaults
follow darknet's src/parser.c.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from imaging.errors import ConfigurationError

ACTIVATIONS = frozenset({"linear", "leaky", "mish"})


@dataclass(frozen=True, slots=True)
class Convolutional:
    filters: int
    size: int
    stride: int
    padding: int
    groups: int
    batch_normalize: bool
    activation: str


@dataclass(frozen=True, slots=True)
class Shortcut:
    """Adds the output of layer `source` (absolute index) to that of the layer before."""

    source: int
    activation: str


@dataclass(frozen=True, slots=True)
class Route:
    """Concatenates the outputs of `sources` (absolute indices) along the channels.

    With `groups` > 1 only channel group `group_id` of each source is taken.
    """

    sources: tuple[int, ...]
    groups: int
    group_id: int


@dataclass(frozen=True, slots=True)
class MaxPool:
    """`padding` is the total in one axis; the smaller half goes before the first pixel."""

    size: int
    stride: int
    padding: int


@dataclass(frozen=True, slots=True)
class Upsample:
    stride: int


@dataclass(frozen=True, slots=True)
class Yolo:
    """One detection head. `anchors` holds only the masked ones: (width, height) in pixels of the network's input."""

    anchors: tuple[tuple[float, float], ...]
    classes: int
    scale_x_y: float


Layer = Convolutional | Shortcut | Route | MaxPool | Upsample | Yolo


@dataclass(frozen=True, slots=True)
class DarknetConfig:
    """A network: its input (channels, height, width in pixels) and its layers in order.

    `out_channels[i]` is the number of channels of layer i's output.
    """

    channels: int
    height: int
    width: int
    layers: tuple[Layer, ...]
    out_channels: tuple[int, ...]

    @property
    def heads(self) -> tuple[Yolo, ...]:
        return tuple(layer for layer in self.layers if isinstance(layer, Yolo))


@dataclass(frozen=True, slots=True)
class _Option:
    text: str
    line: int


class _Section:
    """One ``[name]`` block: options by name, each with the line it came from."""

    def __init__(self, name: str, line: int) -> None:
        self.name = name
        self.line = line
        self.options: dict[str, _Option] = {}

    def error(self, problem: str, line: int | None = None) -> ConfigurationError:
        return ConfigurationError(
            f"darknet cfg line {line or self.line}, [{self.name}]: {problem}",
            code="configuration.darknet_cfg",
            remedy="correct the cfg file of the model package",
        )

    def _read(self, key: str, parse: Callable[[str], object], kind: str) -> object:
        option = self.options[key]
        try:
            return parse(option.text)
        except ValueError:
            raise self.error(f"{key}={option.text!r} is not {kind}", option.line) from None

    def integer(self, key: str, default: int | None = None, *, minimum: int | None = None) -> int:
        if key not in self.options:
            if default is None:
                raise self.error(f"{key}= is missing")
            return default
        value = int(str(self._read(key, int, "an integer")))
        if minimum is not None and value < minimum:
            raise self.error(f"{key}={value} must be at least {minimum}", self.options[key].line)
        return value

    def number(self, key: str, default: float) -> float:
        return float(str(self._read(key, float, "a number"))) if key in self.options else default

    def text(self, key: str, default: str) -> str:
        return self.options[key].text if key in self.options else default

    def numbers(self, key: str) -> tuple[float, ...]:
        if key not in self.options:
            raise self.error(f"{key}= is missing")
        option = self.options[key]
        try:
            return tuple(float(item) for item in option.text.split(",") if item.strip())
        except ValueError:
            raise self.error(f"{key}={option.text!r} is not a list of numbers", option.line) from None

    def integers(self, key: str) -> tuple[int, ...]:
        values = self.numbers(key)
        if any(value != int(value) for value in values):
            raise self.error(f"{key} must hold integers, got {values}", self.options[key].line)
        return tuple(int(value) for value in values)


def parse_cfg(text: str) -> DarknetConfig:
    """Reads a darknet cfg.

    Raises:
        ConfigurationError: with the line, where a section is unknown, an option missing or out of range, or a layer
            refers to one that does not come before it.
    """
    sections = _split(text)
    if not sections or sections[0].name not in ("net", "network"):
        raise ConfigurationError(
            "darknet cfg does not begin with [net]", code="configuration.darknet_cfg", remedy="add a [net] section"
        )
    net = sections[0]
    channels = net.integer("channels", 3, minimum=1)
    height = net.integer("height", minimum=1)
    width = net.integer("width", minimum=1)
    layers: list[Layer] = []
    out_channels: list[int] = []
    for section in sections[1:]:
        read = _READERS.get(section.name)
        if read is None:
            raise section.error(f"layer type is not supported, only {', '.join(sorted(_READERS))}")
        layer, layer_channels = read(section, out_channels, channels)
        layers.append(layer)
        out_channels.append(layer_channels)
    config = DarknetConfig(channels, height, width, tuple(layers), tuple(out_channels))
    if not config.heads:
        raise net.error("the network has no [yolo] layer")
    if len({head.classes for head in config.heads}) > 1:
        raise net.error("the [yolo] layers differ in classes")
    return config


def _split(text: str) -> list[_Section]:
    sections: list[_Section] = []
    for number, raw in enumerate(text.splitlines(), start=1):
        line = raw.split("#", 1)[0].split(";", 1)[0].strip()
        if not line:
            continue
        if line.startswith("[") and line.endswith("]"):
            sections.append(_Section(line[1:-1].strip(), number))
            continue
        key, equals, value = line.partition("=")
        if not equals or not sections:
            raise ConfigurationError(
                f"darknet cfg line {number}: expected [section] or key=value, got {raw.strip()!r}",
                code="configuration.darknet_cfg",
                remedy="correct the cfg file of the model package",
            )
        sections[-1].options[key.strip()] = _Option(value.strip(), number)
    return sections


def _input_channels(out_channels: list[int], channels: int) -> int:
    return out_channels[-1] if out_channels else channels


def _absolute(section: _Section, key: str, reference: int, index: int) -> int:
    """Negative references count back from layer `index`, others are 0-based layer numbers without [net]."""
    source = index + reference if reference < 0 else reference
    if not 0 <= source < index:
        raise section.error(f"{key}={reference} points to layer {source}, which is not before layer {index}")
    return source


def _activation(section: _Section, default: str) -> str:
    activation = section.text("activation", default)
    if activation not in ACTIVATIONS:
        raise section.error(f"activation={activation} is not supported, only {', '.join(sorted(ACTIVATIONS))}")
    return activation


def _convolutional(section: _Section, out_channels: list[int], channels: int) -> tuple[Layer, int]:
    size = section.integer("size", 1, minimum=1)
    filters = section.integer("filters", 1, minimum=1)
    groups = section.integer("groups", 1, minimum=1)
    inputs = _input_channels(out_channels, channels)
    if inputs % groups or filters % groups:
        raise section.error(f"groups={groups} divides neither {inputs} input channels nor {filters} filters evenly")
    layer = Convolutional(
        filters=filters,
        size=size,
        stride=section.integer("stride", 1, minimum=1),
        padding=size // 2 if section.integer("pad", 0) else section.integer("padding", 0, minimum=0),
        groups=groups,
        batch_normalize=bool(section.integer("batch_normalize", 0)),
        activation=_activation(section, "logistic"),
    )
    return layer, filters


def _shortcut(section: _Section, out_channels: list[int], channels: int) -> tuple[Layer, int]:
    index = len(out_channels)
    source = _absolute(section, "from", section.integer("from"), index)
    if section.text("weights_type", "none") != "none":
        raise section.error("weights_type other than none is not supported")
    if index == 0 or out_channels[source] != out_channels[-1]:
        raise section.error(f"layer {source} has {out_channels[source]} channels, the one before {out_channels[-1]}")
    return Shortcut(source, _activation(section, "linear")), out_channels[-1]


def _route(section: _Section, out_channels: list[int], channels: int) -> tuple[Layer, int]:
    references = section.integers("layers")
    if not references:
        raise section.error("layers= is empty")
    sources = tuple(_absolute(section, "layers", reference, len(out_channels)) for reference in references)
    groups = section.integer("groups", 1, minimum=1)
    group_id = section.integer("group_id", 0, minimum=0)
    if group_id >= groups or any(out_channels[source] % groups for source in sources):
        raise section.error(f"groups={groups}, group_id={group_id} does not fit the sources' channels")
    return Route(sources, groups, group_id), sum(out_channels[source] // groups for source in sources)


def _maxpool(section: _Section, out_channels: list[int], channels: int) -> tuple[Layer, int]:
    stride = section.integer("stride", 1, minimum=1)
    size = section.integer("size", stride, minimum=1)
    layer = MaxPool(size, stride, section.integer("padding", size - 1, minimum=0))
    return layer, _input_channels(out_channels, channels)


def _upsample(section: _Section, out_channels: list[int], channels: int) -> tuple[Layer, int]:
    return Upsample(section.integer("stride", 2, minimum=1)), _input_channels(out_channels, channels)


def _yolo(section: _Section, out_channels: list[int], channels: int) -> tuple[Layer, int]:
    values = section.numbers("anchors")
    pairs = list(zip(values[::2], values[1::2], strict=False))
    if len(values) % 2 or not pairs or min(values) <= 0:
        raise section.error(f"anchors must be pairs of positive numbers, got {values}")
    mask = section.integers("mask") if "mask" in section.options else tuple(range(len(pairs)))
    if any(not 0 <= index < len(pairs) for index in mask) or len(set(mask)) != len(mask) or not mask:
        raise section.error(f"mask={mask} does not select among {len(pairs)} anchors")
    classes = section.integer("classes", 20, minimum=1)
    inputs = _input_channels(out_channels, channels)
    if inputs != len(mask) * (5 + classes):
        raise section.error(f"needs {len(mask) * (5 + classes)} input channels, the layer before has {inputs}")
    return Yolo(tuple(pairs[index] for index in mask), classes, section.number("scale_x_y", 1.0)), inputs


_READERS: dict[str, Callable[[_Section, list[int], int], tuple[Layer, int]]] = {
    "convolutional": _convolutional,
    "shortcut": _shortcut,
    "route": _route,
    "maxpool": _maxpool,
    "upsample": _upsample,
    "yolo": _yolo,
}
