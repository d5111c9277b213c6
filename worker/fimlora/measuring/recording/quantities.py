"""Which quantities a run collects: the one list that a new quantity is added to."""

from collections.abc import Callable, Mapping, Sequence

import torch

from fimlora.adapter.factors import Factors
from fimlora.measuring.recording.adapter_gradients import AdapterGradients
from fimlora.measuring.recording.batch_energies import BatchEnergies
from fimlora.measuring.recording.expert_slices import ExpertSlices
from fimlora.measuring.recording.expert_tokens import ExpertTokens
from fimlora.measuring.recording.fisher_exact import FisherExact
from fimlora.measuring.recording.fisher_sampled import FisherSampled
from fimlora.measuring.recording.fisher_sketched import FisherSketched
from fimlora.measuring.recording.gradient_factors import GradientFactors
from fimlora.measuring.recording.input_components import InputComponents
from fimlora.measuring.recording.input_moments import InputMoments
from fimlora.measuring.recording.layer_similarity import LayerSimilarity
from fimlora.measuring.recording.mean_gradient import MeanGradient, Signs
from fimlora.measuring.recording.parameter_fisher import ParameterFisher
from fimlora.measuring.recording.projected_gradient import ProjectedGradient
from fimlora.measuring.recording.quantity import Quantity
from fimlora.measuring.recording.recorder import Recorder
from fimlora.measuring.recording.spectra import Spectra
from fimlora.measuring.recording.weight_condition import WeightCondition
from fimlora.measuring.recording.weight_gradient import WeightGradient
from fimlora.measuring.recording.whitened_spectra import WhitenedSpectra
from fimlora.measuring.settings import Settings
from fimlora.memory.need import (
    GRADIENT_RECORDS,
    MOMENT_RECORDS,
    SKETCH_WIDTH,
    WHOLE_GRADIENT_RECORDS,
    gradients_of_parts,
)
from fimlora.plan import TargetModule
from fimlora.statistics.options import Estimator, Record


def quantities_for(
    settings: Settings,
    modules: Sequence[TargetModule],
    device: torch.device,
    *,
    spectra_bytes: int | None = None,
    signs: Signs | None = None,
    factors: Mapping[str, Factors] | None = None,
) -> list[Quantity]:
    """Make the quantities that were asked for.

    Args:
        settings: What was asked for.
        modules: The target modules.
        device: Where they compute.
        spectra_bytes: Memory for mean gradients, if these modules are a part of all.
        signs: Signs to sketch with, drawn before for other modules.
        factors: The adapter that acts, where its gradients are asked for.

    Returns:
        The quantities, in the order they are added to.
    """
    estimator, collect = settings.parsed_estimator, settings.parsed_record
    apart = ExpertSlices(modules)
    modules = apart.slices
    n_bytes = settings.spectra_bytes if spectra_bytes is None else spectra_bytes
    wanted: list[Quantity] = []
    moments = InputMoments(modules)
    if collect & MOMENT_RECORDS:
        wanted.append(moments)
    if collect & GRADIENT_RECORDS:
        whole = bool(collect & WHOLE_GRADIENT_RECORDS)
        gradients = MeanGradient(modules, spectra_bytes=n_bytes, signs=signs, whole=whole)
        readers: dict[Record, Callable[[], Quantity]] = {
            Record.SPECTRA: lambda: Spectra(gradients),
            Record.WEIGHT_GRADIENT: lambda: WeightGradient(gradients),
            Record.WHITENED_SPECTRA: lambda: WhitenedSpectra(gradients, moments),
            Record.GRADIENT_FACTORS: lambda: GradientFactors(gradients),
        }
        wanted.append(gradients)
        gradients.of_parts = gradients_of_parts(collect)
        wanted += [new() for record, new in readers.items() if record in collect]
    if Record.PROJECTED_GRADIENT in collect:
        wanted.append(ProjectedGradient(modules, seed=settings.seed, device=device))
    if Record.BATCH_ENERGIES in collect:
        wanted.append(BatchEnergies(modules))
    if Record.ADAPTER_GRADIENTS in collect:
        assert factors is not None, "gradients of an adapter need one that acts"
        wanted.append(AdapterGradients(modules, factors))
    if Record.PARAMETER_FISHER in collect:
        wanted.append(ParameterFisher(modules))
    if Record.LAYER_SIMILARITY in collect:
        wanted.append(LayerSimilarity(modules))
    if Record.WEIGHT_CONDITION in collect:
        wanted.append(WeightCondition())
    if Record.INPUT_COMPONENTS in collect:
        wanted.append(InputComponents(modules, n_components=settings.n_components))
    rank, seed = settings.rank, settings.seed
    if estimator is Estimator.SKETCHED:
        wanted.append(FisherSketched(modules, rank=rank, seed=seed))
    elif estimator.has_examples:
        wanted.append(FisherExact(modules))
    if estimator.has_sampled:
        wanted.append(FisherSampled(modules, rank=rank, seed=seed, device=device))
    return wanted + ([ExpertTokens(sorted(apart.names))] if apart.names else [])


def recorder_for(
    settings: Settings,
    modules: Sequence[TargetModule],
    device: torch.device,
    *,
    spectra_bytes: int | None = None,
    signs: Signs | None = None,
    factors: Mapping[str, Factors] | None = None,
) -> Recorder:
    """Make a recorder of the quantities that were asked for, and of their null.

    Args:
        settings: What was asked for.
        modules: The target modules.
        device: Where they compute.
        spectra_bytes: As for `quantities_for`.
        signs: As for `quantities_for`.
        factors: As for `quantities_for`.

    Returns:
        The recorder.
    """
    signs = signs or Signs(SKETCH_WIDTH)  # the null's sketches are made with the same ones
    both = [
        quantities_for(
            settings, modules, device, spectra_bytes=spectra_bytes, signs=signs, factors=factors
        )
        for _ in range(1 + settings.has_null)
    ]
    null = [q for q in both[-1] if q.has_null] if settings.has_null else ()
    return Recorder(modules, both[0], null=null, halves=settings.halves)


def layer_recorder_for(settings: Settings, modules: Sequence[TargetModule]) -> Recorder | None:
    """Make a recorder of what modules' layers show in a forward pass alone.

    Args:
        settings: What was asked for.
        modules: The target modules.

    Returns:
        The recorder; ``None`` where nobody looks at layers, or there is no module.
    """
    if not modules or Record.LAYER_SIMILARITY not in settings.parsed_record:
        return None
    return Recorder(modules, [LayerSimilarity(modules)])
