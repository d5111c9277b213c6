"""Images and sounds of strangers: decoded within bounds, or refused in a sentence."""

import io
import struct
import zlib
from types import SimpleNamespace

import numpy as np
import pytest

from fimlora_worker.errors import DatasetSchema
from fimlora_worker.inputs.media.encoding import MediaEncoder
from fimlora_worker.inputs.media.images import DamagedMedia, decode_image
from fimlora_worker.inputs.media.sounds import decode_sound
from support.seeing import pixels, png, wav

Image = pytest.importorskip("PIL.Image")


def saved(image, form: str, **options) -> bytes:
    held = io.BytesIO()
    image.save(held, form, **options)
    return held.getvalue()


@pytest.mark.parametrize("form", ["PNG", "WEBP"])
def test_pixels_are_those_of_the_file(form):
    image = Image.fromarray(pixels(0, 9, 5))
    options = {"lossless": True} if form == "WEBP" else {}
    assert np.array_equal(decode_image(saved(image, form, **options)), pixels(0, 9, 5))


def test_the_first_frame_of_several():
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    content = saved(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert decode_image(content).getpixel((0, 0)) == (255, 0, 0)


def test_it_is_turned_the_right_way_up():
    exif = Image.Exif()
    exif[0x0112] = 6
    content = saved(Image.new("RGB", (8, 4)), "JPEG", exif=exif)
    assert decode_image(content).size == (4, 8)


def test_a_bomb_is_refused_by_its_header():
    """Two gigapixels in a few bytes, of which none is unpacked."""
    content = bytearray(png(pixels(0, 4, 4)))
    content[16:24] = struct.pack(">II", 40_000, 50_000)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    with pytest.raises(DamagedMedia, match="pixels"):
        decode_image(bytes(content))
    with pytest.raises(DamagedMedia, match="has 9 x 5 pixels; an image may have 44"):
        decode_image(png(pixels(0, 9, 5)), most_pixels=44)


@pytest.mark.parametrize("cut", [9, 30, 60, 100])
def test_a_damaged_image_is_named(cut):
    content = png(pixels(0, 20, 20))
    with pytest.raises(DamagedMedia, match="is damaged"):
        decode_image(content[:cut])


def test_grey_of_16_bits_is_refused():
    """Cut to 8 bits, nearly all of it is white."""
    content = saved(Image.fromarray(np.full((4, 4), 30_000, np.uint16)), "PNG")
    with pytest.raises(DamagedMedia, match="has 16 bit samples: save it with 8 bits"):
        decode_image(content)


def test_other_formats_are_not_opened():
    """Pillow knows many more, with many more faults."""
    with pytest.raises(DamagedMedia, match="no image of these formats"):
        decode_image(saved(Image.new("RGB", (4, 4)), "TIFF"))


def test_samples_are_those_of_the_file():
    content = wav(3, n_samples=50, channels=2)
    wanted = np.frombuffer(content[44:], "<i2").reshape(-1, 2).mean(axis=1) / 32_768
    assert np.allclose(decode_sound(content, rate=16_000), wanted, atol=1e-7)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (wav(0, rate=44_100), "has 44100 samples per second, and the model listens at 16000"),
        (wav(0)[:30], r"no WAV file that is read \(it is cut off\)"),
        (
            wav(0)[:16] + b"\xff" * 2 + wav(0)[18:],
            r"no WAV file that is read \(it is cut off\)",
        ),
        (wav(0)[:200], "is cut off"),
        (b"RIFF....WAVE", "no WAV file"),
        (wav(0, n_samples=0), "is cut off"),
    ],
    ids=["rate", "header", "a part past the end", "samples", "nothing", "empty"],
)
def test_a_sound_that_is_none_is_named(content, message):
    with pytest.raises(DamagedMedia, match=message):
        decode_sound(content, rate=16_000)


@pytest.mark.parametrize(
    ("kind", "content", "message"),
    [
        ("image", png(pixels(0, 9, 5)), "has 9 x 5 pixels, after 90 of the images before it"),
        ("audio", wav(0, n_samples=45), "has 45 samples, after 90 of the sounds before it"),
    ],
    ids=["images", "sounds"],
)
def test_those_of_a_row_are_bounded_together(kind, content, message):
    """The third is refused by its header, while the memory of two is held."""
    listens = SimpleNamespace(sampling_rate=16_000)
    processor = SimpleNamespace(image_processor=object(), feature_extractor=listens)
    encoder = MediaEncoder(processor, max_length=8, most_decoded={kind: 134})
    media = [(kind, {"bytes": content})] * 3

    with pytest.raises(DatasetSchema, match=f"row 1, {kind} 3 of it, {message}.*may have 134"):
        encoder.encode("", [], media, where="row 1")
