"""Methods that ranks can be shared by, and what each of them goes by."""

from typing import Annotated, Literal

from pydantic import BeforeValidator

from fimlora_contract.training_time import check_calibrates

# Those that the engine has, in its order; by spectra, modules may be left out.
MethodName = Literal[
    "fim",
    "coherent",
    "spectral",
    "spectral-denoised",
    "fim-over-null",
    "gora",
    "vila",
    "kappa",
    "eva",
    "fisher-layers",
    "fisher-layers-frobenius",
    "cka-layers",
    "cka-layers-biased",
    "effective-rank",
    "uniform",
    "random",
]
# As a request names one: the names of others that are known are told why they are none.
AskedMethod = Annotated[MethodName, BeforeValidator(check_calibrates)]
BY_SPECTRA = ("spectral", "spectral-denoised", "eva")
# These choose layers and leave out all others.
BY_LAYERS = ("fisher-layers", "fisher-layers-frobenius", "cka-layers", "cka-layers-biased")
# These need each example's energy.
BY_EXAMPLES = ("coherent", "spectral-denoised", "fisher-layers")
# These go by what is recorded of each expert by itself.
BY_EACH_EXPERT = ("fim", "fim-over-null", "vila", "uniform", "random")
# For these no pass goes backward, so that no Fisher information is measured.
WITHOUT_FISHER = ("kappa", "eva", "cka-layers", "cka-layers-biased")
# Only where they are named: whole gradients of a large model are more than most memories,
# decomposing all of its weights or of its inputs takes longer than measuring it, and neither layers
# nor inputs of two stacks are taken.
ON_REQUEST = (
    "gora",
    "kappa",
    "eva",
    "fisher-layers-frobenius",
    "cka-layers",
    "cka-layers-biased",
)
# How many examples these compare at least.
FEWEST_EXAMPLES = {
    "coherent": 2,
    "spectral-denoised": 2,
    "cka-layers": 4,
    "cka-layers-biased": 4,
}
BY_RETAIN = ("vila",)  # these hold the dataset against another one
