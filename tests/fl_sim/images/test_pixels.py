import struct
import warnings
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fl_sim.config import SettingsError
from fl_sim.images.pixels import identify, read_rgb

ORIENTATION = 0x0112
RAMP = np.linspace(0, 65535, 48).reshape(6, 8).astype(np.uint16)


def pixels(path: Path) -> np.ndarray:
    return np.asarray(read_rgb(path, str(path))).astype(int)


def saved(picture: Image.Image, path: Path, **options) -> Path:
    picture.save(path, **options)
    return path


@pytest.mark.parametrize("name", ["grey.png", "grey.tif", "grey.pgm"])
@pytest.mark.parametrize("order", ["<u2", ">u2"])
def test_16_bit_grey_is_scaled_by_its_range(tmp_path: Path, name: str, order: str) -> None:
    if order == ">u2" and not name.endswith("tif"):
        order = "<u2"  # the other formats have one byte order
    found = pixels(saved(Image.fromarray(RAMP.astype(order)), tmp_path / name))
    np.testing.assert_array_equal(found, np.repeat(np.round(RAMP / 257)[..., None], 3, axis=2))
    assert found.max() == 255
    assert found.min() == 0


def test_a_16_bit_tiff_in_which_white_is_zero(tmp_path: Path) -> None:
    path = saved(Image.fromarray(RAMP), tmp_path / "white.tif", tiffinfo={262: 0})
    assert Image.open(path).tag_v2[262] == 0
    np.testing.assert_array_equal(pixels(path)[..., 0], 255 - np.round(RAMP / 257))


@pytest.mark.parametrize(
    ("values", "kind"), [(RAMP.astype(np.int32) * 3, "32-bit integer"), (RAMP / np.float32(65535), "floating-point")]
)
def test_pixels_without_a_known_range_are_refused_by_the_header_alone(tmp_path: Path, values, kind: str) -> None:
    path = saved(Image.fromarray(values), tmp_path / "scan.tif")
    for read in (identify, read_rgb):
        with pytest.raises(SettingsError, match=rf"scan\.tif: .*{kind} pixels have no known range; .*16-bit PNG"):
            read(path, str(path))


