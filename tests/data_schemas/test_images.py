"""Pictures of every kind that people bring, and every way in which they can be broken."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image, ImageCms
from unprivileged import unprivileged

from focusdpo.data_schemas.errors import UserError
from focusdpo.data_schemas.images import (
    PICTURE_FORMATS,
    decode_jpeg,
    decode_mask,
    decode_png,
    encode_jpeg,
    encode_png,
    read_picture,
)
from focusdpo.flows.generate.inference import read_about

SHAPES = st.one_of(
    st.tuples(st.integers(1, 9), st.integers(1, 9)),
    st.tuples(st.integers(1, 9), st.integers(1, 9), st.just(3)),
)


@settings(max_examples=60, deadline=None)
@given(array=hnp.arrays(np.uint8, SHAPES))
def test_png_round_trip_is_exact_and_its_bytes_repeat(array: np.ndarray) -> None:
    data = encode_png(array)
    np.testing.assert_array_equal(decode_png(data), array)
    assert encode_png(np.asfortranarray(array)) == data


def test_jpeg_round_trip_is_near_and_a_fraction_of_a_png() -> None:
    y, x = np.mgrid[:256, :256]
    array = np.stack([y, x, (y + x) // 2], axis=-1).astype(np.uint8)
    array ^= np.random.default_rng(0).integers(0, 4, array.shape).astype(np.uint8)  # grain
    data = encode_jpeg(array)
    assert np.abs(decode_jpeg(data).astype(int) - array).mean() < 3
    assert len(data) < len(encode_png(array)) / 3
    for bad in (data[:200], encode_png(array), b""):
        with pytest.raises(UserError, match="shown.jpg: not a readable JPEG"):
            decode_jpeg(bad, "shown.jpg")


@settings(max_examples=30, deadline=None)
@given(mask=hnp.arrays(np.bool_, st.tuples(st.integers(1, 9), st.integers(1, 9))))
def test_mask_round_trip_is_exact(mask: np.ndarray) -> None:
    np.testing.assert_array_equal(decode_mask(encode_png(mask)), mask)


@pytest.mark.parametrize(
    "array", [np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4), np.float32), np.zeros(4, np.uint8)]
)
def test_other_arrays_are_no_image(array: np.ndarray) -> None:
    with pytest.raises(ValueError, match="expected uint8"):
        encode_png(array)


def quadrants(side: int = 32) -> np.ndarray:
    """Red, green / blue, white: any turn shows."""
    image = np.zeros((side, side, 3), np.uint8)
    half = side // 2
    image[:half, :half, 0] = image[:half, half:, 1] = image[half:, :half, 2] = 255
    image[half:, half:] = 255
    return image


def corner_colours(image: np.ndarray) -> list[tuple[int, ...]]:
    """The four corners, rounded to 0 or 255 (JPEG is not exact)."""
    corners = image[[2, 2, -3, -3], [2, -3, 2, -3]]
    return [tuple(int(v > 127) * 255 for v in corner) for corner in corners]


QUADRANTS = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int, suffix: str) -> None:
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM, 5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }  # fmt: skip
    stored = Image.fromarray(quadrants())
    if orientation in undo:
        stored = stored.transpose(undo[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{suffix}"
    stored.save(path, exif=exif, quality=95)
    picture = read_picture(path)
    assert corner_colours(picture.image) == QUADRANTS
    assert any("EXIF" in note for note in picture.notes) == (orientation != 1)


def test_cmyk_is_converted(tmp_path: Path) -> None:
    Image.fromarray(quadrants()).convert("CMYK").save(tmp_path / "a.jpg", quality=95)
    picture = read_picture(tmp_path / "a.jpg")
    assert corner_colours(picture.image) == QUADRANTS
    assert any("CMYK" in note for note in picture.notes)


def test_16_bit_grey_is_scaled_not_clipped(tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, 32 * 32).astype(np.uint16).reshape(32, 32)
    Image.fromarray(ramp).save(tmp_path / "a.png")
    picture = read_picture(tmp_path / "a.png")
    np.testing.assert_array_equal(picture.image[..., 0], ramp // 257)
    np.testing.assert_array_equal(picture.image[..., 0], picture.image[..., 2])


def png_bytes(width: int, height: int, depth: int, colour: int, rows: bytes) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        crc = zlib.crc32(kind + body)
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", crc)

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def test_16_bit_colour_keeps_its_colours(tmp_path: Path) -> None:
    wide = quadrants().astype(">u2") * 257
    rows = b"".join(b"\0" + row.tobytes() for row in wide)
    (tmp_path / "a.png").write_bytes(png_bytes(32, 32, 16, 2, rows))
    np.testing.assert_array_equal(read_picture(tmp_path / "a.png").image, quadrants())


def test_palette_keeps_colours_and_transparency(tmp_path: Path) -> None:
    palette = Image.fromarray(quadrants()).quantize(4)
    white = np.asarray(palette)[-1, -1]
    palette.save(tmp_path / "a.png", transparency=int(white))
    picture = read_picture(tmp_path / "a.png")
    assert corner_colours(picture.image)[:3] == QUADRANTS[:3]
    assert picture.alpha is not None
    np.testing.assert_array_equal(picture.alpha == 0, (quadrants() == 255).all(axis=2))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "RGB", "RGBA", "P"])
@pytest.mark.parametrize("suffix", ["png", "webp"])
def test_every_mode_becomes_rgb(tmp_path: Path, mode: str, suffix: str) -> None:
    Image.fromarray(quadrants()).convert(mode).convert(
        mode if suffix == "png" else "RGBA"
    ).save(tmp_path / f"a.{suffix}")  # fmt: skip
    picture = read_picture(tmp_path / f"a.{suffix}")
    assert picture.image.shape == (32, 32, 3)
    assert picture.image.dtype == np.uint8
    assert picture.alpha is None, "opaque everywhere counts as no alpha"


def test_alpha_is_kept_apart(tmp_path: Path) -> None:
    alpha = np.zeros((32, 32), np.uint8)
    alpha[8:24, 8:24] = 255
    Image.fromarray(np.dstack([quadrants(), alpha])).save(tmp_path / "a.png")
    picture = read_picture(tmp_path / "a.png")
    assert picture.alpha is not None
    np.testing.assert_array_equal(picture.alpha, alpha)
    np.testing.assert_array_equal(picture.image, quadrants())


@pytest.mark.parametrize("kind", ["BMP", "TIFF", "AVIF", "JPEG"])
def test_what_cameras_and_browsers_save_is_read(tmp_path: Path, kind: str) -> None:
    """Whatever its name says: browsers save .jfif, and AVIF as .jpg."""
    Image.fromarray(quadrants()).save(tmp_path / "a.jfif", format=kind, quality=95)
    assert corner_colours(read_picture(tmp_path / "a.jfif").image) == QUADRANTS


@pytest.mark.parametrize("suffix", ["png", "webp", "gif"])
def test_of_an_animation_the_first_frame_is_used(tmp_path: Path, suffix: str) -> None:
    frames = [Image.fromarray(quadrants()), Image.new("RGB", (32, 32), (9, 9, 9))]
    path = tmp_path / "a.png"
    sink = io.BytesIO()
    frames[0].save(sink, format=suffix, save_all=True, append_images=frames[1:], duration=50)
    path.write_bytes(sink.getvalue())
    picture = read_picture(path)
    assert corner_colours(picture.image) == QUADRANTS
    assert any("animated (2 frames)" in note for note in picture.notes)


def test_a_phones_multi_picture_file_is_a_jpeg(tmp_path: Path) -> None:
    frames = [Image.fromarray(quadrants()), Image.new("RGB", (32, 32))]
    frames[0].save(tmp_path / "a.mpo", save_all=True, append_images=frames[1:], quality=95)
    (tmp_path / "a.mpo").rename(tmp_path / "a.jpg")
    picture = read_picture(tmp_path / "a.jpg")
    assert corner_colours(picture.image) == QUADRANTS
    assert picture.notes == ()


def test_a_colour_profile_is_applied_and_a_broken_one_ignored(tmp_path: Path) -> None:
    image = Image.fromarray(quadrants())
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    image.save(tmp_path / "a.png", icc_profile=srgb)
    image.save(tmp_path / "b.png", icc_profile=b"no profile")
    np.testing.assert_allclose(read_picture(tmp_path / "a.png").image, quadrants(), atol=1)
    broken = read_picture(tmp_path / "b.png")
    np.testing.assert_array_equal(broken.image, quadrants())
    assert broken.notes == ("its colour profile cannot be read and is ignored",)


def wide_profile() -> bytes:
    """An RGB profile whose red and green are exchanged: nobody can overlook it."""
    srgb = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    for at in range(132, 132 + 12 * int.from_bytes(srgb[128:132], "big"), 12):
        tag = bytes(srgb[at : at + 4])
        srgb[at : at + 4] = {b"rXYZ": b"gXYZ", b"gXYZ": b"rXYZ"}.get(tag, tag)
    return bytes(srgb)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_one_picture_has_one_colour_in_every_mode(tmp_path: Path, mode: str) -> None:
    image = Image.new("RGB", (32, 32), (220, 20, 40)).convert(mode)
    image.save(tmp_path / "a.png", icc_profile=wide_profile())
    red, green, _ = read_picture(tmp_path / "a.png").image[0, 0]
    assert green > 200 > red


@pytest.mark.parametrize("mode", ["L", "LA", "I;16"])
def test_a_grey_pictures_profile_is_applied(tmp_path: Path, mode: str) -> None:
    """Its curve is linear: a middle grey of it is far lighter in sRGB."""
    grey = ImageCms.ImageCmsProfile(io.BytesIO(linear_grey()))
    image = Image.new(mode, (32, 32), 128 * 257 if mode == "I;16" else 128)
    if mode == "LA":
        image.putalpha(Image.fromarray((np.arange(1024).reshape(32, 32) // 4).astype(np.uint8)))
    image.save(tmp_path / "a.png", icc_profile=grey.tobytes())
    picture = read_picture(tmp_path / "a.png")
    assert picture.image[0, 0] == pytest.approx([188] * 3, abs=2)
    assert not any("profile" in note for note in picture.notes)


def linear_grey() -> bytes:
    """A minimal ICC profile of grey with gamma 1."""
    white = b"XYZ " + bytes(4) + struct.pack(">3i", 63190, 65536, 54061)
    curve = b"curv" + bytes(4) + struct.pack(">I", 0)
    text = b"desc" + bytes(4) + struct.pack(">I", 2) + b"g\0" + bytes(78)
    bodies = [(b"desc", text), (b"wtpt", white), (b"kTRC", curve)]
    at, table, data = 128 + 4 + 12 * len(bodies), b"", b""
    for name, body in bodies:
        body += bytes(-len(body) % 4)
        table += name + struct.pack(">II", at + len(data), len(body))
        data += body
    size = at + len(data)
    header = struct.pack(">I4sI4s4s4s", size, bytes(4), 0x02400000, b"mntr", b"GRAY", b"XYZ ")
    header += bytes(12) + b"acsp" + bytes(28) + struct.pack(">3i", 63190, 65536, 54061)
    header += bytes(128 - len(header))
    return header + struct.pack(">I", len(bodies)) + table + data


def bad_files(folder: Path) -> dict[str, str]:
    """File name -> what its error must say."""
    jpeg = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(jpeg, format="JPEG")
    png = encode_png(noise)
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.png").write_text("not an image")
    (folder / "page.jpg").write_text("<html><body>404</body></html>")
    (folder / "cut.jpg").write_bytes(jpeg.getvalue()[: len(jpeg.getvalue()) // 2])
    (folder / "cut.png").write_bytes(png[: len(png) // 2])
    (folder / "header.png").write_bytes(png[:20])
    (folder / "flipped.png").write_bytes(png[:200] + bytes([png[200] ^ 255]) + png[201:])
    (folder / "dot.png").write_bytes(encode_png(noise[:1, :1]))
    (folder / "line.png").write_bytes(encode_png(noise[:15]))
    (folder / "folder.png").mkdir()
    Image.fromarray(noise).save(folder / "pcx.png", format="PCX")
    heic = struct.pack(">I", 24) + b"ftypheic" + bytes(4) + b"mif1heic" + bytes(64)
    (folder / "phone.jpg").write_bytes(heic)
    (folder / "film.jpg").write_bytes(struct.pack(">I", 24) + b"ftypmp42" + bytes(80))
    Image.fromarray(noise[..., 0].astype(np.float32)).save(folder / "depth.tif")
    return {
        "absent.png": "no such file",
        "empty.png": "empty (0 bytes)",
        "text.png": "not an image",
        "page.jpg": "not an image",
        "cut.jpg": "damaged or truncated",
        "cut.png": "damaged or truncated",
        "header.png": "",
        "flipped.png": "damaged or truncated",
        "dot.png": "1 x 1 pixels, each side must have at least 16",
        "line.png": "64 x 15 pixels",
        "folder.png": "not a file",
        "pcx.png": "save it as PNG, JPEG or WebP",
        "phone.jpg": "this is HEIC, as phones make it, not an image that can be read",
        "film.jpg": "this is a film",
        "depth.tif": "its pixels are of the kind F; save it as RGB with 8 bits",
    }


def test_bad_files_are_refused_by_name(tmp_path: Path) -> None:
    for name, expected in bad_files(tmp_path).items():
        with pytest.raises(UserError) as error:
            read_picture(tmp_path / name)
        assert str(tmp_path / name) in str(error.value)
        assert expected in str(error.value)


def test_what_one_may_not_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(encode_png(quadrants()))
    for forbidden in (path, tmp_path):
        forbidden.chmod(0)
        with unprivileged(tmp_path), pytest.raises(UserError, match="a.png: no permission"):
            read_picture(path)
        forbidden.chmod(0o755)


BOMB = """
import resource, sys
from focusdpo.data_schemas.images import PICTURE_FORMATS, read_picture
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    read_picture(sys.argv[1])
except ValueError as error:
    print(error)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.parametrize("side", [20_000, 8_000])
