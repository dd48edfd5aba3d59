"""Which files a request means: the model it names, or the default when it names none, and those of
its settings."""

from __future__ import annotations

import asyncio

from llm_server.errors import InvalidRequest, ModelLoading, ModelNotFound
from llm_server.models.lease import Overrides
from llm_server.models.loader import Loader
from llm_server.models.plan import Planner
from llm_server.models.registry import ModelFile
from llm_server.models.residents import Residents


class Choice:
    """Knows the default model. Looks at the models folder when what it knows does not do."""

    def __init__(
        self, planner: Planner, residents: Residents, loader: Loader, first_model: str | None
    ) -> None:
        self.default: ModelFile | None = None
        """The model that requests get which name none, once there is one."""
        self._planner = planner
        self._registry = planner.registry
        self._residents = residents
        self._loader = loader
        self._first_model = first_model

    async def of(self, name: str | None) -> ModelFile:
        """The file that `name` means; one that is gone, too, while its model is loaded.

        Raises:
            ModelNotFound: there is none.
            ModelLoading: no name was given, and the folder is empty.
        """
        if name is None:
            return await self._unnamed()
        for resident in self._residents:
            if not self._registry.means(name, resident.model) or resident.worker.outdated:
                continue
            # Short of its whole name, another file may have come that is meant now.
            if name == resident.model.name or self._registry.is_current():
                return resident.model
        await asyncio.to_thread(self._registry.scan)
        try:
            return self._registry.find(name)
        except ModelNotFound:
            for resident in self._residents:
                if self._registry.means(name, resident.model):
                    return resident.model
            raise

    async def named(self, overrides: Overrides) -> Overrides:
        """The overrides with the names of files in full.

        Raises InvalidRequest for a file that is not there.
        """
        try:
            return self._planner.named(overrides)
        except InvalidRequest:
            await asyncio.to_thread(self._registry.scan)
            return self._planner.named(overrides)

    async def to_unload(self, name: str) -> ModelFile:
        """As `of`, and the stand-in also when it serves nobody any more.

        Raises ModelNotFound.
        """
        try:
            return await self.of(name)
        except ModelNotFound:
            for resident in self._residents:
                if resident.model.name in (name, f"{name}.gguf"):
                    return resident.model
            raise

    async def as_it_is(self, model: ModelFile) -> ModelFile:
        """The file that has the model's name now; the one given if there is none."""
        await asyncio.to_thread(self._registry.scan)
        return self._registry.at(model.name) or model

    async def _unnamed(self) -> ModelFile:
        """The default model; the first one while there is none, or when its file is gone."""
        default = self.default
        if default is not None and self._registry.is_stand_in(default):
            default = None
        if default is not None and (resident := self._residents.get(default)) is not None:
            if not resident.worker.outdated:
                return default
        if self._loader.loading is not None and self._loader.loads_text:
            return self._loader.loading
        await asyncio.to_thread(self._registry.scan)
        if default is not None and (same := self._registry.at(default.name)) is not None:
            return same
        if self._first_model is not None:
            return self._registry.find(self._first_model)
        if (first := await asyncio.to_thread(self._registry.first)) is not None:
            return first
        raise ModelLoading("No model is loaded, and the models folder is empty.")
