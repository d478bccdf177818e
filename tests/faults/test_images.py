"""Images from strangers: the doctor, training, packing, the index, a query and the page use each of them rightly, or refuse it by name."""
import io
import json
import struct
import warnings
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from cmlfa.batches import Files
from cmlfa.clip import ARCHS
from cmlfa.data import BadImage, load_image
from cmlfa.doctor import check, decode
from cmlfa.index import index
from cmlfa.model import CMLFA
from cmlfa.pack import Packed, image_source, write_pack
from cmlfa.search import pixels, thumbnail
from cmlfa.session import read_upload
from cmlfa.store import Store
from cmlfa.support import UserError

SIZE = (96, 48) # height, width
QUARTERS = np.array([[[200, 30, 30], [30, 160, 60]], [[40, 60, 220], [240, 240, 240]]], np.uint8) # red, green; blue, white
PICTURE = Image.fromarray(QUARTERS.repeat(48, 0).repeat(24, 1)) # 48 wide, 96 high


def encoded(image=PICTURE, kind="PNG", **how):
    "An image as a file's bytes."
    image.save(out := io.BytesIO(), kind, **how)
    return out.getvalue()


def png(width, height, bits, colour, row, rows=None, more=b""):
    "A PNG file by hand: Pillow would need the memory for all of it."
    chunk = lambda kind, data: struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    pack = zlib.compressobj(1)
    body = b"".join(pack.compress(b"\0" + row) for _ in range(height if rows is None else rows)) + pack.flush()
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)) + more + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def turned():
    "Stored lying on its side, with a note that says so."
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(PICTURE.rotate(90, expand=True), "JPEG", exif=exif, quality=95)


def alpha():
    "A layer of transparency over the picture."
    image = PICTURE.convert("RGBA")
    image.putalpha(255)
    return image


def long_text():
    "A comment of 200 megabytes, packed into some kilobytes."
    data = b"Comment\0\0" + zlib.compress(bytes(200_000_000), 1)
    return struct.pack(">I", len(data)) + b"zTXt" + data + struct.pack(">I", zlib.crc32(b"zTXt" + data))


