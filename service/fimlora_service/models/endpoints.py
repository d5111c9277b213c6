"""GET /models: the base models the operator registered."""

from pathlib import Path

from fastapi import APIRouter, Request

from fimlora_contract.models import Model, ModelPage
from fimlora_jobs.data_folder import registered_names
from fimlora_jobs.models.base_model_name import base_model_name
from fimlora_service.errors import ServiceError, ValidationFailed
from fimlora_service.http.dependencies import DataFolderDep, problems
from fimlora_service.http.peers import is_local
from fimlora_service.http.threads import reads_files
from fimlora_service.keys.principal import READS, PrincipalDep
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
def list_models(
    data_folder: DataFolderDep, request: Request, principal: PrincipalDep
) -> ModelPage:
    """List registered base models, and say of each whether it can be used."""
    names = registered_names(data_folder.models)
    found = [describe_model(data_folder.models / name) for name in names]
    is_operators = principal.is_operator and is_local(request.scope)
    return ModelPage(data=found, data_dir=str(data_folder.root) if is_operators else None)


def describe_model(folder: Path) -> Model:
    """What a registered folder holds, read from headers alone."""
    where = f"local model {folder.name!r}"
    called = base_model_name(folder.parent, folder.name)
    model = Model(id=folder.name, base_model=called, size=0, usable=True, problem=None)
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
