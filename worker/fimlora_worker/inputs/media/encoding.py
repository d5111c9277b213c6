"""Rows with images and sounds to examples, by the processor of the model.

The processor puts many tokens where the text has one place for an image. It says which characters
these are, so that marks on the text as it was are marks on the text as it is tokenised. No label is
ever on what stands for an image, and a row is never cut inside of it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fimlora_jobs.datasets.media import Kind, MediaError, Value, read_media
from fimlora_worker.errors import DatasetSchema, UnsupportedArchitecture
from fimlora_worker.inputs.chat.templates import ChatTemplate, Request
from fimlora_worker.inputs.cutting import cut_text
from fimlora_worker.inputs.media.images import MOST_PIXELS, DamagedMedia, decode_image
from fimlora_worker.inputs.media.memory_limit import at_most_more
from fimlora_worker.inputs.media.sounds import MOST_SAMPLES, decode_sound
from fimlora_worker.inputs.model_faults import is_of_machine, named_as, sentence_of
from fimlora_worker.inputs.token_spans import IGNORED, marks_of

Span = tuple[int, int]
Example = dict[str, Any]
PROBE = "QZXJ"
PLACES: Mapping[Kind, str] = {"image": "<image>", "audio": "<audio>"}
# Pixels and samples of a row: all of them are in memory before the processor sees the first.
MOST_DECODED: Mapping[Kind, int] = {"image": MOST_PIXELS, "audio": MOST_SAMPLES}
# Of memory that the processor may take for one row: pixels before, between and after its steps.
MOST_BYTES = 6 << 30
# Of an image's sides; one that is resized by its shorter side grows by as much.
MOST_ASPECT = 200
# What a processor gives for each token; all else is of the images and sounds.
BY_TOKEN = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids")
OFFSETS, REPLACED = "offset_mapping", "text_replacement_offsets"
LEAVE_ALONE = (
    "rows with these are not read for this model; leave them alone by an empty name "
    "(--column images=, --column audio=), or measure it by the library, with batches of your own loader"
)


@dataclass(frozen=True)
class MediaEncoder:
    """Makes examples of text with images and sounds.

    Attributes:
        processor: A transformers processor.
        max_length: Longer examples are cut at the end, behind the last image.
        beside: Folder of the rows, if files in it may be named.
        most_decoded: Pixels of all images of a row, and samples of all its sounds.
    """

    processor: Any
    max_length: int
    beside: Path | None = None
    most_decoded: Mapping[Kind, int] = field(default_factory=lambda: MOST_DECODED)

    @property
    def tokenizer(self) -> Any:
        """Its tokenizer."""
        return self.processor.tokenizer

    def placed(self, text: str, media: Sequence[Value], *, where: str) -> str:
        """Text of a row with the places of its images and sounds as the model writes them.

        What the text has no place for goes before it.

        Raises:
            DatasetSchema: It has places for some of them only.
        """
        for kind, mark in PLACES.items():
            n, place = sum(k == kind for k, _ in media), self._places.get(kind, mark)
            token = self._token(kind)
            found = text.count(token)
            if token != mark and mark in text and n:
                found += text.count(mark)
                text = text.replace(mark, place)
            if not found and n:
                text = place * n + text
            elif found != n:
                raise DatasetSchema(
                    f"{where}: the text has {found} places for an {kind} ({mark}), and the row has "
                    f"{n}: each needs one, or leave all places out"
                )
        return text

    def encode(
        self,
        text: str,
        spans: Sequence[Span],
        media: Sequence[Value],
        *,
        where: str,
        add_special_tokens: bool = False,
        ends: bool = False,
    ) -> Example | None:
        """Tokens and labels of a text, and what the model sees and hears beside it.

        Args:
            text: The text, with one place for each of the media.
            spans: The characters whose tokens are predicted.
            media: Images and sounds in the order of their places.
            where: What the row is called.
            add_special_tokens: Whether the tokenizer may add what it adds to a text.
            ends: Whether one end of text follows, which is predicted.

        Returns:
            The example; ``None`` when nothing is left to predict.

        Raises:
            DatasetSchema: An image is damaged, or does not fit in `max_length`.
        """
        decoded = self._decoded(media, where)
        self._check_room(decoded.get("images", ()), where)
        text = self._cut(text, bool(media))
        spans = [(min(start, len(text)), min(end, len(text))) for start, end in spans]
        made = self._process(text, decoded, add_special_tokens, where)
        replaced = made.pop(REPLACED, None)
        replaced = replaced[0] if replaced else []
        if len(replaced) != len(media):
            raise UnsupportedArchitecture(
                f"{where}: the model's processor ({type(self.processor).__name__}) does not say "
                f"which characters stand for an image, so that labels cannot be put: {LEAVE_ALONE}"
            )
        shown = [tuple(r["new_span"]) for r in replaced]
        widened = _widened(text, replaced)
        self._check_text(widened, _row(made["input_ids"]), add_special_tokens, where)
        offsets = [tuple(pair) for pair in _row(made.pop(OFFSETS))]
        is_shown = [any(a < end and start < b for a, b in shown) for start, end in offsets]
        moved = [(_moved(start, replaced), _moved(end, replaced)) for start, end in spans]
        by_token = {name: _row(made.pop(name)) for name in BY_TOKEN if name in made}
        marks = marks_of(offsets, moved, widened)
        ids = by_token["input_ids"]
        by_token["labels"] = [
            token if mark and not of_media else IGNORED
            for token, mark, of_media in zip(ids, marks, is_shown, strict=True)
        ]
        if ends:
            self._end(by_token)
        n_needed = max((n + 1 for n, is_of in enumerate(is_shown) if is_of), default=0)
        if n_needed > self.max_length:  # its pixels would stay, and the tokens for them not
            raise DatasetSchema(self._too_long(where, n_needed))
        by_token = {name: row[: self.max_length] for name, row in by_token.items()}
        if all(label == IGNORED for label in by_token["labels"][1:]):
            if n_needed >= self.max_length:
                raise DatasetSchema(self._too_long(where, n_needed))
            return None
        return by_token | {n: v for n, v in made.items() if isinstance(v, Tensor)}

    def _check_text(
        self, text: str, ids: Sequence[int], add_special_tokens: bool, where: str
    ) -> None:
        """See that a processor has changed nothing but the places: marks would lie elsewhere.

        Raises:
            UnsupportedArchitecture: It writes more, as PaliGemma's a beginning and a line's end.
        """
        own = self.tokenizer(text, add_special_tokens=add_special_tokens)["input_ids"]
        if list(own) != list(ids):
            raise UnsupportedArchitecture(
                f"{where}: the model's processor ({type(self.processor).__name__}) changes the text "
                "besides putting in what stands for images and sounds, so that labels cannot be put: "
                f"{LEAVE_ALONE}"
            )

    def _cut(self, text: str, has_media: bool) -> str:
        """What of a text can come before the cut: all up to its last place, and some behind it."""
        places = [
            text.rfind(place) + len(place) for place in self._places.values() if place in text
        ]
        end = max(places, default=0) if has_media else 0
        return text[:end] + cut_text(text[end:], self.tokenizer, max_length=self.max_length)

    def _too_long(self, where: str, n_needed: int) -> str:
        return (
            f"{where}: its images and sounds, and the text before them, take {n_needed} tokens, and "
            f"max_length is {self.max_length}: set calibration.max_length to more than that (if the "
            "model has as many positions), or give smaller or fewer of them"
        )

    def _end(self, by_token: dict[str, list[int]]) -> None:
        """One end of text, whatever the tokenizer or the row has."""
        tokenizer = self.tokenizer
        ends = {tokenizer.eos_token_id, tokenizer.sep_token_id}
        while by_token["input_ids"] and by_token["input_ids"][-1] in ends:
            for row in by_token.values():
                row.pop()
        if tokenizer.eos_token_id is None:
            return
        for name, row in by_token.items():
            is_id = name in {"input_ids", "labels"}
            row.append(tokenizer.eos_token_id if is_id else int(name == "attention_mask"))

    def _process(
        self, text: str, media: Mapping[str, Any], add_special_tokens: bool, where: str
    ) -> dict[str, Any]:
        try:
            with named_as(f"{where}: the model's processor fails"), at_most_more(MOST_BYTES):
                return dict(
                    self.processor(
                        text=[text],
                        return_tensors="pt",
                        return_offsets_mapping=True,
                        return_text_replacement_offsets=True,
                        add_special_tokens=add_special_tokens,
                        **media,
                    )
                )
        except UnsupportedArchitecture as error:
            cause = error.__cause__
            if isinstance(cause, ValueError | StopIteration):  # of this row, not of the model
                raise DatasetSchema(
                    f"{where}: the model's processor refuses it: {sentence_of(cause)}"
                ) from cause
            raise
        except (MemoryError, RuntimeError) as error:
            if not is_of_machine(error):
                raise
            raise DatasetSchema(
                f"{where}: its images and sounds take the model's processor more than "
                f"{MOST_BYTES >> 30} GiB of memory: give smaller or fewer of them"
            ) from error

    def _check_room(self, images: Sequence[Any], where: str) -> None:
        """See that what stands for the images can fit, where the processor knows it by their sizes.

        What it writes into the text and how many pieces it cuts is then known before it does.
        """
        for number, image in enumerate(images, 1):
            long, short = max(image.size), min(image.size)
            if long > MOST_ASPECT * short:
                raise DatasetSchema(
                    f"{where}, image {number} of it, has {image.width} x {image.height} pixels; one side "
                    f"may be {MOST_ASPECT} times the other"
                )
        n_tokens = _n_tokens_of(self.processor, images)
        if n_tokens > 2 * self.max_length:  # some count a few too many
            raise DatasetSchema(self._too_long(where, n_tokens))

    def _decoded(self, media: Sequence[Value], where: str) -> dict[str, Any]:
        """What the processor is called with besides the text."""
        found: dict[Kind, list[Any]] = {}
        for number, (kind, value) in enumerate(media, 1):
            try:
                content = read_media(value, kind, beside=self.beside)
                before = found.setdefault(kind, [])
                before.append(self._decode(kind, content, sum(map(_n_decoded, before))))
            except (MediaError, DamagedMedia) as error:
                raise DatasetSchema(f"{where}, {kind} {number} of it, {error}") from error
        given: dict[str, Any] = {}
        if images := found.get("image"):
            given["images"] = images
        if sounds := found.get("audio"):
            given |= {"audio": sounds, "sampling_rate": self._rate}
        return given

    def _decode(self, kind: Kind, content: bytes, n_before: int) -> Any:
        self._check_kind(kind)
        most_decoded = self.most_decoded[kind]
        if kind == "image":
            return decode_image(content, most_pixels=most_decoded, n_before=n_before)
        sound = decode_sound(
            content, rate=self._rate, most_samples=most_decoded, n_before=n_before
        )
        most = getattr(self.processor.feature_extractor, "n_samples", None)
        if isinstance(most, int) and len(sound) > most:
            raise DamagedMedia(
                f"lasts {len(sound) / self._rate:.3g} s, and the model listens to {most / self._rate:g} "
                "s at most: cut it, as what follows would not be heard"
            )
        return sound

    def _check_kind(self, kind: Kind) -> None:
        part = "image_processor" if kind == "image" else "feature_extractor"
        if getattr(self.processor, part, None) is None:
            raise DamagedMedia(
                f"is an {kind}, and the model's processor ({type(self.processor).__name__}) takes none"
            )

    @property
    def _rate(self) -> int:
        return int(self.processor.feature_extractor.sampling_rate)

    def _token(self, kind: Kind) -> str:
        token = getattr(self.processor, f"{kind}_token", None)
        return str(token) if token else PLACES[kind]

    @cached_property
    def _places(self) -> dict[Kind, str]:
        """What the chat template writes where an image is, or else the token of one."""
        found = {kind: self._token(kind) for kind in PLACES}
        if self.tokenizer.chat_template:
            with ChatTemplate(self.tokenizer) as template:  # one process for all kinds
                for kind, token in found.items():
                    found[kind] = _place(template, kind, token) or token
        return found


def _n_tokens_of(processor: Any, images: Sequence[Any]) -> int:
    """Tokens that stand for images, by their sizes alone; 0 where a processor does not say."""
    count = getattr(processor, "_get_num_multimodal_tokens", None)
    if count is None or not images:
        return 0
    try:
        said = count(image_sizes=[[image.height, image.width] for image in images])
        return int(sum(said.get("num_image_tokens") or [0]))
    except Exception:  # it is not what makes the row; what does says what is wrong
        return 0


def _n_decoded(decoded: Any) -> int:
    """Pixels of an image, or samples of a sound."""
    return len(decoded) if isinstance(decoded, np.ndarray) else decoded.width * decoded.height


def _place(template: ChatTemplate, kind: Kind, token: str) -> str | None:
    """What a template writes between the header and the words of a user who shows something."""
    words = {"type": "text", "text": PROBE}
    plain, shown = template.render(
        [
            Request(({"role": "user", "content": parts},))
            for parts in ([words], [{"type": kind}, words])
        ],
        where="the model's chat template",
    )
    before, found, _ = plain.text.partition(PROBE)
    place = shown.text.partition(PROBE)[0].removeprefix(before)
    is_one = found and shown.text.startswith(before) and place.count(token) == 1
    return place if is_one else None


def _widened(text: str, replaced: Sequence[Mapping[str, Any]]) -> str:
    pieces, last = [], 0
    for one in replaced:
        start, end = one["span"]
        pieces += [text[last:start], one["replacement"]]
        last = end
    return "".join([*pieces, text[last:]])


def _moved(at: int, replaced: Sequence[Mapping[str, Any]]) -> int:
    """Where a character of the text is in the text with what was put in."""
    gained = 0
    for one in replaced:
        (start, end), (_, new_end) = one["span"], one["new_span"]
        if at <= start:
            break
        gained = new_end - end
        if at < end:  # inside of a place, all of which is what was put in
            return int(new_end)
    return at + gained


def _row(values: Any) -> list[Any]:
    """The one row of a batch."""
    [row] = values.tolist() if isinstance(values, torch.Tensor) else values
    return list(row)
