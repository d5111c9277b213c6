"""Why a module that a choice of targets means is not one: sentences that reports show as they are.

A reason is plain text. These are the engine's own; others may add theirs.
"""

FUSED_EXPERTS = (
    "one parameter holds the matrices of all experts, and such experts are targets only where "
    "target_parameters asks for them: 'all', or names of parameters"
)
OTHER_EXPERTS = (
    "one parameter holds the matrices of all experts, and its class runs them in a way that is not "
    "measured"
)
OTHER_CLASS = "its class is neither Linear nor Conv1D, and other linear maps are not measured"
OUTPUT_HEAD = (
    "all-linear leaves the output head out, as PEFT does; a list of target_modules that names it, or "
    "an embedding, has it as a target, and modules_to_save trains it whole"
)
EXCLUDED = "exclude_modules names it"
SAVED_WHOLE = (
    "modules_to_save has it trained whole, and PEFT puts no LoRA on what it trains whole"
)
DRAWN_ANEW = (
    "the checkpoint lacks its weights, so they are drawn anew at every load and trained in full"
)
NOT_A_PRODUCT = (
    "its class returns something else than one vector of output features for each input, to which "
    "LoRA cannot be added"
)
NOT_SELECTED = "it is of an expert that was not selected to train"
UNREACHED = (
    "no gradient reaches it: no row of the calibration data runs it as a module, or the loss "
    "does not depend on it"
)
