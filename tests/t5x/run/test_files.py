"""Files and folders appear whole or not at all."""

import pytest

from t5x.run.files import write_whole, written_whole


def test_a_file_takes_the_place_of_the_one_before(tmp_path):
    file = tmp_path / "facts.json"
    write_whole(file, "old")
    write_whole(file, "neu, mit Ä")
    assert file.read_text(encoding="utf-8") == "neu, mit Ä"
    assert list(tmp_path.iterdir()) == [file]


def test_what_fails_leaves_what_was_there(tmp_path):
    file = tmp_path / "facts.json"
    file.write_text("old")

    def fail():
        with written_whole(file) as partial, partial.open("w") as opened:
            opened.write("half")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        fail()
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


def test_a_folder_appears_with_everything_in_it(tmp_path):
    with written_whole(tmp_path / "model") as folder:
        folder.mkdir()
        (folder / "weights").write_text("1")
        assert not (tmp_path / "model").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert (tmp_path / "model" / "weights").read_text() == "1"
