"""Methods that a calibration cannot run: what each is, and what is offered instead.

They learn ranks while an adapter is trained, start one in some way, or are no plan of ranks. A
request that names one is told so, as nothing that is measured before training comes to the same.
"""

from typing import Any

_TRAINING = (
    "moves ranks while an adapter is trained, which a calibration before training cannot"
)
_ADVICE = (
    "to move ranks at a trained point, train first and calibrate again with calibration.adapter, or "
    "let fimlora.FimLoraReallocator do it in the Trainer"
)
# By name: why not, and where to go.
TRAINING_TIME: dict[str, tuple[str, str]] = {
    "adalora": (
        _TRAINING,
        (
            "fimlora fetch --format adalora --steps N writes a config for PEFT whose schedule is legal "
            "for your steps, fimlora.AdaLoraReallocation lets the Trainer's ranks fall, and fimlora "
            "convert turns what was trained into plain LoRA"
        ),
    ),
    "alora": (
        (
            "scores a rank by what leaving it out of a trained adapter costs; before training all "
            "ranks are zero, so that a calibration cannot tell them apart"
        ),
        "fimlora.advise_prune_and_grow gives such advice for a trained adapter",
    ),
    "elalora": (_TRAINING, _ADVICE),
    "igu-lora": (_TRAINING, _ADVICE),
    "l1ra": (_TRAINING, _ADVICE),
    "autolora": (_TRAINING, _ADVICE),
    "ard-lora": (_TRAINING, _ADVICE),
    "shaplora": (_TRAINING, _ADVICE),
    "dr-lora": (_TRAINING, _ADVICE),
    "dylora": (
        "trains one adapter that works at several ranks, so that there is no plan to calibrate",
        "fimlora truncate takes a trained adapter down to a budget",
    ),
    "para": (
        "looks at the singular values of a trained adapter, of which a calibration has none",
        "fimlora truncate does that, to an exact budget",
    ),
    "ralora": (
        "trains block-diagonal adapters, which no plan of LoRA ranks is",
        "method effective-rank has the number that it goes by, as a diagnostic",
    ),
    "lora-ga": (
        "is a way to start an adapter, not one to share ranks",
        "adapter.init takes it, with the ranks of any method",
    ),
    "lora-one": (
        "is a way to start an adapter, not one to share ranks",
        "adapter.init takes it, with the ranks of any method",
    ),
    "corda": (
        "is a way to start an adapter, not one to share ranks",
        "PEFT has it and takes the rank pattern of any method",
    ),
}


def check_calibrates(method: Any) -> Any:
    """Refuse the name of a method that is known and cannot be calibrated.

    Args:
        method: What was given for the name of one.

    Raises:
        ValueError: It is one; the message says why not, and where to go.
    """
    name = method.lower().replace("_", "-") if isinstance(method, str) else ""
    if name in TRAINING_TIME:
        reason, instead = TRAINING_TIME[name]
        raise ValueError(f"method {name} {reason}; {instead}")
    return method
