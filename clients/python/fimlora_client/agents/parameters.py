"""What the tools take: types with the sentence that a client is told."""

from typing import Annotated

from pydantic import Field

from fimlora_contract.budgets import SPELLINGS

BaseModelName = Annotated[
    str,
    Field(
        description="A registered name (look, what='models'), or namespace/name[@revision] on the hub."
    ),
]
DatasetName = Annotated[
    str,
    Field(
        description="A .jsonl, .json, .csv or .parquet file below the folder of the tools (uploaded), an "
        "uploaded id ds_..., a registered name, or namespace/name on the hub. Rows: text and label; "
        "text alone; prompt and completion; or messages."
    ),
]
BudgetText = Annotated[str, Field(description=f"What the plan may spend: {SPELLINGS}.")]
LowestRank = Annotated[
    int | None, Field(description="Lowest rank; half the mean rank by default.", ge=0)
]
HighestRank = Annotated[
    int | None, Field(description="Highest rank; twice the mean rank by default.", ge=1)
]
Columns = Annotated[
    dict[str, str] | None,
    Field(
        description="Columns by role where they have other names, such as {'text': 'review'}."
    ),
]
JobId = Annotated[str, Field(description="job_...")]
WaitS = Annotated[
    float,
    Field(description="How long to wait for the end; the job goes on after it.", ge=0, le=3600),
]
