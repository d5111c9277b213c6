"""GET /models: the base models the operator registered."""

from pathlib import Path

from fastapi import APIRouter

from fimlora_contract.models import Model, ModelPage
from fimlora_jobs.data_folder import registered_names
from fimlora_service.errors import ServiceError, ValidationFailed
from fimlora_service.http.dependencies import DataFolderDep, problems
from fimlora_service.http.threads import reads_files
from fimlora_service.keys.principal import READS
from fimlora_service.keys.routes import ScopedRoute
from fimlora_service.resolve.model_checks import read_model
from fimlora_service.resolve.model_files import (
    describe_config,
    permission_errors,
    read_config_file,
)

router = APIRouter(tags=["models"], route_class=ScopedRoute)


@router.get("/models", dependencies=[READS], responses=problems(ValidationFailed))
@reads_files
def list_models(data_folder: DataFolderDep) -> ModelPage:
    """List registered base models, and say of each whether it can be used."""
    names = registered_names(data_folder.models)
    return ModelPage(data=[describe_model(data_folder.models / name) for name in names])


def describe_model(folder: Path) -> Model:
    """What a registered folder holds, read from headers alone."""
    where = f"local model {folder.name!r}"
    model = Model(id=folder.name, size=0, usable=True, problem=None)
    try:
        with permission_errors(where):
            size = sum(path.stat().st_size for path in folder.glob("*") if path.is_file())
            model = model.model_copy(update={"size": size})
            config = describe_config(read_config_file(folder / "config.json", where=where))
            model = model.model_copy(update=config)
            read_model(folder, where=where)
    except ServiceError as error:
        return model.model_copy(update={"usable": False, "problem": str(error)})
    return model