def test_a_huge_picture_is_refused_from_its_header(tmp_path: Path, side: int) -> None:
    """20,000 x 20,000 pixels of one colour are 50 kB of PNG and 1.2 GB of memory."""
    rows = (b"\0" + bytes((side + 7) // 8)) * side
    path = tmp_path / "bomb.png"
    path.write_bytes(png_bytes(side, side, 1, 0, rows))
    start = time.process_time()
    with pytest.raises(UserError, match="bomb.png: .*megapixels, at most 50"):
        read_picture(path)
    assert time.process_time() - start < 1
    run = subprocess.run(
        [sys.executable, "-c", BOMB, str(path)], capture_output=True, text=True, check=True
    )
    message, grown = run.stdout.splitlines()
    assert "megapixels" in message
    assert int(grown) < 20, f"{grown} MiB to refuse a picture"


@pytest.mark.parametrize("size", [(16, 3_000_000), (3_000_000, 16)])
def test_a_ribbon_is_refused_from_its_header_wherever_pictures_are_read(
    tmp_path: Path, size: tuple[int, int]
) -> None:
    """48 megapixels, and a file of some 70 bytes: without a limit a side 16 s and 1.5 GB."""
    path = tmp_path / "ribbon.png"
    path.write_bytes(png_bytes(*size, 8, 2, b""))
    data = path.read_bytes()
    start = time.process_time()
    for read in (lambda: read_picture(path), lambda: decode_png(data, "ribbon.png"),
                 lambda: decode_mask(data, "ribbon.png"), lambda: read_about(path)):  # fmt: skip
        with pytest.raises(UserError, match=r"ribbon\.png: .*at most 16384 a side are read"):
            read()
    assert time.process_time() - start < 1


def picture_bytes(kind: str) -> bytes:
    sink = io.BytesIO()
    options = {"exif": Image.Exif()} if kind == "JPEG" else {}
    noise = np.random.default_rng(1).integers(0, 256, (20, 20, 3), dtype=np.uint8)
    Image.fromarray(noise).save(sink, format=kind, **options)
    return sink.getvalue()


@pytest.mark.parametrize("kind", PICTURE_FORMATS)
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_damage_gives_an_array_or_a_user_error(
    tmp_path_factory: pytest.TempPathFactory, kind: str, data: st.DataObject
) -> None:
    """Whatever bytes are wrong, nothing but UserError comes out of Pillow's decoders."""
    content = bytearray(picture_bytes(kind))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / f"damaged-{kind}.png"
    path.write_bytes(bytes(content[: data.draw(st.integers(1, len(content)))]))
    try:
        picture = read_picture(path, max_pixels=1_000_000)
    except UserError as error:
        assert str(path) in str(error)
    else:
        assert picture.image.dtype == np.uint8
        assert picture.image.ndim == 3
