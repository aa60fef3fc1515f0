from __future__ import annotations

import hashlib
import struct
from pathlib import Path

import pytest
import torch

from imaging.errors import ConfigurationError
from models.cascade import Cascade
from models.package_import import import_network
from models.packages import ModelPackage, load_package
from tests.models.made_package import OTHER_AANET, aanet_state, detector_files, make_package


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> ModelPackage:
    return make_package(tmp_path_factory.mktemp("packages") / "base")


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    torch.save(aanet_state(), tmp_path / "aanet.pth")
    return tmp_path / "aanet.pth"


def sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def test_one_network_is_exchanged_and_the_others_stay_byte_for_byte(
    base: ModelPackage, checkpoint: Path, tmp_path: Path
) -> None:
    made = import_network(checkpoint, base, tmp_path / "new", name="new")
    assert (made.name, made.version, made.directory) == ("new", "1", tmp_path / "new")
    assert made.networks["aanet"].parameters == OTHER_AANET
    for file in ("lung-roi.weights", "lung-roi.cfg", "unet3tiny.safetensors", "attention_unet.safetensors"):
        assert made.files[file] == base.files[file]
    assert "figures.json" not in made.files, "they are of other weights"


def test_the_new_package_runs_as_a_cascade_with_the_imported_weights(
    base: ModelPackage, checkpoint: Path, tmp_path: Path
) -> None:
    import_network(checkpoint, base, tmp_path / "new", name="new")
    cascade = Cascade.load(tmp_path / "new", device="cpu", threads=1)
    assert cascade._aanet is not None
    state = cascade._aanet.network.state_dict()
    assert torch.equal(state["network.seghead.seg_output.bias"], aanet_state()["seghead.seg_output.bias"])
    assert cascade.package.settings["thresholds"] == base.settings["thresholds"]


def test_card_and_manifest_say_where_each_network_came_from(
    base: ModelPackage, checkpoint: Path, tmp_path: Path
) -> None:
    made = import_network(checkpoint, base, tmp_path / "new", name="new")
    source = {"file": "aanet.pth", "sha256": sha256(checkpoint), "base": "base", "base_sha256": base.sha256}
    assert made.settings["imported"] == {"fitted": False, "aanet": source}
    assert base.is_fitted
    assert not made.is_fitted
    card = (made.directory / "README.md").read_text(encoding="utf-8")
    assert f"| aanet | aanet | imported: `aanet.pth` | `{sha256(checkpoint)}` |" in card
    roi = base.networks["roi"].file
    assert f"| roi | darknet | base: `lung-roi.weights` | `{sha256(roi)}` |" in card
    assert "must be fitted anew" in card
    assert (made.directory / "base-README.md").read_text(encoding="utf-8") == "# The card of the base\n"


def test_a_second_import_remembers_the_first(base: ModelPackage, checkpoint: Path, tmp_path: Path) -> None:
    weights, config = detector_files(tmp_path)
    first = import_network(checkpoint, base, tmp_path / "first", name="first")
    both = import_network(weights, first, tmp_path / "both", name="both", config=config)
    assert both.settings["imported"]["aanet"] == first.settings["imported"]["aanet"]
    assert both.settings["imported"]["roi"]["file"] == "hospital.weights"
    assert both.files["hospital.weights"] == sha256(weights)
    assert both.files["hospital.cfg"] == sha256(config)
    assert "lung-roi.weights" not in both.files
    card = (both.directory / "README.md").read_text(encoding="utf-8")
    assert "imported: `aanet.pth`" in card
    assert "imported: `hospital.weights`" in card
    assert (both.directory / "base-README.md").read_text(encoding="utf-8") == "# The card of the base\n"
    Cascade.load(both.directory, device="cpu", threads=1)


def refusal(base: ModelPackage, file: Path, config: Path | None = None) -> str:
    """What the import answers; it leaves nothing behind."""
    before = set(file.parent.iterdir())
    with pytest.raises(ConfigurationError) as refused:
        import_network(file, base, file.parent / "new", name="new", config=config)
    assert refused.value.remedy
    assert set(file.parent.iterdir()) == before
    return str(refused.value)


def test_a_directory_that_is_there_is_not_written_into(base: ModelPackage, checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    assert "new is there already" in refusal(base, checkpoint)
    assert not list((tmp_path / "new").iterdir())


def test_tensors_that_do_not_fit_leave_no_package(base: ModelPackage, tmp_path: Path) -> None:
    torch.save({"fc.weight": torch.zeros(3)}, tmp_path / "classifier.pt")
    assert "so it is no AANet" in refusal(base, tmp_path / "classifier.pt")


def test_another_kind_of_file_is_refused(base: ModelPackage, tmp_path: Path) -> None:
    (tmp_path / "aanet.onnx").touch()
    assert "aanet.onnx is not .pth, .pt, .safetensors, .weights" in refusal(base, tmp_path / "aanet.onnx")


def test_a_cfg_goes_with_darknet_weights_and_with_nothing_else(
    base: ModelPackage, checkpoint: Path, tmp_path: Path
) -> None:
    weights, config = detector_files(tmp_path)
    assert "give the cfg" in refusal(base, weights)
    assert "takes no cfg" in refusal(base, checkpoint, config)
    assert "hospital.weights is not .cfg" in refusal(base, weights, weights)


def test_darknet_weights_of_another_cfg_are_refused(base: ModelPackage, tmp_path: Path) -> None:
    weights, config = detector_files(tmp_path)
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-400])
    assert "ends within layer" in refusal(base, weights, config)
    weights.write_bytes(whole + bytes(4))
    assert "the network has" in refusal(base, weights, config)
    weights.write_bytes(whole[:-4] + struct.pack("<f", float("nan")))
    assert "holds nan" in refusal(base, weights, config)


@pytest.mark.parametrize(
    ("before", "after", "complaint"),
    [
        ("channels=1", "channels=3", "looks at 3 channels"),
        ("[yolo]", "[yolov9]", "layer type is not supported"),
        ("width=192", "width=200", "does not run on its own 192 x 200"),
    ],
)
def test_a_cfg_of_no_use_here_is_refused(
    before: str, after: str, complaint: str, base: ModelPackage, tmp_path: Path
) -> None:
    weights, config = detector_files(tmp_path)
    text = config.read_text(encoding="utf-8")
    assert before in text
    config.write_text(text.replace(before, after), encoding="utf-8")
    assert complaint in refusal(base, weights, config)


def test_a_cfg_that_is_no_text_is_refused(base: ModelPackage, tmp_path: Path) -> None:
    weights, config = detector_files(tmp_path)
    config.write_bytes(b"\xff\xfe[net]")
    assert "is not text" in refusal(base, weights, config)


def test_settings_with_odd_text_survive(checkpoint: Path, base: ModelPackage, tmp_path: Path) -> None:
    odd = tmp_path / 'my "tab\there".pth'
    checkpoint.rename(odd)
    made = import_network(odd, base, tmp_path / "new", name="new")
    assert load_package(made.directory).settings["imported"]["aanet"]["file"] == 'my "tab\there".pth'