OTHER = [Image.new("RGB", PICTURE.size), Image.new("RGB", PICTURE.size, "white")] # further frames
GREY = np.asarray(PICTURE.convert("L"))
FINE = { # name: (bytes, "RGB" or "L": what has to be seen)
    "plain.jpg": (lambda: encoded(kind="JPEG", quality=95), "RGB"),
    "plain.webp": (lambda: encoded(kind="WEBP", lossless=True), "RGB"),
    "png with the wrong ending.jpg": (encoded, "RGB"),
    "jpeg with the wrong ending.png": (lambda: encoded(kind="JPEG", quality=95), "RGB"),
    "UPPER CASE.JPG": (lambda: encoded(kind="JPEG", quality=95), "RGB"),
    "four inks.jpg": (lambda: encoded(PICTURE.convert("CMYK"), "JPEG", quality=95), "RGB"),
    "palette.png": (lambda: encoded(PICTURE.quantize(4)), "RGB"),
    "palette with a transparent colour.png": (lambda: encoded(PICTURE.quantize(8), transparency=7), "RGB"),
    "transparency.png": (lambda: encoded(alpha()), "RGB"),
    "16 bits.png": (lambda: encoded(Image.fromarray(GREY.astype(np.uint16) * 257)), "L"),
    "16 bits in colour.png": (lambda: png(48, 96, 16, 2, b"\x90\x00\x40\x00\x20\x00" * 48), None),
    "grey.png": (lambda: encoded(PICTURE.convert("L")), "L"),
    "grey with transparency.png": (lambda: encoded(PICTURE.convert("LA")), "L"),
    "moving.webp": (lambda: encoded(kind="WEBP", save_all=True, append_images=OTHER, lossless=True), "RGB"),
    "moving.png": (lambda: encoded(save_all=True, append_images=OTHER), "RGB"),
    "moving gif.jpg": (lambda: encoded(kind="GIF", save_all=True, append_images=OTHER), "RGB"),
    "turned.jpg": (turned, "RGB"),
    "a torn note on how it is turned.jpg": (lambda: encoded(kind="JPEG", quality=95, exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01\x12"), "RGB"),
}
BAD = { # name: (bytes, words that search and training say)
    "empty.jpg": (lambda: b"", "cannot identify image file"),
    "cut.jpg": (lambda: encoded(kind="JPEG", quality=95)[:700], "truncated"),
    "cut.png": (lambda: encoded(Image.effect_noise(PICTURE.size, 90))[:2000], "truncated"),
    "rows are missing.png": (lambda: png(48, 96, 8, 2, b"\x90\x40\x20" * 48, rows=60), "truncated, although it ends properly"),
    "cut.webp": (lambda: encoded(kind="WEBP", lossless=True)[:60], "cannot"),
    "text.jpg": (lambda: b"no image at all\n" * 40, "cannot identify image file"),
    "page.webp": (lambda: b"<!doctype html><img src=x onerror=alert(1)>", "cannot identify image file"),
    "drawing.png": (lambda: b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><script>alert(1)</script></svg>', "cannot identify image file"),
    "a program in PostScript.jpg": (lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 48 96\n%%EndComments\n(ran) (w) file closefile\nshowpage\n", "cannot identify image file"),
    "9,000 x 9,000.png": (lambda: png(9000, 9000, 1, 0, bytes(1125)), "9,000 x 9,000 pixels"),
    "12,000 x 12,000.png": (lambda: png(12000, 12000, 1, 0, bytes(1500), rows=9), "12,000 x 12,000 pixels"),
    "20,000 x 20,000.png": (lambda: png(20000, 20000, 1, 0, bytes(2500)), "400000000 pixels"),
    "a comment of 200 MB.png": (lambda: png(48, 96, 8, 2, bytes(144), more=long_text()), "too large"),
}
TINY = {"1 x 1.png": lambda: encoded(Image.new("RGB", (1, 1), "red")), "2 x 4,000.png": lambda: encoded(Image.new("RGB", (2, 4000), "red"))} # no photographs of people, but images


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    "All of them, as files."
    folder = tmp_path_factory.mktemp("hostile")
    for name, make in {n: m for n, (m, _) in {**FINE, **BAD}.items()}.items() | TINY.items(): (folder / name).write_bytes(make())
    return folder


def quarters(image):
    "The mean colour of each quarter, 2 x 2 x 3."
    c, h, w = image.shape
    return image.float().view(c, 2, h // 2, 2, w // 2).mean((2, 4)).permute(1, 2, 0).numpy()


@pytest.mark.parametrize("name", FINE)
def test_a_sound_image_is_seen_as_it_is(folder, name):
    seen = quarters(load_image(folder / name, SIZE))
    wanted = {"RGB": QUARTERS, "L": np.asarray(PICTURE.convert("L"))[24::48, 12::24, None].repeat(3, 2), None: np.full((2, 2, 3), [144, 64, 32])}[FINE[name][1]]
    assert np.abs(seen - wanted).max() < 12, seen
    assert decode((folder / name).read_bytes()) == (None, "")
    assert torch.equal(pixels(folder / name, SIZE), Files([folder / name], SIZE).__getitems__([0])[0])
    assert thumbnail(folder / name).size == (48, 96)
    if "gif" in name: pytest.raises(UserError, read_upload, (folder / name).read_bytes()) # a visitor sends JPEG, PNG or WebP
    else: assert np.abs(quarters(torch.from_numpy(np.array(read_upload((folder / name).read_bytes()))).permute(2, 0, 1)) - wanted).max() < 12


@pytest.mark.parametrize("name", BAD)
def test_a_bad_image_is_refused_by_name(folder, name):
    words, data = BAD[name][1].lower(), (folder / name).read_bytes()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning) # Pillow's, beside our sentence
        with pytest.raises(BadImage) as e: load_image(folder / name, SIZE)
        assert str(e.value).startswith(f"{folder / name}: this image cannot be read") and words in str(e.value).lower() and "\n" not in str(e.value), e.value
        with pytest.raises(UserError, match="cannot be read as an image"): pixels(folder / name, SIZE)
        with pytest.raises(UserError, match="upload: the "): read_upload(data)
        kind, said = decode(data)
        assert kind in ("unreadable", "truncated", "absurd") and said
        assert thumbnail(folder / name) is None


@pytest.mark.parametrize("name", TINY)
def test_a_tiny_image_is_searched_and_not_trained_on(folder, name):
    assert load_image(folder / name, SIZE).shape == (3, *SIZE) and load_image(folder / name, SIZE)[0].min() == 255
    assert decode((folder / name).read_bytes())[0] == "absurd"


def test_the_index_holds_the_sound_ones_and_names_the_others(folder, tmp_path):
    torch.manual_seed(0)
    model = CMLFA(ARCHS["tiny"], prototypes=2, lfa_layers=1, losses="itc")
    report = index(folder, tmp_path / "store", model)
    assert set(report.bad) == set(BAD) and all(str(folder / name) in said for name, said in report.bad.items())
    with Store(tmp_path / "store") as store: assert {path for _, path in store.known()} == set(FINE) | set(TINY)


def test_a_pack_holds_the_sound_ones_and_refuses_each_of_the_others(folder, tmp_path):
    data = tmp_path / "CUHK-PEDES"
    data.mkdir()
    (data / "imgs").symlink_to(folder)
    def packed(names):
        entries = [dict(split="train", id=n, captions=[f"Person number {n}."], file_path=name) for n, name in enumerate(names, 1)]
        (data / "reid_raw.json").write_text(json.dumps(entries))
        return lambda skip=(): write_pack(tmp_path, data.name, SIZE, workers=1, progress=False, skip=frozenset(skip))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        for name in BAD:
            with pytest.raises(BadImage) as e: packed(["plain.jpg", name])()
            assert str(e.value).startswith(f"{data}/imgs/{name}: this image cannot be read") and BAD[name][1].lower() in str(e.value).lower(), e.value
            assert not (data / "packed/96x48").exists()
        pack, out = packed([*BAD, *FINE]), check(tmp_path, data.name, workers=1).leave_out
    assert {path for _, path in out} == {f"{data}/imgs/{name}" for name in BAD}
    pack(out)
    images = image_source(tmp_path, data.name, [f"{data}/imgs/{name}" for name in FINE], SIZE)
    assert isinstance(images, Packed) and torch.equal(images.__getitems__(range(len(FINE))), Files([folder / name for name in FINE], SIZE).__getitems__(range(len(FINE))))