def test_a_mode_that_cannot_be_converted_is_named(tmp_path: Path) -> None:
    path = saved(Image.new("LAB", (4, 4)), tmp_path / "lab.tif")
    with pytest.raises(SettingsError, match=r"lab\.tif: .*LAB pixels; save it as RGB"):
        identify(path, str(path))


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
@pytest.mark.parametrize(
    "name", ["rgb.jpg", "rgb.png", "rgb.webp", "rgb.tif", "grey.jpg", "grey.tif", "deep.png", "deep.tif"]
)
def test_exif_orientation_is_applied(tmp_path: Path, name: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    stored = np.zeros((32, 48, 3), dtype=np.uint8)
    stored[:16, :16] = 255  # in the upper left corner
    of_kind = {"rgb": stored, "grey": stored[..., 0], "deep": stored[..., 0].astype(np.uint16) * 257}
    picture = Image.fromarray(of_kind[name.partition(".")[0]])
    quarters = {1: 0, 3: 2, 6: 3, 8: 1}[orientation]  # anti-clockwise
    found = pixels(saved(picture, tmp_path / name, exif=exif))
    expected = np.rot90(stored, quarters).astype(int)
    assert found.shape == expected.shape
    assert np.abs(found - expected).mean() < 5


def test_damaged_exif_data_tell_no_orientation_and_no_warning_appears(tmp_path: Path) -> None:
    path = saved(Image.new("RGB", (8, 8), "red"), tmp_path / "x.jpg", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x09\x01")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert pixels(path).shape == (8, 8, 3)


def palette() -> Image.Image:
    picture = Image.new("P", (4, 4), 1)
    picture.putpalette([255, 0, 0, 0, 255, 0])
    return picture


@pytest.mark.parametrize(
    ("picture", "name", "options"),
    [
        (Image.new("RGBA", (4, 4), (9, 200, 9, 0)), "rgba.png", {}),
        (Image.new("RGBA", (4, 4), (9, 200, 9, 0)), "rgba.tif", {}),
        (Image.new("RGBA", (4, 4), (9, 200, 9, 0)), "rgba.webp", {"lossless": True, "exact": True}),
        (Image.new("LA", (4, 4), (9, 0)), "la.png", {}),
        (palette(), "palette.png", {"transparency": 1}),
        (palette(), "alphas.png", {"transparency": b"\xff\x00"}),
        (Image.new("RGB", (4, 4), (1, 2, 3)), "rgb.png", {"transparency": (1, 2, 3)}),
        (Image.new("L", (4, 4), 7), "grey.png", {"transparency": 7}),
        (Image.new("1", (4, 4), 0), "bits.png", {"transparency": 0}),
        (Image.new("I;16", (4, 4), 700), "deep.png", {"transparency": 700}),
    ],
)
def test_what_is_transparent_shows_white(tmp_path: Path, picture: Image.Image, name: str, options: dict) -> None:
    assert (pixels(saved(picture, tmp_path / name, **options)) == 255).all()


def test_half_transparent_black_is_grey_and_opaque_pixels_stay(tmp_path: Path) -> None:
    half = Image.new("RGBA", (4, 4), (0, 0, 0, 128))
    assert (pixels(saved(half, tmp_path / "half.png")) == 127).all()
    opaque = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    path = saved(Image.fromarray(opaque).convert("RGBA"), tmp_path / "opaque.png")
    np.testing.assert_array_equal(pixels(path), opaque)


@pytest.mark.parametrize(
    ("picture", "name", "colour"),
    [
        (palette(), "palette.png", (0, 255, 0)),
        (Image.new("1", (4, 4), 1), "bits.png", (255, 255, 255)),
        (Image.new("1", (4, 4), 0), "bits.tif", (0, 0, 0)),
        (Image.new("L", (4, 4), 80), "grey.bmp", (80, 80, 80)),
        (Image.new("CMYK", (4, 4), (0, 255, 0, 0)), "print.jpg", (255, 0, 255)),
        (Image.new("CMYK", (4, 4), (0, 255, 0, 0)), "print.tif", (255, 0, 255)),
    ],
)
def test_other_modes_become_rgb(tmp_path: Path, picture: Image.Image, name: str, colour: tuple[int, ...]) -> None:
    assert tuple(pixels(saved(picture, tmp_path / name))[0, 0]) == colour


@pytest.mark.parametrize("name", ["moving.webp", "moving.png", "pages.tif"])
def test_of_several_frames_the_first_is_read(tmp_path: Path, name: str) -> None:
    red, blue = (Image.new("RGB", (8, 8), colour) for colour in ("red", "blue"))
    options = {"lossless": True} if name.endswith("webp") else {}
    path = saved(red, tmp_path / name, save_all=True, append_images=[blue], **options)
    assert tuple(pixels(path)[0, 0]) == (255, 0, 0)


def test_the_content_counts_and_not_the_suffix(tmp_path: Path) -> None:
    path = saved(Image.new("RGB", (8, 8), "white"), tmp_path / "really.png", format="JPEG")
    assert pixels(path).min() > 250


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "the file is empty"), (b"<svg/>", "no image format that is known"), (None, "No such file or directory")],
)
def test_what_is_no_image_is_one_line(tmp_path: Path, content: bytes | None, reason: str) -> None:
    path = tmp_path / "odd\nname.png"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SettingsError) as caught:
        identify(path, str(path))
    assert str(caught.value).endswith(f"odd\\nname.png: not a readable image: {reason}")


@pytest.mark.parametrize("format_", ["PNG", "JPEG", "WEBP", "BMP", "TIFF", "PPM"])
def test_damaged_files_are_one_line_whatever_the_library_raises(format_: str) -> None:
    source = np.random.default_rng(0)
    buffer = BytesIO()
    Image.fromarray(source.integers(0, 256, (20, 20, 3), dtype=np.uint8)).save(buffer, format_)
    whole, complaints = buffer.getvalue(), []
    for _ in range(60):
        damaged = bytearray(whole[: source.integers(1, len(whole))])
        damaged[source.integers(0, len(damaged))] ^= 0xFF
        try:
            read_rgb(bytes(damaged), "row 3")
        except SettingsError as error:
            complaints.append(str(error))
    assert len(complaints) > 20
    assert all(line.startswith("row 3: not a readable image: ") and "\n" not in line for line in complaints)


def test_panoramas_are_read_up_to_a_limit_that_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(Image.new("L", (300, 50), 5), tmp_path / "panorama.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert pixels(path).shape == (50, 300, 3)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 5_000)
    with pytest.raises(SettingsError, match=r"panorama\.png: .*more than 10,000 pixels; make it smaller"):
        identify(path, str(path))


def test_a_header_is_enough_to_identify_an_image(tmp_path: Path) -> None:
    """A PNG file of the right kind whose pixels are missing: it is listed, and refused when it is decoded."""
    header = struct.pack(">IIBBBBB", 8, 8, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", b"")]
    parts = [
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    ]
    path = tmp_path / "cut.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    identify(path, str(path))
    with pytest.raises(SettingsError, match="not a readable image"):
        read_rgb(path, str(path))


def test_a_format_for_which_pillow_starts_another_program_is_not_read(tmp_path: Path) -> None:
    page = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 16 16\n%%EndComments\nshowpage\n%%EOF\n"
    assert Image.open(BytesIO(page)).format == "EPS"
    with pytest.raises(SettingsError, match=r"scan\.png: not a readable image"):
        read_rgb(page, "scan.png")
