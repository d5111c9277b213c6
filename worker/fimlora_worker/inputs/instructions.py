"""Instructions as the Alpaca data set words them, which is what its columns stand for."""

PREAMBLE = "Below is an instruction that describes a task"
WITH_INPUT = (
    PREAMBLE + ", paired with an input that provides further context. Write a response that "
    "appropriately completes the request.\n\n### Instruction:\n{instruction}\n\n### Input:\n"
    "{input}\n\n### Response:\n"
)
WITHOUT_INPUT = (
    PREAMBLE + ". Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:\n"
)


def instruction_prompt(instruction: str, given: str | None) -> str:
    """The text that a response goes on from; an empty input is none."""
    if given:
        return WITH_INPUT.format(instruction=instruction, input=given)
    return WITHOUT_INPUT.format(instruction=instruction)
