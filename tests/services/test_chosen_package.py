from __future__ import annotations

from pathlib import Path

import pytest

from imaging.errors import ConfigurationError
from services.chosen_package import CHOICE_FILE, choose_package, chosen_package, forget_choice
from services.settings import Settings


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "data"


def package(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


def test_nobody_chose_on_a_bare_data_directory(data: Path) -> None:
    assert chosen_package(data) is None
    assert Settings(data_dir=data).resolved_package_dir is None


def test_what_was_chosen_is_resolved_until_it_is_taken_back(data: Path, tmp_path: Path) -> None:
    elsewhere = package(tmp_path / "elsewhere" / 'odd "name"\u00e4')
    choose_package(data, elsewhere)
    assert Settings(data_dir=data).resolved_package_dir == elsewhere
    forget_choice(data)
    forget_choice(data)
    assert Settings(data_dir=data).resolved_package_dir is None


def test_the_setting_wins(data: Path, tmp_path: Path) -> None:
    choose_package(data, package(tmp_path / "chosen"))
    assert Settings(data_dir=data, package_dir=tmp_path / "set").resolved_package_dir == tmp_path / "set"


def test_an_empty_setting_is_none(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    choose_package(data, package(tmp_path / "chosen"))
    monkeypatch.setenv("EMBOLENS_PACKAGE_DIR", "")
    assert Settings(data_dir=data).resolved_package_dir == tmp_path / "chosen"


def test_a_package_in_the_data_directory_is_found_where_that_is_mounted(data: Path, tmp_path: Path) -> None:
    choose_package(data, package(data / "packages" / "site"))
    data.rename(tmp_path / "mounted")
    assert chosen_package(tmp_path / "mounted") == tmp_path / "mounted/packages/site"


def test_a_relative_directory_is_the_same_for_processes_started_elsewhere(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package(tmp_path / "here" / "site")
    monkeypatch.chdir(tmp_path / "here")
    choose_package(data, Path("site"))
    monkeypatch.chdir(tmp_path)
    assert chosen_package(data) == tmp_path / "here/site"


def test_the_file_is_written_whole_and_alone(data: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        choose_package(data, package(tmp_path / name))
    assert [file.name for file in data.iterdir()] == [CHOICE_FILE]
    assert chosen_package(data) == tmp_path / "two"


def test_a_chosen_package_that_is_gone_is_not_replaced_by_another(data: Path, tmp_path: Path) -> None:
    choose_package(data, package(tmp_path / "gone"))
    (tmp_path / "gone").rmdir()
    with pytest.raises(ConfigurationError, match=r"gone is not there \(choose again"):
        chosen_package(data)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b'{"directory": 3}', b"\xff"])
def test_a_damaged_choice_is_refused(content: bytes, data: Path) -> None:
    data.mkdir()
    (data / CHOICE_FILE).write_bytes(content)
    with pytest.raises(ConfigurationError, match="names no package"):
        chosen_package(data)
