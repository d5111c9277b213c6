"""A stranger's WAV file to one channel of samples, never at another rate than it has."""

import io
import wave
from typing import Any

import numpy as np

from fimlora_worker.inputs.media.images import DamagedMedia

# Four bytes each once decoded: more than half an hour at the rate that models listen at.
MOST_SAMPLES = 50_000_000
Samples = np.ndarray[Any, np.dtype[np.float32]]
LARGEST = {1: 128.0, 2: 32_768.0, 3: 8_388_608.0, 4: 2_147_483_648.0}


def decode_sound(
    content: bytes, *, rate: int, most_samples: int = MOST_SAMPLES, n_before: int = 0
) -> Samples:
    """The samples of a sound between -1 and 1, the mean of its channels.

    Args:
        content: Bytes of a WAV file with whole numbers (PCM).
        rate: Samples per second that the model listens at.
        most_samples: How many it may have, of all channels, with those before it.
        n_before: Samples of the sounds before it in its row.

    Returns:
        The samples.

    Raises:
        DamagedMedia: It is none, is empty or cut off, too long, or of another rate.
    """
    try:
        with wave.open(io.BytesIO(content)) as file:
            n, found = file.getnframes() * file.getnchannels(), file.getframerate()
            if n > most_samples:
                raise DamagedMedia(f"has {n} samples; a sound may have {most_samples}")
            if n_before + n > most_samples:
                raise DamagedMedia(
                    f"has {n} samples, after {n_before} of the sounds before it; those of a row "
                    f"may have {most_samples} together"
                )
            if found != rate:
                raise DamagedMedia(
                    f"has {found} samples per second, and the model listens at {rate}: resample it "
                    "beforehand, so that nothing else decides how"
                )
            samples = _samples(file.readframes(file.getnframes()), file.getsampwidth())
            channels = file.getnchannels()
    except (wave.Error, EOFError, RuntimeError) as error:  # the last of a part past the end
        raise DamagedMedia(
            f"is no WAV file that is read ({str(error) or 'it is cut off'}): write whole numbers "
            "(PCM)"
        ) from error
    if not n or len(samples) < n:
        raise DamagedMedia(f"is cut off: it has {len(samples)} of {n} samples")
    mixed = samples[:n].reshape(-1, channels).mean(axis=1, dtype=np.float64)
    return np.asarray(mixed, np.float32)


def _samples(raw: bytes, width: int) -> "np.ndarray[tuple[int], np.dtype[np.float64]]":
    if width not in LARGEST:
        raise DamagedMedia(f"has samples of {8 * width} bits; allowed are 8, 16, 24 and 32")
    raw = raw[: len(raw) // width * width]
    if width == 1:  # these alone have no sign
        whole = np.frombuffer(raw, np.uint8).astype(np.int64) - 128
    elif width == 3:
        parts = np.frombuffer(raw, np.uint8).reshape(-1, 3).astype(np.int64)
        whole = parts @ np.array([1, 1 << 8, 1 << 16])
        whole -= (whole >= 1 << 23) * (1 << 24)
    else:
        whole = np.frombuffer(raw, f"<i{width}").astype(np.int64)
    return whole / LARGEST[width]
