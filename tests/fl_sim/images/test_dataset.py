import json
import time
from pathlib import Path

import datasets
import pyarrow.parquet
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from PIL import Image

from fl_sim.config import DataSettings, SettingsError
from fl_sim.images.dataset import list_dataset
from fl_sim.images.image_set import ImageSet


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


@pytest.fixture
def unreachable_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hub at a port where nobody listens."""
    monkeypatch.setattr("datasets.config.HF_ENDPOINT", "http://127.0.0.1:9")


@pytest.fixture(scope="module")
def encoded(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("red") / "red.png"
    Image.new("RGB", (20, 30), "red").save(path)
    return path.read_bytes()


def table(encoded: bytes, rows: int = 4, images: tuple[str, ...] = ("image",), **columns) -> Dataset:
    """A dataset with the same picture in every row of its image columns."""
    features = {name: datasets.Image() for name in images} | {name: feature for name, (feature, _) in columns.items()}
    values = {name: [{"bytes": encoded, "path": None}] * rows for name in images}
    return Dataset.from_dict(
        values | {name: value for name, (_, value) in columns.items()}, features=Features(features)
    )


def listed(data: Dataset | DatasetDict, tmp_path: Path, **settings) -> ImageSet:
    data.save_to_disk(tmp_path / "saved")
    return list_dataset(DataSettings(name=str(tmp_path / "saved"), **settings))


def classes(*values: int) -> tuple[ClassLabel, list[int]]:
    return ClassLabel(num_classes=3), list(values)


def test_a_local_folder_in_the_hubs_format(folder: Path) -> None:
    held = list_dataset(DataSettings(name=str(folder), image_size=32))
    assert held.decode(range(6)).shape == (6, 3, 32, 32)
    assert held.labels == ("0",) * 3 + ("1",) * 3
    assert held.photographs[0] == "train/0"
    with pytest.raises(SettingsError, match=r"data\.split = 'trian': Unknown split.*train"):
        list_dataset(DataSettings(name=str(folder), split="trian"))


def test_text_labels_of_a_metadata_file_are_classes(folder: Path) -> None:
    rows = "".join(f"{name}/{n}.png,{name}\n" for name in ("dark", "light") for n in range(3))
    (folder / "metadata.csv").write_text("file_name,label\n" + rows, encoding="utf-8")
    assert list_dataset(DataSettings(name=str(folder))).labels == ("dark",) * 3 + ("light",) * 3


def test_what_save_to_disk_wrote_is_loaded(encoded: bytes, tmp_path: Path) -> None:
    held = listed(table(encoded, label=classes(0, 1, 1, 2)), tmp_path)
    assert held.labels == ("0", "1", "1", "2")
    images = held.decode([3])
    assert images.shape == (1, 3, 16, 16)
    assert images[0, :, 0, 0].tolist() == [1, -1, -1]


def test_the_split_is_chosen_among_those_saved(encoded: bytes, tmp_path: Path) -> None:
    both = DatasetDict({"train": table(encoded), "test": table(encoded, rows=2)})
    held = listed(both, tmp_path, split="test", limit=1)
    assert held.photographs == ("test/0",)
    assert held.found == 2
    with pytest.raises(SettingsError, match=r"data\.split = 'tset': .*allowed: train, test; did you mean 'test'"):
        list_dataset(DataSettings(name=str(tmp_path / "saved"), split="tset"))


def test_a_saved_output_format_does_not_matter(encoded: bytes, tmp_path: Path) -> None:
    data = table(encoded, label=classes(0, 1, 1, 2)).with_format("torch")
    held = listed(data, tmp_path)
    assert held.labels == ("0", "1", "1", "2")
    assert held.decode([2]).shape == (1, 3, 16, 16)


def test_of_several_image_columns_one_has_to_be_chosen(encoded: bytes, tmp_path: Path) -> None:
    data = table(encoded, images=("left", "right"), note=(Value("string"), ["a"] * 4))
    with pytest.raises(SettingsError, match=r"data\.image_column is not set.*allowed: left, right"):
        listed(data, tmp_path)
    name = str(tmp_path / "saved")
    assert len(list_dataset(DataSettings(name=name, image_column="right"))) == 4
    with pytest.raises(SettingsError, match=r"data\.image_column = 'rigth': no such column; .*did you mean 'right'"):
        list_dataset(DataSettings(name=name, image_column="rigth"))
    with pytest.raises(SettingsError, match=r"data\.image_column = 'note': no column of images; allowed: left, right"):
        list_dataset(DataSettings(name=name, image_column="note"))


def test_which_column_labels(encoded: bytes, tmp_path: Path) -> None:
    words = (Value("string"), ["x", "y", "y", None])
    numbers = (Value("int64"), [4, 4, 5, 6])
    cases = [
        ({"sort": classes(0, 1, 1, 2), "label": words}, {}, ("0", "1", "1", "2")),
        ({"sort": classes(0, 1, 1, 2), "label": words}, {"label_column": "label"}, ("x", "y", "y", "None")),
        ({"label": numbers}, {}, ("4", "4", "5", "6")),
        ({"caption": words}, {}, ()),
        ({"label": (Value("float32"), [0.1, 0.2, 0.3, 0.4])}, {}, ()),
        ({"fine": classes(0, 1, 1, 2), "coarse": classes(0, 0, 0, 1)}, {}, ()),
        (
            {"fine": classes(0, 1, 1, 2), "coarse": classes(0, 0, 0, 1)},
            {"label_column": "coarse"},
            ("0", "0", "0", "1"),
        ),
    ]
    for number, (columns, settings, expected) in enumerate(cases):
        assert listed(table(encoded, **columns), tmp_path / str(number), **settings).labels == expected


def test_a_label_column_that_is_none_is_refused(encoded: bytes, tmp_path: Path) -> None:
    data = table(encoded, sort=classes(0, 1, 1, 2), weight=(Value("float32"), [0.1] * 4))
    with pytest.raises(SettingsError, match=r"data\.label_column = 'sotr': no such column; .*did you mean 'sort'"):
        listed(data, tmp_path, label_column="sotr")
    with pytest.raises(SettingsError, match=r"data\.label_column = 'weight': no column of labels; allowed: sort"):
        list_dataset(DataSettings(name=str(tmp_path / "saved"), label_column="weight"))


def test_pixels_follow_the_same_rules_as_in_a_folder(tmp_path: Path) -> None:
    Image.new("I;16", (20, 20), 32768).save(tmp_path / "deep.png")
    Image.new("RGBA", (20, 20), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    files = [{"bytes": (tmp_path / name).read_bytes(), "path": None} for name in ("deep.png", "clear.png")]
    data = Dataset.from_dict({"image": files}, features=Features({"image": datasets.Image(mode="RGB")}))
    images = listed(data, tmp_path).decode([0, 1])
    assert images[0].unique().tolist() == [pytest.approx(128 / 127.5 - 1, abs=1e-6)]
    assert (images[1] == 1).all()


def test_an_image_that_is_truncated_or_missing_is_named_by_its_row(encoded: bytes, tmp_path: Path) -> None:
    gone = tmp_path / "gone.png"
    gone.write_bytes(encoded)
    values = [
        {"bytes": encoded, "path": None},
        {"bytes": encoded[: len(encoded) // 2], "path": None},
        {"bytes": None, "path": str(gone)},
        None,
    ]
    data = Dataset.from_dict({"image": values}, features=Features({"image": datasets.Image()}))
    Dataset.save_to_disk(data, tmp_path / "saved")
    held = list_dataset(DataSettings(name=str(tmp_path / "saved")))
    held.decode([0])
    with pytest.raises(SettingsError, match=r"row 1 of split 'train': not a readable image"):
        held.decode([1])
    with pytest.raises(SettingsError, match=r"row 3 of split 'train': no image"):
        held.decode([3])


def test_a_row_whose_file_lies_outside_the_dataset_is_not_read(
    encoded: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    monkeypatch.chdir(tmp_path)
    for place in (tmp_path, folder):
        (place / "picture.png").write_bytes(encoded)
    paths = [tmp_path / "picture.png", folder / ".." / "picture.png", "picture.png", folder / "picture.png"]
    values = [{"bytes": None, "path": str(path)} for path in paths]
    data = Dataset.from_dict({"image": values}, features=Features({"image": datasets.Image()}))
    pyarrow.parquet.write_table(data.data.table, folder / "train.parquet")  # as it is: to_parquet copies the files
    (folder / "picture.png").rename(folder / "hidden")  # else the library takes the folder for one of images
    held = list_dataset(DataSettings(name=str(folder)))
    (folder / "hidden").rename(folder / "picture.png")
    for row in range(3):
        with pytest.raises(SettingsError, match=f"row {row} of split 'train': its file lies outside the dataset"):
            held.decode([row])
    held.decode([3])


@pytest.mark.parametrize(
    "card",
    [
        'configs: [{config_name: a, data_files: "*.parquet", version: "../../../evil/1.0.0"}]',
        "configs: [{config_name: a, data_files: [{split: train, path: ../elsewhere/train.parquet}]}]",
        "configs: [{config_name: a, data_dir: /etc}]",
        "configs: [{config_name: a, data_files: 'http://127.0.0.1:9/train.parquet'}]",
        "configs: [{config_name: a, data_files: 'zip://train.parquet::inner.zip'}]",
        "dataset_info: {features: [{name: label, dtype: {class_label: {names: {'200000000': x}}}}]}",
        "configs: [",
    ],
)
def test_a_card_that_leads_elsewhere_is_refused_before_anything_is_loaded(
    card: str, encoded: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("set", "elsewhere"):
        (tmp_path / name).mkdir()
        table(encoded).to_parquet(tmp_path / name / "train.parquet")
    (tmp_path / "set" / "README.md").write_text(f"---\nlicense: mit\n{card}\n---\nSee https://example.org/a/../b\n")
    monkeypatch.setattr("datasets.load_dataset_builder", lambda *_, **__: pytest.fail("loaded"))
    with pytest.raises(SettingsError, match=r"README\.md: ('.*' leads out of|class 200000000|cannot be read)"):
        list_dataset(DataSettings(name=str(tmp_path / "set")))


def test_a_card_as_people_write_them_is_no_obstacle(encoded: bytes, tmp_path: Path) -> None:
    table(encoded, label=classes(0, 1, 1, 2)).to_parquet(tmp_path / "data" / "train-0.parquet")
    card = "license: mit\nconfigs: [{config_name: default, data_files: [{split: train, path: data/train-*}]}]"
    (tmp_path / "README.md").write_text(f"---\n{card}\n---\n[paper](https://example.org), ../notes\n")
    assert len(list_dataset(DataSettings(name=str(tmp_path))).photographs) == 4


@pytest.mark.parametrize("name", ["../secret/data.arrow", "/etc/data.arrow"])
def test_a_saved_dataset_whose_tables_lie_elsewhere_is_refused(name: str, encoded: bytes, tmp_path: Path) -> None:
    table(encoded).save_to_disk(tmp_path / "saved")
    state = json.loads((tmp_path / "saved" / "state.json").read_text())
    state["_data_files"][0]["filename"] = name
    (tmp_path / "saved" / "state.json").write_text(json.dumps(state))
    with pytest.raises(SettingsError, match=r"state\.json: '.*data\.arrow' leads out of the dataset's folder"):
        list_dataset(DataSettings(name=str(tmp_path / "saved")))


def test_a_saved_dataset_with_offsets_that_lead_nowhere_is_one_line(encoded: bytes, tmp_path: Path) -> None:
    data = Dataset.from_dict({"text": ["abc", "defg"]} | {"image": [{"bytes": encoded, "path": None}] * 2})
    data.cast_column("image", datasets.Image()).save_to_disk(tmp_path / "saved")
    (file,) = (tmp_path / "saved").glob("*.arrow")
    offsets = b"".join(number.to_bytes(4, "little") for number in (0, 3, 7))
    assert offsets in file.read_bytes()
    broken = b"".join(number.to_bytes(4, "little") for number in (0, 2**30, 2**31 - 1))
    file.write_bytes(file.read_bytes().replace(offsets, broken))
    with pytest.raises(SettingsError, match="this folder could not be loaded"):
        list_dataset(DataSettings(name=str(tmp_path / "saved")))


def test_a_dataset_whose_files_were_moved_away(folder: Path) -> None:
    held = list_dataset(DataSettings(name=str(folder)))
    (folder / "dark" / "0.png").unlink()
    with pytest.raises(SettingsError, match=r"row 0 of split 'train': not a readable image: No such file"):
        held.decode([0])


def test_a_dataset_that_is_nowhere_is_named_and_what_would_do(tmp_path: Path) -> None:
    with pytest.raises(
        SettingsError, match=r"data\.name = '.*nowhere'.*the path of a folder of images .* save_to_disk"
    ):
        list_dataset(DataSettings(name=str(tmp_path / "nowhere")))
    (tmp_path / "empty").mkdir()
    with pytest.raises(SettingsError, match=r"this folder could not be loaded: .*the path of a folder of images"):
        list_dataset(DataSettings(name=str(tmp_path / "empty")))


@pytest.mark.parametrize("name", ["digit", "./digit", "photos/of/digits"])
def test_what_is_no_folder_and_no_id_is_not_looked_up(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.load_dataset_builder", lambda *_, **__: pytest.fail("looked up"))
    with pytest.raises(SettingsError, match=rf"data\.name = '{name}': .*an id on the hub is namespace/name; allowed"):
        list_dataset(DataSettings(name=name))


def test_a_name_of_our_own_that_is_mistyped() -> None:
    with pytest.raises(SettingsError, match=r"allowed without a network: .*did you mean 'digits'\?$"):
        list_dataset(DataSettings(name="digit"))


def test_an_id_on_a_hub_that_is_out_of_reach_is_one_line_at_once(
    unreachable_hub: None, caplog: pytest.LogCaptureFixture
) -> None:
    start = time.monotonic()
    with pytest.raises(SettingsError, match=r"data\.name = 'some/digits': .*the hub cannot be reached; allowed"):
        list_dataset(DataSettings(name="some/digits"))
    assert time.monotonic() - start < 10, "the library's own attempts take 23 s"
    assert not caplog.records, "one line is enough"


def test_without_the_hub_the_cache_still_has_what_was_loaded_before(
    unreachable_hub: None, encoded: bytes, tmp_path: Path
) -> None:
    (tmp_path / "set").mkdir()
    table(encoded, label=classes(0, 1, 1, 2)).to_parquet(tmp_path / "set" / "train.parquet")
    datasets.load_dataset(str(tmp_path / "set"))
    cache = Path(datasets.config.HF_DATASETS_CACHE)
    (cache / "set").rename(cache / "some___set")  # where it is if it came from the hub
    assert list_dataset(DataSettings(name="some/set")).labels == ("0", "1", "1", "2")


def test_parquet_files_are_a_local_form(encoded: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "set").mkdir()
    table(encoded, label=classes(0, 1, 1, 2)).to_parquet(tmp_path / "set" / "train.parquet")
    capsys.readouterr()
    held = list_dataset(DataSettings(name=str(tmp_path / "set"), image_size=(12, 24)))
    assert held.decode([3], channels=1).shape == (1, 1, 12, 24)
    assert held.labels == ("0", "1", "1", "2")
    assert capsys.readouterr().err == ""  # no progress bars of the library's where there is no terminal


def test_of_several_configurations_one_has_to_be_chosen(folder: Path, encoded: bytes, tmp_path: Path) -> None:
    configs = "".join(f"- config_name: {name}\n  data_files: {name}/*\n" for name in ("dark", "light"))
    (folder / "README.md").write_text(f"---\nconfigs:\n{configs}---\n", encoding="utf-8")
    assert len(list_dataset(DataSettings(name=str(folder), config="light"))) == 3
    with pytest.raises(SettingsError, match=r"data\.config is not set, and .* has several .*; allowed: dark, light$"):
        list_dataset(DataSettings(name=str(folder)))
    with pytest.raises(SettingsError, match=r"data\.config = 'lihgt': no .*allowed: dark, light; did you mean 'light'"):
        list_dataset(DataSettings(name=str(folder), config="lihgt"))
    with pytest.raises(SettingsError, match=r"data\.config = 'x': what save_to_disk wrote has no configurations"):
        listed(table(encoded), tmp_path, config="x")


def test_classes_are_numbered_as_the_data_numbers_them(encoded: bytes, tmp_path: Path) -> None:
    words, numbers = (Value("string"), ["y", "x", None, "y"]), (Value("int64"), [10, 9, 10, 9])
    cases = [
        (classes(2, -1, 0, 2), ("0", "1", "2", "-1"), [2, 3, 0, 2]),
        (words, ("x", "y", "None"), [1, 0, 2, 1]),
        (numbers, tuple(map(str, range(11))), [10, 9, 10, 9]),
    ]
    for number, (column, names, expected) in enumerate(cases):
        held = listed(table(encoded, label=column), tmp_path / str(number))
        assert held.classes == names
        assert [held.class_of(index) for index in range(4)] == expected


@pytest.mark.parametrize("name", ["imagefolder", "parquet", "webdataset", "csv"])
def test_a_format_is_no_dataset(name: str) -> None:
    with pytest.raises(SettingsError, match=rf"data\.name = '{name}': a format, not a dataset: give the folder's path"):
        list_dataset(DataSettings(name=name))


def test_a_dataset_without_images_or_rows_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingsError, match="no image column among text"):
        listed(Dataset.from_dict({"text": ["a"]}), tmp_path / "text")
    monkeypatch.setattr("fl_sim.images.dataset._built", lambda _: Dataset.from_dict({"image": []}))
    with pytest.raises(SettingsError, match="no rows in split 'train'"):
        list_dataset(DataSettings(name="some/empty"))
    monkeypatch.setattr("fl_sim.images.dataset.MOST_ROWS", 3)
    with pytest.raises(SettingsError, match=r"4; allowed: up to 3 rows"):
        listed(Dataset.from_dict({"image": [None] * 4}), tmp_path / "many")
